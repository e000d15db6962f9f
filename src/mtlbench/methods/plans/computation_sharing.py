"""Computation sharing: sub-tasks are sparse changes of a base task's weights and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlbench import registry
from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.optimisers import set_apart
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.sharing.costs import attention_macs, decoder_macs, dense_macs, storage
from mtlbench.networks.sharing.curve import ThresholdCurve
from mtlbench.networks.sharing.network import SharingNetwork, activation_distance
from mtlbench.runs import keys
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec
from mtlbench.seeding import seed_of
from mtlbench.tasks.inputs import inputs_of


class ComputationSharing(MTLMethod):
    """Efficient computation sharing for multi-task visual scene understanding (https://arxiv.org/abs/2303.09663, 2023).

    Rule: One task, the base, trains alone. Every other task i then trains alone on W_i = W_b + z z' Δ_i with the base's
    encoder weights W_b frozen, in three phases. Pruning: gates z, z' are drawn, and the loss is L_i + λ Σ P(z > 0) / n.
    Fine-tuning: gates are fixed at their values without noise, 0 or 1. Sparsifying: the loss is L_i + c times the
    mean of |a_i - a_b| over the activations of both encoders on the same image. In evaluation a_i is a_b wherever they
    differ by less than θ; what does not differ need not be computed.

    Symbols: Δ_i changes, n entries; z a hard-concrete gate per entry with logit α, z' one per tensor; a activations of
    embedding, norms, linear layers, attention and GELU of every block.

    Args:
        base: Name of the base task; "" for ``semseg``, or the first task where there is none. The paper's is semseg.
        sparsity: λ, >= 0. The paper adds 5e-8 per gate (1.25e-8 for edges and saliency), which is 4.3 (1.1) times the
            mean over the 86 million gates of a ViT-B.
        gate_lr: Learning rate of α; the paper's is 0.1, with AdamW. The suite's schedule applies to it.
        closeness: c, >= 0. The paper adds 2.5e-10 times the plain sum (edges 5e-10, normals 1.25e-10), which is 0.17
            (0.33, 0.08) times the mean for five images of 512 pixels and a ViT-B.
        prune: Share of the steps in which gates are learned, in [0, 1]; 120,000 iterations in the paper.
        sparsify: Share of the last steps in which activations are drawn to the base's, in [0, 1 - prune]; 250 epochs
            in the paper.
        threshold: θ >= 0 of the run's own scores; the paper's is 0.15.
        thresholds: θ of further evaluations: the curve of accuracy against computation, in ``summary``; θ itself is
            always part of it.
        layers: Factors >= 0 on θ, by layer: ``block3.qkv``, else ``qkv`` in all blocks, else ``block3``. None for the
            same θ everywhere, as in the paper.

    Differences from the official code: the kept entries follow from α and not from one draw; the mean, not the sum, of
    activations, so that c does not depend on batch and resolution; gradients of the gates by autograd; clipping acts on
    Δ and α; one schedule over all phases; θ is also applied to norms, attention and GELU, whose outputs linear layers
    read; decay only of Δ's matrices. The decoder is trained in all phases. All sub-tasks of a row have one λ and one c.
    The NYU variant, which uses the activations of a neighbouring frame instead, is not available. Dropout and drop path
    of the encoder are off.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth
        >>> model = {"encoder": "test_vit", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = ComputationSharing(MethodSpec({"depth": Depth("depth")}, model), threshold=0.1)
        >>> method.configure_model()
        >>> method.eval()(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["depth"].shape
        torch.Size([2, 1, 32, 48])
    """

    TAXONOMY = "architectures/learned"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    PHASES: ClassVar[bool] = True
    SEARCH: ClassVar[dict[str, Any]] = {"sparsity": [1.1, 4.3, 17.0], "closeness": [0.05, 0.17, 0.5]}

    network: SharingNetwork

    def __init__(
        self,
        spec: MethodSpec,
        *,
        base: str = "",
        sparsity: float = 4.3,
        gate_lr: float = 0.1,
        closeness: float = 0.17,
        prune: float = 0.5,
        sparsify: float = 0.25,
        threshold: float = 0.15,
        thresholds: Sequence[float] = (0.0, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0),
        layers: dict[str, float] | None = None,
    ) -> None:
        """Takes and checks the hyper-parameters."""
        super().__init__(spec)
        _check_not_negative(sparsity=sparsity, gate_lr=gate_lr, closeness=closeness)
        _check_layers(layers or {})
        if not (0 <= prune <= 1 and 0 <= sparsify <= 1 and prune + sparsify <= 1):
            raise MethodError(
                "computation_sharing: prune and sparsify, shares of the steps, must be in [0, 1] and sum to at most 1. "
                f"Found {prune} and {sparsify}. Reduce one of them."
            )
        if not all(theta >= 0 for theta in (threshold, *thresholds)):
            raise MethodError(f"computation_sharing: thresholds must be >= 0. Found {threshold}, {list(thresholds)}.")
        self.sparsity, self.gate_lr, self.closeness = sparsity, gate_lr, closeness
        self.threshold, self.layers = threshold, dict(layers or {})
        self.prune_until, self.sparsify_from = round(prune * spec.steps), spec.steps - round(sparsify * spec.steps)
        self.curve = ThresholdCurve(self.tasks, sorted({*thresholds, threshold}))
        self._curves: list[list[dict[str, Any]]] = []
        self._based = False

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the single-task run of the base task, then one run per other task."""
        base = _base_of(list(spec.tasks), spec.method["arguments"].get("base", ""))
        single = spec.with_method(registry.record("single_task")).with_tasks(base)
        yield [single]
        runs = {task: spec.with_tasks(task).with_sources(base=single) for task in spec.tasks if task != base}
        if runs:
            yield list(runs.values())
        return {task: runs.get(task, single).run_id for task in spec.tasks}

    @classmethod
    def roles(cls, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns the base task's network as the one source."""
        return {"base": (_base_of(tasks, ""),)}

    def build_network(self) -> MTLNetwork:
        """Returns the network with a frozen encoder and its changes."""
        network = SharingNetwork(self.tasks, threshold=self.threshold, **self.spec.model)
        network.encoder.set_factors(self.layers)
        return network

    def use_sources(self, networks: Mapping[str, MTLNetwork]) -> None:
        """Takes the encoder of the base."""
        self.network.take(networks["base"])
        self._based = True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the usual groups, and one for the gates."""
        return set_apart(super().parameter_groups(), self.network.deltas.gates(), lr=self.gate_lr, weight_decay=0.0)

    def on_train_start(self) -> None:
        """Raises a MethodError if the run has no base."""
        super().on_train_start()
        if not self._based:
            raise MethodError(
                "computation_sharing needs the network of a trained base task. This run has none. Start it with "
                "`mtlbench bench`, which follows the method's plan, or call use_sources."
            )

    def phase(self, step: int) -> str:
        """Returns pruning, tuning or sparsifying, of which the last also runs the base."""
        return "pruning" if step < self.prune_until else "tuning" if step < self.sparsify_from else "sparsifying"

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draws this step's gates, the same on all ranks and micro-batches, or ends pruning."""
        step, deltas = self.trainer.global_step, self.network.deltas
        if step == self.prune_until:
            deltas.settle()
        # The seed depends on the step only, so that ranks, micro-batches and resumed runs draw the same gates.
        generator = torch.Generator(self.device).manual_seed(seed_of("gates", self.spec.seed, step))
        deltas.draw(generator if step < self.prune_until else None)

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss of the phase: the price of open gates, none, or the distance to the base's activations."""
        # Called once per stream, so each stream contributes its share of one loss.
        share = 1 / len(streams(self._state.batch))
        if self._state.step < self.prune_until:
            return {"open gates": share * self.sparsity * self.network.deltas.openness()}
        if self._state.step < self.sparsify_from:
            return {}
        base = self.network.base(inputs_of(batch))
        return {"distance": share * self.closeness * activation_distance(outputs.statistics["trace"], base)}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Removes the gradients of settled gates, because momentum would move them even with zero gradients."""
        super().on_before_optimizer_step(optimizer)
        if self._state.step >= self.prune_until:
            for gate in self.network.deltas.gates():
                gate.grad = None

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the metrics, and to those of every threshold."""
        super().test_step(batch, batch_idx)
        for stream in streams(batch):
            self.curve.update(self.network, inputs_of(stream), stream["targets"])

    def scores(self, *, final: bool) -> dict[str, dict[str, float]]:
        """Returns the scores at the run's own threshold, and stores the curve of a tested split."""
        found = super().scores(final=final)
        if final:
            self._curves.append(self.curve.compute(self.network))
        return found

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns the share of weights that are changed if gates have no noise."""
        kept, entries = self.network.deltas.kept(), sum(v.numel() for v in self.network.deltas.values())
        return {keys.SHARED.key(): torch.stack(list(kept.values())).sum() / entries}

    def summary(self) -> dict[str, Any]:
        """Returns the curves on the reported and on the validation split, and what is stored; see `ThresholdCurve`."""
        network, stored = self.network, storage(self.network)
        attention, decoder = attention_macs(network.encoder), decoder_macs(network)
        return {
            "sharing": {
                "threshold": self.threshold,
                "curves": dict(zip(("scores", "validation"), self._curves, strict=False)),
                "flops": {
                    "dense": 2 * (dense_macs(network.encoder) + attention + decoder),
                    "attention": 2 * attention,
                    "decoder": 2 * decoder,
                },
                "storage": {
                    "kept": stored.kept,
                    "entries": stored.entries,
                    "index_bits": stored.index_bits,
                    "decoder": stored.decoder,
                    "parameters": stored.parameters,
                },
            }
        }


def _base_of(tasks: Sequence[str], named: str) -> str:
    if named and named not in tasks:
        raise MethodError("computation_sharing: " + unknown_name("base task", named, tasks))
    return named or ("semseg" if "semseg" in tasks else tasks[0])


def _check_layers(layers: Any) -> None:
    given = list(layers.values()) if isinstance(layers, Mapping) else [None]
    if not all(isinstance(value, (int, float)) and 0 <= value < float("inf") for value in given):
        raise MethodError(f"computation_sharing: layers must map layers to finite factors >= 0. Found {layers!r}.")


def _check_not_negative(**values: float) -> None:
    wrong = {name: value for name, value in values.items() if not 0 <= value < float("inf")}
    if wrong:
        raise MethodError(f"computation_sharing: {', '.join(values)} must be finite and >= 0. Found {wrong}.")
