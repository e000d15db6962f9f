"""The blocks of an encoder with sparse experts, which run for the samples of several tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from mtlbench.errors import MethodError, SuiteError, unknown_name
from mtlbench.networks.blocks import per_task, seeded
from mtlbench.networks.experts import ExpertAttention, ExpertLayer, ExpertMlp, LayerStatistics, TaskRouter
from mtlbench.networks.experts.low_rank import LowRankExperts
from mtlbench.networks.experts.mlp import INITS, two_layers
from mtlbench.networks.experts.routing import AdaptiveRouter, JointRouter, TaskEmbedding
from mtlbench.networks.family import InputEncoder
from mtlbench.networks.recompute import recomputed

PLACES = {
    "every": lambda depth: range(depth),
    "odd": lambda depth: range(1, depth, 2),
    "even": lambda depth: range(0, depth, 2),
    "none": lambda depth: range(0),
}
"""Named choices of the blocks that get experts. Blocks count from 0."""

Place = str | Sequence[int]


@dataclass(frozen=True)
class ExpertOptions:
    """Placement of experts and routing of tokens to them.

    Attributes:
        experts: MLP experts per layer, E.
        top_k: MLP experts per token, k. An expert's hidden width is that of the dense MLP divided by k, so that active
            FLOPs are equal.
        placement: Blocks with MLP experts: a key of `PLACES` or indices.
        attention_experts: Attention experts per layer; None for twice the number of heads.
        attention_top_k: Attention experts per token; None for the number of heads. An expert has width 2 · D / heads.
        attention_placement: Blocks with attention experts.
        gate: Inputs of the routers; see `TaskRouter`.
        noise: Standard deviation of the noise on the routers' logits, in training only.
        renormalise: See `TaskRouter`.
        task_tokens: Initial standard deviation of a learned vector per task that is added to every token before every
            block; 0 for no such vector.
        init: Initialisation of MLP experts: ``"random"``, or ``"split"``, ``"copy"`` or ``"scaled"`` of the encoder's
            own MLP; see `ExpertMlp.upcycle`.
        descriptions: Vectors of the tasks, for the gate ``"description"``.
        adaptive: Whether every task has a k of its own, which may change; see `AdaptiveRouter`.
        rank: Rank of low-rank experts beside the frozen MLP, see `LowRankExperts`; 0 for experts in its place.
        shared: Low-rank experts that every token uses, beside the others; see `JointRouter`.
    """

    experts: int = 8
    top_k: int = 2
    placement: Place = "odd"
    attention_experts: int | None = None
    attention_top_k: int | None = None
    attention_placement: Place = "none"
    gate: str = "token_task"
    noise: float = 0.0
    renormalise: bool | None = None
    task_tokens: float = 0.0
    init: str = "random"
    descriptions: Mapping[str, Sequence[float]] | None = None
    adaptive: bool = False
    rank: int = 0
    shared: int = 0


class ExpertTrunk(nn.Module, ABC):
    """Runs the blocks of an encoder, some of them with experts.

    `begin` runs the blocks that do not depend on the task once. `finish` runs the others on G · B rows, the samples of
    G tasks one task after the other.

    Attributes:
        layers: Sparse layers by name, ``block<i>.attention`` or ``block<i>.mlp``, in the order of the forward pass.
        aware: Whether features depend on the task.
        recomputes: Whether blocks recompute their activations in the backward pass.
    """

    recomputes = False

    def __init__(self, encoder: InputEncoder, width: int, tasks: Sequence[str], options: ExpertOptions) -> None:
        """Replaces attention and MLPs of the encoder's blocks.

        Args:
            encoder: Encoder with blocks.
            width: Features D of a token.
            tasks: Names of all tasks.
            options: Placement and routing.

        Raises:
            MethodError: A value is outside its range.
        """
        super().__init__()
        self.encoder: Any = encoder
        blocks = self.blocks
        if not 0 <= options.task_tokens < float("inf"):
            raise MethodError(f"task_tokens, a standard deviation, must be >= 0. Found {options.task_tokens}.")
        marked = tasks if options.task_tokens else ()
        self.embeddings = per_task("task tokens", marked, lambda _: TaskEmbedding(width, options.task_tokens))
        attention = blocks_of("attention_placement", options.attention_placement, len(blocks))
        mlps = blocks_of("placement", options.placement, len(blocks))
        if not attention and not mlps and not options.task_tokens:
            raise MethodError("At least one block must get experts. Set `placement` or `attention_placement`.")
        for index in attention:
            with seeded(f"block{index}.attention"):
                blocks[index].attn = _attention_layer(getattr(blocks[index], "attn", None), tasks, options)
        for index in mlps:
            with seeded(f"block{index}.mlp"):
                blocks[index].mlp = _mlp_layer(blocks[index].mlp, tasks, options)
        # Blocks before the first sparse one are common to all tasks, unless a task's vector is added to every block.
        self.aware = options.task_tokens > 0 or options.gate != "agnostic"
        self.first = 0 if options.task_tokens else min((*attention, *mlps))
        self.layers = dict(_named_layers(blocks))

    @property
    def blocks(self) -> Any:
        """The encoder's blocks."""
        return self.encoder.blocks

    @abstractmethod
    def begin(self, inputs: Any) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Runs the blocks that do not depend on the task.

        Args:
            inputs: As the encoder takes them.

        Returns:
            Tokens (B, N, D), the features so far, and which tokens there are, bool (B, N); None if all.
        """

    @abstractmethod
    def features(self, x: Tensor, index: int, present: Any = None) -> list[Tensor]:
        """Returns what the neck reads of the tokens (R, N, D) after block ``index``: one feature or none."""

    def finish(
        self, x: Tensor, tasks: Sequence[str], present: Tensor | None = None
    ) -> tuple[list[Tensor], dict[str, LayerStatistics]]:
        """Runs the remaining blocks for the samples of several tasks.

        Args:
            x: Tokens (B, N, D) of `begin`.
            tasks: Names of the G tasks.
            present: Which tokens there are, as `begin` returns it.

        Returns:
            The remaining features, of G · B rows each, and the statistics of every sparse layer by name.
        """
        statistics: dict[str, LayerStatistics] = {}
        x = x.unsqueeze(0).expand(len(tasks), -1, -1, -1).flatten(0, 1)
        if present is not None:
            present = present.repeat(len(tasks), 1)
        _, found = self.run(x, range(self.first, len(self.blocks)), tasks, statistics, present)
        return found, statistics

    def run(
        self,
        x: Tensor,
        indices: range,
        tasks: Sequence[str],
        statistics: dict[str, LayerStatistics],
        present: Any = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs some blocks; returns the tokens after them, and what the neck reads of these blocks."""
        found = []
        for index in indices:
            if self.embeddings:
                x = self._add_task_tokens(x, tasks)
            x = self._run_block(index, x, tasks, statistics, present)
            found += self.features(x, index, present)
        return x, found

    def _run_block(
        self, index: int, x: Tensor, tasks: Sequence[str], statistics: dict[str, LayerStatistics], present: Any
    ) -> Tensor:
        if not self.recomputes:
            return self.block(index, x, tasks, statistics, present)
        own: dict[str, LayerStatistics] = {}  # The block fills it again in the backward pass.
        x = recomputed(self.block, self.blocks[index], index, x, tasks, own, present)
        statistics.update(own)
        return x

    @abstractmethod
    def block(
        self,
        index: int,
        x: Tensor,
        tasks: Sequence[str],
        statistics: dict[str, LayerStatistics],
        present: Any = None,
    ) -> Tensor:
        """Runs one block on tokens (R, N, D), and adds the statistics of its sparse layers."""

    @staticmethod
    def part(
        module: nn.Module, x: Tensor, tasks: Sequence[str], name: str, statistics: dict[str, LayerStatistics]
    ) -> Tensor:
        """Runs a part of a block, which may be sparse."""
        if not isinstance(module, ExpertLayer):
            return module(x)
        x, statistics[name] = module(x, tasks)
        return x

    def _add_task_tokens(self, x: Tensor, tasks: Sequence[str]) -> Tensor:
        """Adds every task's vector to the tokens of its samples."""
        table: Any = self.embeddings
        vectors = torch.stack([table[task].vector for task in tasks]).to(x.dtype)  # (G, D)
        return (x.unflatten(0, (len(tasks), -1)) + vectors[:, None, None]).flatten(0, 1)


