"""DiSparse: prunes a shared network where all tasks agree, each judging its own importance."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mtlbench import distributed, registry
from mtlbench.balancing.losses import reduce_losses
from mtlbench.data import Batch
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.forward import label_counts, loss_sums, scales
from mtlbench.method.lookahead import moved
from mtlbench.networks import pruning
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.flops import counting
from mtlbench.networks.pruning import PrunedNetwork
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec
from mtlbench.seeding import seed_of

MODES = ("static", "pretrained", "dynamic")


class DiSparse(MTLMethod):
    """DiSparse: disentangled sparsification of multi-task networks (https://arxiv.org/abs/2206.04662, CVPR 2022).

    Rule: each task i scores the weights of the trunk and of its own head by L_i alone and keeps a share of the best. A
    weight of the trunk is pruned only if no task keeps it; heads follow their own task. The share is the one at which
    the whole network has the wanted density. Pruned weights stay 0.

    Symbols: the scores of ``static``, before training, are Σ_b |w ∂L_i/∂w| at Xavier weights drawn for it; those of
    ``pretrained``, after a run of `uniform`, Σ_b |∂L_i/∂w| · w²; b are batches. ``dynamic`` starts from random masks
    with layers of Erdős-Rényi density. At step t, every ``interval`` steps until e = ``until`` times all steps, the
    share (1 + cos(π t / e)) / 4 of each layer's kept weights, the smallest, is pruned, and as many weights grow where
    some task has the largest |∂L_i/∂w|.

    Args:
        sparsity: Share of the weights of convolutions and linear layers that are 0, 0 <= sparsity < 1.
        mode: When and how weights are chosen. ``"pretrained"`` trains the dense network first, in a run of its own.
        batches: Batches for the scores, the paper's 50; fewer if the run has fewer steps.
        interval: Steps between two changes of dynamic masks; the paper's 50 for NYU Depth V2.
        until: Share of the steps after which dynamic masks stay; the paper's 15 000 of 20 000 steps.

    Cost: before the first step, one forward and T backward passes per batch for the scores; dynamic, as many at each
    change. The training FLOPs count them. Training is dense arithmetic on sparse weights: time and FLOPs of a step are
    those of `uniform`. The summary holds what the sparse network would take: ``stored_bytes`` and ``flops`` of one
    image in the pruned layers.

    Differences from the official code: the share kept is found exactly instead of being tuned per data set, and
    ``pretrained`` scores by the Taskonomy rule everywhere. Rankings are per task, which makes a normalisation of scores
    unnecessary. Masked gradients are 0 before any balancer sees them. Biases, norms and embeddings are kept.
    A task that arrives later (scenario `incremental`) keeps the masks of the trunk, and its head is whole.

    Example:
        >>> import torch
        >>> from mtlbench.networks.pruning import needed_ratios
        >>> one, two = torch.tensor([0.9, 0.5, 0.1, 0.2]), torch.tensor([0.1, 0.2, 0.8, 0.6])
        >>> none = torch.zeros(0)
        >>> needed_ratios([one, two], [none, none])[0] <= 0.5  # tasks keep half each, none of it in common
        tensor([True, True, True, True])
    """

    VERSION = 2  # 2: training FLOPs count the scores.
    TAXONOMY = "architectures/learned"
    SEARCH: ClassVar[dict[str, Any]] = {"mode": list(MODES)}

    network: PrunedNetwork
    ready: Tensor
    keep_ratio: Tensor
    overlap: Tensor

    def __init__(
        self,
        spec: MethodSpec,
        *,
        sparsity: float = 0.7,
        mode: str = "static",
        batches: int = 50,
        interval: int = 50,
        until: float = 0.75,
    ) -> None:
        super().__init__(spec)
        if not 0 <= sparsity < 1:
            raise MethodError(
                "disparse: sparsity, the share of weights that are 0, must be at least 0 and below 1. Found "
                f"{sparsity}. The paper has 0.3 to 0.9."
            )
        if mode not in MODES:
            raise MethodError("disparse: " + unknown_name("mode", mode, MODES))
        if batches < 1 or interval < 1 or not 0 <= until <= 1:
            raise MethodError(
                "disparse: batches and interval must be at least 1, and until must lie in 0..1. Found "
                f"{batches}, {interval} and {until}. The defaults are 50, 50 and 0.75."
            )
        self.sparsity, self.mode, self.batches, self.interval, self.until = sparsity, mode, batches, interval, until
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.register_buffer("keep_ratio", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("overlap", torch.full((len(self.tasks),) * 2, math.nan, dtype=torch.float64))
        self._prepared = 0
        self._whole = False

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the run; in the mode ``pretrained``, the dense run whose weights it starts from before it."""
        if spec.method["arguments"]["mode"] == "pretrained":
            dense = spec.with_method(registry.record("uniform"))
            yield [dense]
            spec = replace(spec, start={"run": dense.run_id, "hash": dense.hash, "related": None, "freeze": False})
        yield [spec]
        return dict.fromkeys(spec.tasks, spec.run_id)

    def build_network(self) -> MTLNetwork:
        """Returns the dense network with masks."""
        return PrunedNetwork(self.tasks, **self.spec.model)

    # ---- training --------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Chooses the masks, unless a checkpoint had them, and keeps gradients within them."""
        super().on_train_start()
        if not self.ready:
            # Weights of a pruned run bring their masks, which stay. A new head is whole.
            if self.sparsity and self.network.density() == 1:
                if self.mode == "dynamic":
                    self._draw_masks()
                else:
                    with counting(self.network) as counter:
                        self._choose_masks()
                    self._prepared = counter.flops
            self.ready.fill_(True)
        self.network.prune()
        for name in self.network.prunable:
            self.network.get_parameter(name).register_hook(lambda gradient, name=name: self._masked(gradient, name))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, sets pruned weights to 0 again, and changes dynamic masks when it is time."""
        super().optimizer_step(*args, **kwargs)
        self.network.prune()
        if self._changes(self._state.step):
            self._change_masks(self._state.step)

    def preparation_flops(self) -> int:
        """Returns the FLOPs of the passes for the scores."""
        return self._prepared

    def phase(self, step: int) -> str:
        """Returns the kind of a step: those that change masks take further passes."""
        return f"{super().phase(step)} and masks" if self._changes(step) else super().phase(step)

    def summary(self) -> dict[str, Any]:
        """Returns the density, what tasks agree on, and what the sparse network takes."""
        dense, sparse = self.network.products(self._image(), list(self.tasks))
        ratio = float(self.keep_ratio)
        return {
            **super().summary(),
            "density": self.network.density(),
            "keep_ratio": None if math.isnan(ratio) else ratio,
            "overlap": [[None if math.isnan(v) else v for v in row] for row in self.overlap.tolist()],
            "stored_bytes": self.network.stored_bytes(),
            "dense_bytes": 4 * sum(p.numel() for p in self.network.parameters()),
            "flops": {"dense": dense, "sparse": sparse},
        }

    def _image(self) -> Tensor:
        height, width = self.spec.model["image_size"]
        return torch.zeros(1, 3, height, width, dtype=torch.uint8, device=self.device)

    def _masked(self, gradient: Tensor, name: str) -> Tensor:
        return gradient if self._whole else gradient * self.network.mask(name)

    @contextmanager
    def _unmasked(self) -> Iterator[None]:
        """Lets gradients of pruned weights through, to see where weights should grow."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False

    # ---- static and pretrained -------------------------------------------------------------------------------------

    def _choose_masks(self) -> None:
        """Writes the masks that the scores of all tasks give."""
        network, names = self.network, list(self.tasks)
        trunk, heads = self._scores()
        needed, own = pruning.needed_ratios(trunk, heads)
        ratio = pruning.ratio_for(torch.cat([needed, *own]), 1 - self.sparsity)
        self.keep_ratio.fill_(ratio)
        self.overlap.copy_(pruning.overlaps(trunk, heads, ratio))
        for ratios, of in ((needed, network.trunk()), *((r, network.of(n)) for r, n in zip(own, names, strict=True))):
            sizes = [network.mask(name).numel() for name in of]
            for name, part in zip(of, ratios.split(sizes), strict=True):
                network.mask(name).copy_((part <= ratio).view_as(network.mask(name)))
        self._check_equal()

    def _scores(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the scores of the trunk (S,) and of the own head (H_i,) per task, equal on all ranks."""
        scored, names = copy.deepcopy(self.network).train(), list(self.tasks)
        trunk = scored.trunk()
        wanted = {task: [scored.get_parameter(n) for n in (*trunk, *scored.of(task))] for task in names}
        totals = {task: [torch.zeros_like(p) for p in parameters] for task, parameters in wanted.items()}
        seen = dict.fromkeys(names, False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("disparse", self.spec.seed))
            if self.mode == "static":
                for name in scored.prunable:
                    weight = scored.get_parameter(name)
                    nn.init.xavier_normal_(weight)
            trainer: Any = self.trainer
            for batch in itertools.islice(trainer.datamodule.train_dataloader(), self.batches):
                batch = trainer.strategy.batch_to_device(batch)
                for task, gradients in self._gradients(scored, batch, wanted).items():
                    seen[task] = True
                    for total, gradient in zip(totals[task], gradients, strict=True):
                        total += gradient.abs()
        unseen = [task for task, known in seen.items() if not known]
        if unseen:
            raise MethodError(
                f"disparse: every task scores weights by its labels. {', '.join(unseen)} had none in the first "
                f"{self.batches} batches. Increase batches."
            )
        power = 1 if self.mode == "static" else 2
        flat = {
            task: [(total * p.detach().abs() ** power).flatten() for total, p in zip(totals[task], of, strict=True)]
            for task, of in wanted.items()
        }
        return (
            [torch.cat(flat[task][: len(trunk)]) for task in names],
            [torch.cat(flat[task][len(trunk) :]) for task in names],
        )

    def _gradients(
        self, network: MTLNetwork, batch: Batch, wanted: Mapping[str, Sequence[nn.Parameter]]
    ) -> dict[str, list[Tensor]]:
        """Returns the gradient of each task's mean loss over all ranks, of the tasks that have a label in a batch."""
        names, trainer = list(self.tasks), cast(Any, self.trainer)
        found = {}
        with torch.enable_grad():
            with trainer.precision_plugin.train_step_context():
                sums = loss_sums(network, self.tasks, batch, names)
            reduced = reduce_losses(torch.stack(sums), label_counts(self.tasks, batch), scales(self.tasks))
            for i in reduced.active:
                parameters = wanted[names[i]]
                loss = sums[i] * reduced.factors[i] * distributed.world_size()
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                whole = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
                found[names[i]] = distributed.mean_row(whole)
        return found

    def _check_equal(self) -> None:
        """Refuses masks that differ between ranks, which would let their weights drift apart."""
        digest = torch.zeros((), dtype=torch.float64, device=self.device)
        for name in self.network.prunable:
            mask = self.network.mask(name).flatten()
            digest += (mask * torch.arange(1, len(mask) + 1, device=mask.device)).sum()
        if not torch.equal(distributed.any_rank(digest.clone()), -distributed.any_rank(-digest)):
            raise MethodError("disparse: masks must be equal on all ranks, and they differ. Report this as an error.")

    # ---- dynamic ---------------------------------------------------------------------------------------------------

    def _draw_masks(self) -> None:
        """Draws random masks, equal on all ranks."""
        network, generator = self.network, torch.Generator().manual_seed(seed_of("disparse", self.spec.seed))
        shapes = [tuple(network.mask(name).shape) for name in network.prunable]
        for name, density in zip(network.prunable, pruning.layer_densities(shapes, 1 - self.sparsity), strict=True):
            mask = network.mask(name)
            order = torch.randperm(mask.numel(), generator=generator)
            kept = torch.zeros(mask.numel(), dtype=torch.bool)
            kept[order[: round(density * mask.numel())]] = True
            mask.copy_(kept.view_as(mask))

    def _changes(self, step: int) -> bool:
        """Returns whether dynamic masks change after a step, counted from 0."""
        return self.mode == "dynamic" and (step + 1) % self.interval == 0 and step + 1 < self.until * self.spec.steps

    @torch.no_grad()
    def _change_masks(self, step: int) -> None:
        """Prunes the smallest weights of every layer and lets as many grow where tasks have the largest gradients."""
        network = self.network
        share = (1 + math.cos(math.pi * (step + 1) / max(1.0, self.until * self.spec.steps))) / 4
        counts = {}
        for name in network.prunable:
            weight, mask = network.get_parameter(name), network.mask(name)
            counts[name] = int(share * int(mask.sum()))
            order = pruning.places(torch.where(mask, weight.abs(), -1.0).flatten())
            mask.copy_((order <= int(mask.sum()) - counts[name]).view_as(mask))
        network.prune()
        trunk = network.trunk()
        wanted = {task: [network.get_parameter(n) for n in (*trunk, *network.of(task))] for task in self.tasks}
        with self._unmasked(), moved(network, [], []):
            gradients = self._gradients(network, self._state.batch, wanted)
        for name in network.prunable:
            owners = [t for t in gradients if name in trunk or name in network.of(t)]
            tables = [gradients[t][(*trunk, *network.of(t)).index(name)] for t in owners]
            self._grow(name, tables, counts[name])
        self._check_equal()

    def _grow(self, name: str, gradients: Sequence[Tensor], count: int) -> None:
        """Unmasks ``count`` weights of a layer, those that some task ranks highest."""
        mask = self.network.mask(name).view(-1)
        # Without a label of the head's task, what was pruned last comes first again, in the order of the weights.
        tables = [g.abs().flatten() for g in gradients] or [torch.zeros(len(mask), device=mask.device)]
        best = torch.stack([pruning.places(torch.where(mask, -1.0, table)) for table in tables]).min(0).values
        order = torch.where(mask, len(mask) + 1, best).argsort(stable=True)
        mask[order[:count]] = True
