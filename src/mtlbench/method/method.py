"""`MTLMethod`, the one extension point: a LightningModule whose hooks say how tasks are trained together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtlbench.balancing.base import BALANCING_HOOKS, GRADIENT_HOOKS, Balancer, Context, overrides
from mtlbench.balancing.gradients.diagnostics import Snapshot
from mtlbench.balancing.gradients.surgery import Surgery
from mtlbench.balancing.gradients.update import Update, needs_of
from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.errors import MethodError
from mtlbench.method import step
from mtlbench.method.forward import RankLosses, training_losses
from mtlbench.method.optimisers import align_gradients, build_optimiser, build_schedule, slowed
from mtlbench.method.spec import MethodSpec
from mtlbench.method.state import StepState
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import full_precision
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.networks.named import NamedModules
from mtlbench.networks.text_encoder import unpadded
from mtlbench.registry import Registered
from mtlbench.runs.plan import Plan, one_run
from mtlbench.runs.spec import RunSpec
from mtlbench.tasks.inputs import inputs_of


class MTLMethod(L.LightningModule, Registered):
    """One way of training tasks together. Override the hook that you change and nothing else.

    The base trains one network on all tasks with the sum of the scaled losses. Optimisation is automatic, so
    precision, accumulation, clipping and schedules are Lightning's and hold for every method.

    Args:
        spec: Tasks, model, optimiser, schedule and seed of the run. Hyper-parameters of a subclass are further
            keyword arguments with the paper's default.

    Attributes:
        ENCODERS: Families of encoders that the network can be built on; empty for any.
        PHASES: Whether training has phases, so that only its end is a result: `selection: best` is refused.
        ARRIVALS: How a task is added to trained ones: ``"continue"`` from the weights of the last run; ``"plan"``, by
            the method's own plan, which leaves the runs of earlier tasks as they are; ``"none"`` if it cannot be.
    """

    TAKES: ClassVar[tuple[str, ...]] = ("spec",)
    ENCODERS: ClassVar[tuple[str, ...]] = ()
    PHASES: ClassVar[bool] = False
    ARRIVALS: ClassVar[str] = "continue"

    network: MTLNetwork
    surgery: Surgery
    update: Update
    bad_step: Tensor
    loss_weights: Tensor

    def __init__(self, spec: MethodSpec):
        super().__init__()
        self.spec = spec
        self.tasks = dict(spec.tasks)
        self.balancer = Balancer()
        self.balancer.configure(len(self.tasks))
        self.metrics = NamedModules({name: task.metric() for name, task in self.tasks.items()})
        self.monitors = NamedModules({name: task.monitor() for name, task in self.tasks.items()})
        # First step with a non-finite loss, per task; read by `check_finite`, so that no step waits for the device.
        self.register_buffer("bad_step", torch.full((len(self.tasks),), -1), persistent=False)
        self.register_buffer("loss_weights", torch.ones(len(self.tasks)), persistent=False)
        self.last_update: Snapshot | None = None
        self._state = StepState()

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

    def rank_losses(self, batch: Batch) -> RankLosses:
        """Returns this rank's loss sums and regularisers of a batch, on whose graph gradients are taken."""
        return training_losses(self.network, self.tasks, batch, self.regularisation)

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns scalar tensors by name that are recorded whenever losses are, for example the load of experts."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Returns plain values by name that are stored beside the result. Default: the balancer's summary."""
        return self.balancer.summary()

    def preparation_flops(self) -> int:
        """Returns the FLOPs of what this process has computed before its first step, on this rank. Default: none."""
        return 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimiser's groups. Default: no weight decay on vectors and on balancer parameters."""
        matrices = [p for p in self.network.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in self.network.parameters() if p.requires_grad and p.ndim <= 1]
        rest = _unique(self.parameters(), {id(p) for p in (*matrices, *vectors)})
        return [{"params": matrices}, {"params": [*vectors, *rest], "weight_decay": 0.0}]

    @classmethod
    def roles(cls, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns the tasks of every network that `use_sources` expects, by role, for a run on ``tasks``."""
        return {}

    def use_sources(self, networks: Mapping[str, MTLNetwork]) -> None:
        """Takes the trained networks of other runs, frozen and on the CPU, by role; once, before training.

        A finished run is loaded without them: keep what prediction needs in the own state.

        Raises:
            MethodError: By default; override it in a method whose plan uses ``RunSpec.with_sources``.
        """
        raise MethodError(f"Other runs are for methods that take them. {type(self).__name__} got {sorted(networks)}.")

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
        needs = needs_of(self.uses, self.balancer)
        self.update = Update(needs, self.surgery, self, self.network.last_shared_parameters())

    def on_train_start(self) -> None:
        """Refuses a trainer under which the rule would not be exact."""
        self.update.settle(self.trainer, self.spec.surgery)

    def uses(self, hook: str) -> bool:
        """Returns whether this method or its balancer defines a balancing hook."""
        return overrides(self, MTLMethod, hook) or overrides(self.balancer, Balancer, hook)

    def diagnoses(self, step: int) -> bool:
        """Returns whether an optimiser step measures gradient conflict, which takes further passes."""
        every = self.spec.diagnose_every
        return every > 0 and step % every == 0 and len(self.tasks) > 1 and bool(self.surgery.shared)

    def phase(self, step: int) -> str:
        """Returns the kind of an optimiser step. Steps of one kind do equal work; FLOPs are counted on one of each.

        Override it if training has phases that differ in their work.
        """
        looks = any(self.uses(hook) for hook in GRADIENT_HOOKS) and self.balancer.due(step)
        return "gradients" if looks else "losses"

    def configure_optimizers(self) -> Any:
        """Returns optimiser and schedule of the suite."""
        groups, config = self.parameter_groups(), self.spec.optimiser
        factor = config.get("encoder_rate", 1.0)
        if factor != 1:
            groups = slowed(groups, self.network.encoder_parameters(), factor, config["lr"])
        optimiser = build_optimiser(groups, config)
        schedule = build_schedule(optimiser, self.spec.optimiser, self.spec.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, inputs: Any, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Returns the raw predictions of the named tasks, or of all.

        Args:
            inputs: As the data module's batches hold them: images are (B, 3, H, W) uint8.
            tasks: Names of the tasks.

        Raises:
            DataError: The inputs have another form, or not the size on which the network was trained.
        """
        family = family_of(self.spec.model.get("encoder", Model.encoder))
        family.check(inputs)
        found = self.network(inputs, list(tasks or self.tasks)).predictions
        family.check_maps(inputs, {name: p for name, p in found.items() if self.tasks[name].dense})
        return unpadded(found, {name: self.tasks[name].kind for name in found if self.tasks[name].per_token}, inputs)

    # ---- training: Lightning's hooks in its order ------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the value that Lightning back-propagates; `backward` may take it apart again."""
        micro_index = batch_idx % self.trainer.accumulate_grad_batches
        self._state = self._state.following(batch, micro_index, self.trainer.global_step)
        return step.total_loss(self, self._state)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Back-propagates: once and plainly, or once per task where a gradient hook is in use in this step."""
        if step.operates(self, self._state):
            step.backward(self, self._state, loss)
        else:
            step.measure_conflict(self, self._state)
            loss.backward(*args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Combines and writes gradients, after unscaling and before clipping."""
        step.before_optimiser(self, self._state)
        align_gradients(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then lets the balancer look at the finished step."""
        super().optimizer_step(*args, **kwargs)
        step.after_optimiser(self, self._state)

    @property
    def last_losses(self) -> Tensor | None:
        """(T,) unscaled mean losses of the last optimiser step over all ranks, NaN for absent tasks."""
        return None if self._state.whole is None else self._state.whole.means()

    def check_finite(self) -> None:
        """Waits for the device and reports a task whose loss or gradient was NaN or infinite.

        Raises:
            DivergedError: Naming the task and the first such step.
        """
        steps = {name: at for name, at in zip(self.tasks, self.bad_step.tolist(), strict=True) if at >= 0}
        if steps:
            first = min(steps.values())
            raise step.diverged(", ".join(name for name, at in steps.items() if at == first), first)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the metrics that are computed during training."""
        self._measure(self.monitors, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the metrics of every task."""
        self._measure(self.metrics, batch)

    def _measure(self, metrics: nn.ModuleDict, batch: Batch) -> None:
        for stream in streams(batch):
            names = [name for name in self.tasks if name in stream["targets"]]
            for name, prediction in self.network(inputs_of(stream), names).predictions.items():
                cast(Metric, metrics[name]).update(full_precision(prediction), stream["targets"][name])

    def scores(self, *, final: bool) -> dict[str, dict[str, float]]:
        """Returns and resets ``{task: {protocol id: value}}`` over all ranks, of test or of validation steps."""
        found = {}
        for name in self.tasks:
            metric = cast(Metric, (self.metrics if final else self.monitors)[name])
            found[name] = metric.compute()
            metric.reset()
        return found


def _unique(parameters: Iterable[nn.Parameter], known: set[int]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad and id(p) not in known]
