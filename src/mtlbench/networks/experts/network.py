"""The dense network with experts in its vision transformer, which runs tasks together or one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.experts import ExpertLayer, LayerStatistics, TaskRouter
from mtlbench.networks.experts.perceptron import ExpertPerceptron
from mtlbench.networks.experts.transformer import ExpertTransformer
from mtlbench.networks.experts.trunk import ExpertOptions, ExpertTrunk
from mtlbench.networks.experts.vit import ExpertViT
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.networks.text_encoder import TextEncoder
from mtlbench.networks.vectors import VectorEncoder
from mtlbench.tasks import Task

TOKENS_PER_PASS = 4096
"""Target number of tokens per pass on a CPU. More do not fit its caches, so running fewer tasks at a time is faster."""

TRUNKS: Mapping[type, type[Any]] = {VectorEncoder: ExpertPerceptron, TextEncoder: ExpertTransformer}
"""Kind of encoder -> its blocks with experts; `ExpertViT` for others."""


class ExpertNetwork(MTLNetwork):
    """Encoder with experts, neck and heads. If routing depends on the task, so do the features of later blocks.

    Blocks that do not depend on the task run once. In the other blocks the images of several tasks run together as
    T · B rows, so that one product per expert serves all tasks. With `separate`, tasks run one after the other with
    equal results. A rule that needs the gradient of each task would otherwise process T · B rows T times.

    `Outputs.statistics["experts"]` holds `LayerStatistics` by name of the layer, with rows in the order of the
    requested tasks.

    Attributes:
        layers: Every sparse layer by name; see `ExpertViT`.
        separate: Whether tasks run one by one.
    """

    def __init__(self, tasks: Mapping[str, Task], options: ExpertOptions, **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            options: Placement of experts and routing.
            model: The keys of a suite's ``model`` section, see `Model`. The encoder is a plain vision transformer, by
                default timm's ``vit_tiny_patch16_224``, a perceptron of residual blocks, or a transformer of texts.

        Raises:
            SuiteError: The encoder has no blocks that experts fit into, or cannot be built.
            MethodError: An option is outside its range.
        """
        super().__init__()
        described = Model(**{"encoder": "vit_tiny_patch16_224", **model})
        # The neck is drawn right after the encoder, as in `DenseNetwork`: both start from its weights.
        parts = family_of(described.encoder).parts(tasks, described)
        trunk = next((found for kind, found in TRUNKS.items() if isinstance(parts.encoder, kind)), ExpertViT)
        self.encoder: ExpertTrunk = trunk(parts.encoder, list(tasks), options)
        self.neck, self.heads = parts.neck, parts.heads
        self.separate = False
        # Tasks with different numbers of experts per token cannot share one product.
        self._apart = options.adaptive

    @property
    def layers(self) -> dict[str, ExpertLayer]:
        """Sparse layers by name."""
        return self.encoder.layers

    @property
    def routers(self) -> list[TaskRouter]:
        """The router of every sparse layer."""
        return [layer.router for layer in self.layers.values()]

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        tokens, early, present = self.encoder.begin(inputs)
        if not self.encoder.aware:
            return self._alike(tokens, early, tasks, present)
        predictions: dict[str, Tensor] = {}
        found: list[dict[str, LayerStatistics]] = []
        for group in self._groups(tasks, tokens):
            late, statistics = self.encoder.finish(tokens, group, present)
            # Early maps are common to the tasks of the group and are repeated as views.
            repeated = [m.unsqueeze(0).expand(len(group), *m.shape).flatten(0, 1) for m in early]
            features = self.neck([*repeated, *late]).unflatten(0, (len(group), -1))
            predictions.update((task, self.heads[task](x)) for task, x in zip(group, features, strict=True))
            found.append(statistics)
        layers = {name: LayerStatistics.cat([part[name] for part in found]) for name in (found[0] if found else ())}
        return Outputs(predictions, statistics={"experts": layers})

    def _alike(self, tokens: Tensor, early: list[Tensor], tasks: Sequence[str], present: Tensor | None) -> Outputs:
        """Predicts tasks that share all features, with one pass for all of them."""
        late, statistics = self.encoder.finish(tokens, tasks[:1], present)
        shared = self.neck([*early, *late])
        layers = {name: LayerStatistics.cat([layer] * len(tasks)) for name, layer in statistics.items()}
        return Outputs({task: self.heads[task](shared) for task in tasks}, shared, {"experts": layers})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head, its learned vector, and its modules in every router."""
        embeddings: Any = self.encoder.embeddings
        own = [embeddings[task]] if task in embeddings else []
        return [self.heads[task], *own, *(module for router in self.routers for module in router.owned(task))]

    def recompute_encoder(self) -> None:
        """Makes every block recompute its activations in the backward pass, its choice of experts included."""
        self.encoder.recomputes = True

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the encoder without its sparse layers, whose routers are new."""
        sparse = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        return [p for p in super().encoder_parameters() if id(p) not in sparse]

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the neck's last block."""
        return [p for p in self.neck.mix.parameters() if p.requires_grad]

    def _groups(self, tasks: Sequence[str], tokens: Tensor) -> Iterator[list[str]]:
        """Yields the groups of tasks that run together."""
        size = len(tasks)
        if self.separate or self._apart:
            size = 1
        elif tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            size = max(1, TOKENS_PER_PASS // (tokens.shape[0] * tokens.shape[1]))
        for start in range(0, len(tasks), max(1, size)):
            yield list(tasks[start : start + size])
