"""`MTLMethod`, the one extension point: a LightningModule whose hooks say how tasks are trained together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtlbench.balancing import ranks
from mtlbench.balancing.base import BALANCING_HOOKS, Balancer, Context, loss_weights, overrides
from mtlbench.balancing.losses import ReducedLosses, reduce_losses
from mtlbench.balancing.surgery import Surgery, gramian_of
from mtlbench.data import Batch, seed_of
from mtlbench.errors import DivergedError, MethodError
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.noise import reseed
from mtlbench.optimisers import build_optimiser, build_schedule
from mtlbench.plan import Plan, RunSpec, one_run
from mtlbench.tasks import Task

DEFAULT_OPTIMISER = {
    "name": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "momentum": 0.9, "schedule": "constant", "warmup": 0,
    "power": 0.9,
}  # fmt: skip


@dataclass(frozen=True)
class MethodSpec:
    """What every method is given.

    Attributes:
        tasks: Tasks of the run by name; their order is the order of every (T,) tensor.
        model: Section ``model`` of the suite.
        optimiser: Section ``optimiser`` of the suite.
        steps: Optimiser steps of the run.
        steps_per_epoch: Optimiser steps in one pass over the training data.
        seed: Seed of the run.
        diagnose_every: Steps between measurements of gradient conflict; 0 for none.
    """

    tasks: Mapping[str, Task]
    model: Mapping[str, Any] = field(default_factory=dict)
    optimiser: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_OPTIMISER))
    steps: int = 1
    steps_per_epoch: int = 1
    seed: int = 0
    diagnose_every: int = 0


def streams(batch: Batch) -> list[Batch]:
    """Returns the plain batches inside a batch: one, or one per stream."""
    return list(batch["streams"].values()) if "streams" in batch else [batch]


class MTLMethod(L.LightningModule):
    """One way of training tasks together. Override the hook that you change and nothing else.

    The base trains one network on all tasks with the sum of the scaled losses. Optimisation is automatic, so
    precision, accumulation, clipping and schedules are Lightning's and hold for every method.

    Args:
        spec: Tasks, model, optimiser, schedule and seed of the run. Hyper-parameters of a subclass are further
            keyword arguments with the paper's default.

    Attributes:
        VERSION: Raise it when the same arguments give another result; it enters every run's identity.
        SEARCH: Search space per hyper-parameter, for tuning.
    """

    VERSION: ClassVar[int] = 1
    SEARCH: ClassVar[dict[str, Any]] = {}

    network: MTLNetwork
    bad_step: Tensor

    def __init__(self, spec: MethodSpec):
        super().__init__()
        self.spec = spec
        self.tasks = dict(spec.tasks)
        self.balancer = Balancer()
        self.balancer.configure(len(self.tasks))
        self.metrics = nn.ModuleDict({name: task.metric() for name, task in self.tasks.items()})
        # First step with a non-finite loss, per task; read by `check_finite`, so that no step waits for the device.
        self.register_buffer("bad_step", torch.full((len(self.tasks),), -1), persistent=False)
        self.last_gramian: Tensor | None = None
        self.last_active: tuple[int, ...] = ()
        self._reduced: ReducedLosses | None = None
        self._last_reduced: ReducedLosses | None = None

    # ---- hooks -----------------------------------------------------------------------------------------------------

    def build_network(self) -> MTLNetwork:
        """Returns the network. Default: the dense shared encoder with one head per task of the suite's model."""
        from mtlbench.networks.dense import build_dense

        return build_dense(self.tasks, self.spec.model)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Combines (A,) rank-averaged losses into a scalar; may be non-linear and may use own parameters."""
        return self.balancer.combine_losses(losses, ctx)

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns (A,) weights from the (A, A) float64 Gramian of the shared gradients."""
        return self.balancer.gradient_weights(gramian, ctx)

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Combines the (A, P) shared gradients into a direction (P,)."""
        return self.balancer.combine_gradients(jacobian, ctx)

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns further scalar losses by name; their gradient is added and never takes part in balancing."""
        return {}

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns scalar tensors by name that are recorded whenever losses are, for example the load of experts."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimiser's groups. Default: no weight decay on vectors and on balancer parameters."""
        matrices = [p for p in self.network.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in self.network.parameters() if p.requires_grad and p.ndim <= 1]
        rest = _unique(self.parameters(), {id(p) for p in (*matrices, *vectors)})
        return [{"params": matrices}, {"params": [*vectors, *rest], "weight_decay": 0.0}]

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the runs that the method needs and returns which run serves which task. Default: one run."""
        return one_run(spec)

    # ---- set-up ----------------------------------------------------------------------------------------------------

    def use_balancer(self, balancer: Balancer) -> None:
        """Sets the balancing rule.

        Raises:
            MethodError: If the class overrides a balancing hook itself.
        """
        own = [hook for hook in BALANCING_HOOKS if overrides(self, MTLMethod, hook)]
        if own:
            raise MethodError(
                f"One rule balances a run: {type(self).__name__} overrides {', '.join(own)} itself and cannot take "
                f"the balancer {type(balancer).__name__} too. Drop one of the two."
            )
        balancer.configure(len(self.tasks))
        self.balancer = balancer

    def configure_model(self) -> None:
        """Builds the network once (Lightning's hook; call it yourself outside a Trainer)."""
        if not hasattr(self, "network"):
            self.network = self.build_network()
        names = list(self.tasks)
        owned = [self.network.task_parameters(name) for name in names]
        shared = self.network.shared_parameters(names)
        rest = _unique(self.parameters(), {id(p) for group in (shared, *owned) for p in group})
        self.surgery = Surgery(shared, owned, rest)

    def configure_optimizers(self) -> Any:
        """Returns optimiser and schedule of the suite."""
        optimiser = build_optimiser(self.parameter_groups(), self.spec.optimiser)
        schedule = build_schedule(optimiser, self.spec.optimiser, self.spec.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- one step --------------------------------------------------------------------------------------------------

    def forward(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Returns the raw predictions of (B, 3, H, W) uint8 images for the named tasks, or all."""
        return self.network(image, list(tasks or self.tasks)).predictions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the value that Lightning back-propagates; `backward` may take it apart again."""
        self._batch, self._micro_index = batch, batch_idx % self.trainer.accumulate_grad_batches
        self._reseed()
        sums, regularisers = self._losses(batch)
        reduced = reduce_losses(torch.stack(sums), self._counts(batch), self._scales())
        # One tensor per task to the end: through a stack, every row's backward pass would visit all heads.
        factors = reduced.factors.unbind()
        shares = [total * factor * ranks.world_size() for total, factor in zip(sums, factors, strict=True)]
        ctx = self._context(reduced)
        self._note(reduced, ctx)
        if ctx.active and self._uses("combine_losses"):
            weights, value = loss_weights(self.combine_losses, ctx)
        else:  # The plain sum needs no derivative.
            weights, value = torch.ones_like(ctx.losses), ctx.losses.sum()
        self._rows = {i: weights[a] * shares[i] for a, i in enumerate(ctx.active)}
        own = value if self.surgery.rest.parameters else value.detach()
        self._extra = sum(regularisers.values(), own)
        # Value of the combined loss, gradient of Σ c_i L_i. Every share stays in the graph, also of absent tasks, and
        # so do balancer parameters: each takes part in the ordinary reduction of gradients, and no rank waits.
        idle = sum(shares) + sum(parameter.sum() for parameter in self.surgery.rest.parameters)
        self._total = self._extra + sum(row - row.detach() for row in self._rows.values()) + 0.0 * idle
        return self._total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Back-propagates: once and plainly, or once per task where a gradient hook is in use."""
        if not self._surgical():
            if self._diagnoses():
                self._measure_conflict()
            loss.backward(*args, **kwargs)
            return
        (factor,) = torch.autograd.grad(loss, self._total, retain_graph=True)
        self.surgery.collect(self._rows, self._extra if self._extra.requires_grad else None, factor)
        if self.trainer.precision == "16-mixed":
            flag = self.surgery.finite()
            self.surgery.fill(torch.where(flag > 0, torch.inf, 0.0))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Combines and writes gradients; removes those of parameters whose tasks are absent on all ranks."""
        ctx = self._step_context()
        if self._surgical():
            self._operate(ctx)
        absent = [i for i in range(len(self.tasks)) if i not in ctx.active]
        for i in absent:
            for parameter in self.surgery.owned[i].parameters:
                parameter.grad = None
        if not ctx.active:
            for parameter in (*self.surgery.shared.parameters, *self.surgery.rest.parameters):
                parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then lets the balancer look at the finished step; checkpoints are written later and hold both."""
        super().optimizer_step(*args, **kwargs)
        ctx = self._step_context()
        if ctx.active:
            self.balancer.after_step(ctx)
        if (self._current_step + 1) % self.spec.steps_per_epoch == 0:
            self.balancer.epoch_end()
        self._reduced = None

    @property
    def last_losses(self) -> Tensor | None:
        """(T,) unscaled mean losses of the last optimiser step over all ranks, NaN for absent tasks."""
        return None if self._last_reduced is None else self._last_reduced.means()

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the metrics of every task."""
        for stream in streams(batch):
            names = [name for name in self.tasks if name in stream["targets"]]
            for name, prediction in self.network(stream["image"], names).predictions.items():
                cast(Metric, self.metrics[name]).update(_full_precision(prediction), stream["targets"][name])

    test_step = validation_step

    def scores(self) -> dict[str, dict[str, float]]:
        """Returns and resets the metrics: ``{task: {protocol id: value}}``, over all ranks."""
        found = {}
        for name in self.tasks:
            metric = cast(Metric, self.metrics[name])
            found[name] = metric.compute()
            metric.reset()
        return found

    def check_finite(self) -> None:
        """Waits for the device and reports a task whose loss was NaN or infinite.

        Raises:
            DivergedError: Naming the task and the first such step.
        """
        steps = {name: step for name, step in zip(self.tasks, self.bad_step.tolist(), strict=True) if step >= 0}
        if steps:
            first = min(steps.values())
            names = ", ".join(name for name, step in steps.items() if step == first)
            raise DivergedError(
                f"A task's loss must stay finite. The loss of {names} was NaN or infinite at step {first}. "
                "The last good checkpoint is kept. Lower optimiser.lr, set trainer.clip, or look at the labels."
            )

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _reseed(self) -> None:
        """Makes dropout and the like a function of (seed, step, rank): resuming needs no saved generator."""
        self._current_step = self.trainer.global_step
        reseed(self._noise_seed(), self.device)

    def _noise_seed(self) -> int:
        return seed_of("step", self.spec.seed, self._current_step, self._micro_index, self.trainer.global_rank)

    def _losses(self, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns the loss sum of every task on this rank, and the regularisers."""
        sums: dict[str, Tensor] = {}
        regularisers: dict[str, Tensor] = {}
        for stream in streams(batch):
            names = [name for name in self.tasks if name in stream["targets"]]
            outputs = self.network(stream["image"], names)
            for name in names:
                prediction = _full_precision(outputs.predictions[name])
                sums[name] = self.tasks[name].loss(prediction, stream["targets"][name])
            for key, value in self.regularisation(outputs, stream).items():
                regularisers[key] = regularisers[key] + value if key in regularisers else value
        lacking = [name for name in self.tasks if name not in sums]
        if lacking:
            raise MethodError(f"Every batch must hold every task of the run (blank where unlabelled). Lacks {lacking}.")
        return [sums[name] for name in self.tasks], regularisers

    def _counts(self, batch: Batch) -> list[int]:
        return [sum(stream["counts"].get(name, 0) for stream in streams(batch)) for name in self.tasks]

    def _scales(self) -> list[float]:
        return [task.scale for task in self.tasks.values()]

    def _note(self, reduced: ReducedLosses, ctx: Context) -> None:
        """Adds up the step's losses over micro-batches, and remembers non-finite ones."""
        bad = ~reduced.totals.isfinite() & (self.bad_step < 0)
        self.bad_step.masked_fill_(bad, self._current_step)
        self._ctx, self._ctx_of = ctx, reduced
        self._reduced = reduced if self._reduced is None else self._reduced + reduced
        self._last_reduced = self._reduced

    def _step_context(self) -> Context:
        """Returns the context of the whole optimiser step: all micro-batches together."""
        whole = self._reduced is None or self._reduced is self._ctx_of
        return self._ctx if whole else self._context(self._reduced)  # type: ignore[arg-type]

    def _context(self, reduced: ReducedLosses) -> Context:
        step = self._current_step
        generator = torch.Generator().manual_seed(seed_of("method", self.spec.seed, step))

        def lookahead(change: Tensor | None) -> Tensor:
            return self._look_ahead(reduced.active, change)

        return Context(reduced.active, reduced.losses, step, step // self.spec.steps_per_epoch, generator, lookahead)

    @torch.no_grad()
    def _look_ahead(self, active: tuple[int, ...], change: Tensor | None) -> Tensor:
        """Returns the losses (A,) of the current batch with the shared parameters moved by ``change``.

        Under accumulation the batch is the last micro-batch; a task without a label in it has NaN.
        """
        shared = self.surgery.shared
        moved: list[Tensor] = [] if change is None else [*shared.parameters]
        # Other memory, not other values in the same: what the step's graph has saved stays as it was.
        kept = [(tensor, tensor.data) for tensor in (*moved, *self.network.buffers())]
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            for tensor, value in kept:
                tensor.data = value.clone()
            if change is not None:
                torch._foreach_add_([p.data for p in moved], [*shared.views(change)])
            with torch.random.fork_rng(devices=devices), self.trainer.precision_plugin.train_step_context():
                reseed(self._noise_seed(), self.device)
                sums, _ = self._losses(self._batch)
        finally:
            for tensor, value in kept:
                tensor.data = value
        reduced = reduce_losses(torch.stack(sums), self._counts(self._batch), self._scales())
        means = reduced.means()
        return (means * means.new_tensor(self._scales()))[list(active)]

    def _uses(self, hook: str) -> bool:
        return overrides(self, MTLMethod, hook) or overrides(self.balancer, Balancer, hook)

    def _surgical(self) -> bool:
        return self._uses("gradient_weights") or self._uses("combine_gradients")

    def _diagnoses(self) -> bool:
        every = self.spec.diagnose_every
        return every > 0 and len(self._rows) > 1 and self._current_step % every == 0

    def _measure_conflict(self) -> None:
        """Takes the Gramian of a method that does not need it; leaves no trace in the step."""
        self.last_gramian = gramian_of(ranks.mean_(self.surgery.rows(list(self._rows.values()))))
        self.last_active = self._ctx.active

    def _operate(self, ctx: Context) -> None:
        factor = self.surgery.factor
        scale = factor * self.trainer.accumulate_grad_batches if factor is not None else 1.0
        rows = self.surgery.reduce(scale)
        if len(ctx.active) < len(rows):
            rows = rows[list(ctx.active)]
        if self._uses("combine_gradients"):
            direction = self.combine_gradients(rows, ctx)
            gramian = gramian_of(rows) if self._diagnoses() else None
        else:
            gramian = gramian_of(rows)
            direction = self.gradient_weights(gramian, ctx).to(rows) @ rows
        if gramian is not None and self._diagnoses():
            self.last_gramian, self.last_active = gramian, ctx.active
        self.surgery.write(direction, ctx.active)
        self.surgery.clear()


def _unique(parameters: Iterable[nn.Parameter], known: set[int]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad and id(p) not in known]


def _full_precision(prediction: Tensor) -> Tensor:
    return prediction.to(torch.promote_types(prediction.dtype, torch.float32))
