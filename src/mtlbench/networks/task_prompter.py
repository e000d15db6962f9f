"""Task prompts: tokens of the tasks in every block of a vision transformer, and a decoder that reads maps by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError, SuiteError
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import conv, norm, per_task, resize
from mtlbench.networks.decoder import DenseHead, VectorHead, head_factor
from mtlbench.networks.encoder import Encoder, build_encoder
from mtlbench.networks.encoder_stages import Stages, State
from mtlbench.networks.family import Model
from mtlbench.tasks import Task


class Prompt(nn.Module):
    """The tokens of one task before the first block, (n, D)."""

    def __init__(self, count: int, width: int) -> None:
        """Draws the tokens from a truncated normal distribution with a standard deviation of 0.02."""
        super().__init__()
        self.tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, width), std=0.02))


class PromptedMap(nn.Module):
    """Reads one map of the encoder by the prompts of all tasks; all tasks share it.

    With F the projected map, task t gets [a_t ⊙ F ; c_t ⊙ F]. Over the N places, a_t = N · softmax(q_t · k / √d), per
    head and its share of the channels. Over the C channels, c_t = C · softmax(r_t · F / √N), with r_t the prompt mapped
    to one number per place. Both have the mean 1, so equal scores leave the map as it is.
    """

    def __init__(self, width: int, channels: int, places: int, heads: int) -> None:
        """Builds the layers.

        Args:
            width: Width D of the tokens.
            channels: C, a multiple of ``heads``.
            places: N.
            heads: Heads of the attention to places.
        """
        super().__init__()
        self.heads = heads
        self.project = conv(width, channels, 1)
        self.norm = nn.LayerNorm(width)
        self.query, self.places = nn.Linear(width, channels), nn.Linear(width, places)
        self.key = nn.Linear(width, channels, bias=False)  # Softmax cancels a bias of the keys.

    def forward(self, patches: Tensor, prompts: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the features of all tasks (B, T, 2C, h, w).

        Args:
            patches: Tokens (B, N, D).
            prompts: One token per task (B, T, D).
            grid: h and w.
        """
        f = self.project(patches.transpose(1, 2).unflatten(2, grid)).flatten(2)  # (B, C, N)
        patches, prompts = self.norm(patches), self.norm(prompts)
        query, key = (x.unflatten(2, (self.heads, -1)) for x in (self.query(prompts), self.key(patches)))
        scores = torch.einsum("bthc,bnhc->bthn", query, key) / math.sqrt(query.shape[3])
        a = scores.softmax(3) * f.shape[2]
        c = (torch.einsum("btn,bcn->btc", self.places(prompts), f) / math.sqrt(f.shape[2])).softmax(2) * f.shape[1]
        spatial = (a[:, :, :, None] * f.unflatten(1, (self.heads, -1))[:, None]).flatten(2, 3)  # (B, T, C, N)
        return torch.cat([spatial, c[..., None] * f[:, None]], 2).unflatten(3, grid)