def blocks_of(key: str, place: Place, depth: int) -> list[int]:
    """Returns the indices of the blocks that get experts.

    Args:
        key: Name of the argument, for errors.
        place: A key of `PLACES`, or indices.
        depth: Blocks of the encoder.

    Raises:
        MethodError: The name is unknown, or an index is outside 0..depth - 1 or occurs twice.
    """
    if isinstance(place, str):
        if place not in PLACES:
            raise MethodError(unknown_name(key, place, PLACES) + " Or give a list of block indices.")
        return list(PLACES[place](depth))
    indices = list(place)
    if len(set(indices)) < len(indices) or not all(0 <= i < depth for i in indices):
        raise MethodError(
            f"{key} must choose from the encoder's {depth} blocks (0..{depth - 1}), each at most once. Found {indices}."
        )
    return indices


def _attention_layer(attention: Any, tasks: Sequence[str], options: ExpertOptions) -> ExpertLayer:
    if type(attention) is not Attention or not isinstance(attention.q_norm, nn.Identity):
        raise SuiteError(
            "Attention experts replace plain multi-head attention without normalised queries. Found "
            f"{type(attention).__name__}. Choose another `model.encoder`, for example 'vit_tiny_patch16_224'."
        )
    width, heads = attention.qkv.in_features, attention.num_heads
    experts = options.attention_experts or 2 * heads
    router = _router(width, experts, options.attention_top_k or heads, tasks, options)
    with seeded("experts"):
        attention_experts = ExpertAttention(width, 2 * width // heads, experts)
    return ExpertLayer(router, attention_experts, len(tasks))


def _mlp_layer(mlp: nn.Module, tasks: Sequence[str], options: ExpertOptions) -> ExpertLayer:
    if options.init not in INITS:
        raise MethodError(unknown_name("start", options.init, INITS))
    first, second = two_layers(mlp)
    if options.rank:
        with seeded("experts"):
            low = LowRankExperts(mlp, first.in_features, options.rank, options.experts + options.shared)
        shape = (first.in_features, options.experts, options.top_k, options.gate)
        joint = JointRouter(*shape, tasks, shared=options.shared, noise=options.noise)
        return ExpertLayer(joint, low, len(tasks))
    width, hidden = first.in_features, second.in_features
    with seeded("experts"):
        each = hidden if options.init in ("copy", "scaled") else max(1, hidden // options.top_k)
        experts = ExpertMlp(width, each, options.experts, gated=first.out_features > hidden)
    if options.init != "random":
        experts.upcycle(mlp, options.init, options.top_k)
    router = _router(width, options.experts, options.top_k, tasks, _with_raw_gates(options))
    if options.init == "scaled":
        router.even()
    return ExpertLayer(router, experts, len(tasks))


def _with_raw_gates(options: ExpertOptions) -> ExpertOptions:
    """Returns options whose gates are raw if experts are scaled copies.

    Raises:
        MethodError: The options ask for renormalised gates.
    """
    if options.init != "scaled":
        return options
    if options.renormalise:
        raise MethodError(
            "start 'scaled' needs raw gates: renormalised ones would multiply the network's output. Found renormalise "
            "true. Leave it out, or choose start: copy."
        )
    return replace(options, renormalise=False)


def _router(width: int, experts: int, top_k: int, tasks: Sequence[str], options: ExpertOptions) -> TaskRouter:
    kind = AdaptiveRouter if options.adaptive else TaskRouter
    return kind(
        width,
        experts,
        top_k,
        options.gate,
        tasks,
        noise=options.noise,
        renormalise=options.renormalise,
        descriptions=options.descriptions,
    )


def _named_layers(blocks: Any) -> Iterator[tuple[str, ExpertLayer]]:
    for index, block in enumerate(blocks):
        for name, module in (("attention", getattr(block, "attn", None)), ("mlp", block.mlp)):
            if isinstance(module, ExpertLayer):
                yield f"block{index}.{name}", module
