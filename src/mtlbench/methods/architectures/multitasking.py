"""Multitasking: an agent learns when to train tasks one by one on a shared network and when all at once."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.learning_curves import LearningCurves
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.film import CuedNetwork
from mtlbench.runs import keys
from mtlbench.seeding import seed_of

PARALLEL, SERIAL = 0, 1


class Multitasking(MTLMethod):
    """Trade-off between multi-task learning and learning to multitask (https://arxiv.org/abs/2007.10527, 2020).

    Rule: a network can serve its tasks serially, one pass per task under the cue of the task, or in parallel, one pass
    for all. Training is cut into intervals. Before each, the agent draws a learning curve of either regime from its
    posterior and predicts the utility of the intervals that remain: R_parallel = Σ a, R_serial = Σ a - c (T - 1). The
    regime of the larger R is trained for one interval.

    Symbols: T tasks; a sum over tasks of the accuracy 1 - L_i / L_i⁰ in an interval, clipped to [0, 1], with the
    training loss L_i, and L_i⁰ that of the first step; c cost of a further pass. The curve of a regime that was trained
    for n intervals is w · (1, log(1 + n), n), with the prior N(0, τ²) on w; see `LearningCurves`.

    Args:
        cost: c, >= 0, in units of one task's accuracy; 0, 0.02 and 0.1 show the change of regime. The values are ours.
        intervals: Number of intervals, at least 1; fewer if the run has fewer steps. The default is ours.
        prior: τ, above 0; the default is ours.
        noise: Standard deviation of an accuracy around its curve, above 0; the default is ours.

    Regimes share all weights but the cues, a factor and an offset per channel after every stage of the encoder, which
    only the serial regime uses and trains. The run ends in the regime whose present utility is larger, and is scored in
    it. A step in the serial regime costs T passes of everything behind the first stage. The report draws the regimes of
    all rows over their costs.

    Differences from the paper: only its abstract could be verified. It says that an agent meta-learns which of two
    regimes to use: shared representations, which speed up learning, or separated ones, which allow concurrent
    execution. The agent, curves, prior, accuracies and the form of both regimes are ours, and dense images stand in for
    the paper's environments. Accuracies are those of training, so that no labels of another split are used.

    Example:
        >>> import torch
        >>> from mtlbench.method.learning_curves import LearningCurves
        >>> curves = LearningCurves(intervals=10, prior=1.0, noise=0.05)
        >>> for value in (0.2, 0.35, 0.45):
        ...     curves.observe(1, value)
        >>> curves.reached(1) > curves.reached(0)  # of what was never trained, nothing is expected
        True
    """

    TAXONOMY = "architectures/learned"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)

    network: CuedNetwork
    first: Tensor
    sums: Tensor
    seen: Tensor
    chosen: Tensor
    accuracy: Tensor

    def __init__(
        self, spec: MethodSpec, *, cost: float = 0.02, intervals: int = 20, prior: float = 1.0, noise: float = 0.05
    ) -> None:
        super().__init__(spec)
        if not 0 <= cost < math.inf:
            raise MethodError(f"multitasking: cost must be finite and >= 0. Found {cost}. The default is 0.02.")
        if intervals < 1 or not (0 < prior < math.inf and 0 < noise < math.inf):
            raise MethodError(
                "multitasking: intervals must be at least 1, and prior and noise positive and finite. Found "
                f"{intervals}, {prior} and {noise}. The defaults are 20, 1 and 0.05."
            )
        self.cost = cost
        self.length = max(1, math.ceil(spec.steps / intervals))
        self.intervals, tasks = max(1, math.ceil(spec.steps / self.length)), len(self.tasks)
        self.curves = LearningCurves(self.intervals, prior, noise)
        self.register_buffer("first", torch.full((tasks,), math.nan, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(tasks, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(tasks, dtype=torch.float64))
        self.register_buffer("chosen", torch.full((self.intervals,), -1, dtype=torch.int64))
        self.register_buffer("accuracy", torch.full((self.intervals,), math.nan, dtype=torch.float64))

    def build_network(self) -> MTLNetwork:
        """Returns the network with both regimes."""
        return CuedNetwork(self.tasks, **self.spec.model)

    # ---- the agent -------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Chooses the regime of the first interval, unless a checkpoint holds it."""
        super().on_train_start()
        if self.trainer.global_step == 0:
            self._choose(0)

    def phase(self, step: int) -> str:
        """Returns the kind of a step, which differs between regimes; without a network, no regime is known."""
        if not hasattr(self, "network"):
            return super().phase(step)
        return f"{super().phase(step)} {'serial' if self.network.serial else 'parallel'}"

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Removes the zero gradients of cues that were not used, because momentum and decay would move them."""
        super().on_before_optimizer_step(optimizer)
        if not self.network.serial:
            for cue in self.network.cues.parameters():
                cue.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, notes the accuracy, and ends the interval when it is time."""
        super().optimizer_step(*args, **kwargs)
        self._note()
        done = self._state.step + 1
        if done % self.length == 0 or done == self.spec.steps:
            interval = (done - 1) // self.length
            self._observe(interval)
            if done < self.spec.steps:
                self._choose(interval + 1)
            else:
                self._settle()

    def _note(self) -> None:
        """Adds the accuracy of a step on the device. Tasks without labels, or with a first loss of 0, have none."""
        losses = self.last_losses
        if losses is not None:
            losses = losses.detach().to(self.first)
            self.first.copy_(torch.where(self.first.isnan(), losses, self.first))
            accuracy = 1 - losses / self.first
            known = accuracy.isfinite() & (self.first > 0)
            self.sums += torch.where(known, accuracy.clamp(0, 1), 0.0)
            self.seen += known

    def _observe(self, interval: int) -> None:
        """Adds an interval to the curve of its regime."""
        known = self.seen > 0
        if bool(known.any()):
            self.accuracy[interval] = (self.sums / self.seen)[known].mean()
            self.curves.observe(int(self.network.serial), float(self.accuracy[interval]))
        self.sums.zero_()
        self.seen.zero_()

    def _choose(self, interval: int) -> None:
        """Draws a curve for each regime and takes the regime that promises more."""
        # The seed depends on the interval only, so that ranks and resumed runs choose alike.
        generator = torch.Generator().manual_seed(seed_of("multitasking", self.spec.seed, interval))
        remaining = self.intervals - interval
        values = self.curves.sampled(remaining, generator)
        serial = self._utility(values[SERIAL], SERIAL, remaining) > self._utility(values[PARALLEL], PARALLEL, remaining)
        self.network.use(serial=serial)
        self.chosen[interval] = int(serial)

    def _settle(self) -> None:
        """Takes the regime whose utility is larger now."""
        self.network.use(serial=self._present(SERIAL) > self._present(PARALLEL))

    def _utility(self, accuracy: float, regime: int, intervals: int = 1) -> float:
        """Returns the utility of intervals whose mean accuracies have the given sum."""
        tasks = len(self.tasks)
        return tasks * accuracy - (self.cost * (tasks - 1) * intervals if regime == SERIAL else 0.0)

    def _present(self, regime: int) -> float:
        return self._utility(self.curves.reached(regime), regime)

    # ---- records ---------------------------------------------------------------------------------------------------

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns whether the step was serial."""
        return {**super().diagnostics(), keys.REGIME.key(): self.network.is_serial.float()}

    def summary(self) -> dict[str, Any]:
        """Returns the cost, the regime of every interval, what it reached, and the present utility of each regime."""
        return {
            **super().summary(),
            "regimes": {
                "cost": self.cost,
                "serial": self.network.serial,
                "chosen": [value for value in self.chosen.tolist() if value >= 0],
                "accuracy": [None if math.isnan(value) else value for value in self.accuracy.tolist()],
                "utility": {"parallel": self._present(PARALLEL), "serial": self._present(SERIAL)},
            },
        }