class TaskPrompterNetwork(MTLNetwork):
    """A vision transformer that runs once with the prompts of all tasks among its tokens, and the decoder.

    Prompts of all tasks take part even where some are not predicted, so a prediction does not depend on the others that
    are asked for. Heads of dense tasks read the sum of the features of all maps. Tasks of the whole image have a linear
    head on their prompt after the last block. The map of a convolutional stem is added to the features of every task.
    """

    # mypy would treat these as plain modules.
    prompts: Any
    readers: Any
    mixes: Any

    def __init__(self, tasks: Mapping[str, Task], *, prompts: int = 1, heads: int = 2, **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            prompts: Tokens per task, >= 1.
            heads: Heads of the attention to places, >= 1; must divide ``decoder_channels``.
            model: The keys of a suite's ``model`` section; see `Model`.

        Raises:
            MethodError: A number is out of range, or the encoder is no plain vision transformer.
            SuiteError: See `build_encoder`.
        """
        super().__init__()
        section = Model(**model)
        height, width = section.image_size
        channels = section.decoder_channels
        if prompts < 1 or heads < 1 or channels % heads:
            raise MethodError(
                "task_prompter: prompts and heads must be at least 1, and heads must divide decoder_channels. Found "
                f"{prompts}, {heads} and {channels}. The defaults are 1 and 2."
            )
        self.encoder = build_encoder(
            section.name, image_size=(height, width), weights=section.weights, options=section.encoder_options
        )
        self.stages = _stages(self.encoder)
        tokens, stride = self.encoder.channels[-1], self.encoder.strides[-1]
        grid = (height // stride, width // stride)
        refine = 2 if self.encoder.strides[0] > 4 else 1
        self.size = tuple(refine * math.ceil(side / self.encoder.strides[0]) for side in (height, width))
        factor = head_factor(section.upsampling, self.encoder.strides[0] // refine)
        self.dense = [name for name, task in tasks.items() if task.dense]
        self.prompts = per_task("prompt", tasks, lambda _: Prompt(prompts, tokens))
        maps = len(self.stages) - self.stages.stem
        self.readers = nn.ModuleList(
            PromptedMap(tokens, channels, grid[0] * grid[1], heads) for _ in range(maps if self.dense else 0)
        )
        self.stem = conv(self.encoder.channels[0], channels, 1) if self.stages.stem and self.dense else None
        self.mixes = per_task(
            "mix", self.dense, lambda _: nn.ModuleList(_block(2 * channels, channels) for _ in range(maps))
        )

        def head(name: str) -> nn.Module:
            count = tasks[name].channels
            if not tasks[name].dense:
                return VectorHead(tokens, count)
            return DenseHead(channels, count, (height, width), factor)

        self.heads = per_task("head", tasks, head)

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        maps, fine = self._encoded(inputs)
        names, last = list(self.prompts), maps[-1][1]
        read = [(reader(*of), of[2]) for reader, of in zip(self.readers, maps, strict=bool(self.dense))]
        stem = resize(self.stem(fine), self.size) if self.stem is not None else 0
        predictions = {}
        for task in tasks:
            at = names.index(task)
            if task in self.dense:
                parts = [mix(found[:, at]) for (found, _), mix in zip(read, self.mixes[task], strict=True)]
                predictions[task] = self.heads[task](sum((resize(part, self.size) for part in parts), stem))
            else:
                predictions[task] = self.heads[task](last[:, at])
        return Outputs(predictions)

    def _encoded(self, image: Tensor) -> tuple[list[tuple[Tensor, Tensor, tuple[int, int]]], Tensor | None]:
        """Returns patches (B, N, D), prompts (B, T, D) and grid after every stage of blocks, and a stem's map."""
        x, stages, fine = self.encoder.normalise(image), self.stages, None
        trunk: Any = self.encoder.trunk
        if stages.stem:
            fine = stages.run(0, State(x)).map
            grid, parts = tuple(trunk.model.patch_embed.grid_size), [trunk.tokens(fine)]
        else:
            state = stages.start(x)
            grid, parts = tuple(state.map.shape[-2:]), [state.map.flatten(2).transpose(1, 2)]
            parts += [] if state.prefix is None else [state.prefix]
        own = torch.cat([prompt.tokens for prompt in self.prompts.values()]).expand(len(x), -1, -1)
        tokens, places = torch.cat([*parts, own.to(parts[0].dtype)], 1), parts[0].shape[1]
        maps = []
        for blocks in stages.blocks[stages.stem :]:
            for block in blocks:
                tokens = block(tokens)
            prompts = tokens[:, -own.shape[1] :].unflatten(1, (len(self.prompts), -1)).mean(2)
            maps.append((tokens[:, :places], prompts, grid))
        return maps, fine

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head and its convolutions; what all tasks reach belongs to a task that is alone."""
        own = [self.heads[task]]
        if task in self.dense:
            own.append(self.mixes[task])
            if len(self.dense) == 1:
                own += [self.readers, *([] if self.stem is None else [self.stem])]
        return [*own, self.prompts] if len(self.prompts) == 1 else own


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs), norm(outputs), nn.ReLU())


def _stages(encoder: Encoder) -> Stages:
    """Returns the stages of a plain vision transformer."""
    remedy = "task_prompter adds tokens to those of an encoder, which must be a plain vision transformer."
    try:
        stages = Stages(encoder)
    except SuiteError as error:
        raise MethodError(f"{remedy} {error}") from error
    if not (stages.plain or stages.stem):
        found = type(getattr(encoder.trunk, "model", encoder.trunk)).__name__
        raise MethodError(f"{remedy} Found {found}. Choose `model.encoder` among vit_*, deit_* and stem_vit_tiny.")
    return stages
