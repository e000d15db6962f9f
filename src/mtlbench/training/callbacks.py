"""Work at the end of a step, in the same order on every rank: record, evaluate, checkpoint, stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mtlbench import distributed
from mtlbench.balancing.gradients.diagnostics import conflict_row
from mtlbench.data import MTLDataModule
from mtlbench.method import MTLMethod
from mtlbench.runs import keys
from mtlbench.tracking.tracker import Tracker
from mtlbench.training import checkpoint
from mtlbench.training.cost import StepFlops
from mtlbench.training.evaluation import evaluate, share_buffers
from mtlbench.training.gradient_moments import gradient_moments
from mtlbench.training.linear_heads import linear_heads
from mtlbench.training.loggers import MetricsFile

STOP_EVERY = 5
"""Steps between agreements of all ranks on whether to stop."""


class StepClock:
    """Seconds per step, measured between points at which the host waits for the device in any case.

    A step that measures gradient conflict costs other work than an ordinary one, and is left out as a whole: the clock
    is paused from the end of the step before it to its own end.
    """

    def __init__(self) -> None:
        self.windows: list[float] = []
        self.paused = False
        self.restart()

    def restart(self) -> None:
        """Open an empty window; the time since the last one does not count, nor do its steps."""
        self._seconds, self._steps, self._spoilt, self._since = 0.0, 0, False, time.perf_counter()

    def pause(self) -> None:
        """Stop the clock; the device must have no work left."""
        self._seconds, self.paused = self._seconds + self._running(), True

    def resume(self) -> None:
        """Let the clock go on; the device must have no work left."""
        self._since, self.paused = time.perf_counter(), False

    def count(self) -> None:
        """Add a step to the window, unless the clock is paused."""
        self._steps += not self.paused

    def leave_out(self) -> None:
        """Leave out the last step without waiting for the device: drop the window, or begin it anew if it is new."""
        if self._steps > 1:
            self._spoilt = True
        else:
            self.restart()

    def tick(self) -> None:
        """Close the window."""
        if self._steps and not self._spoilt:
            self.windows.append((self._seconds + self._running()) / self._steps)
        self.restart()

    def summary(self) -> dict[str, float | None]:
        """Return mean and 95th percentile of seconds per step; the first window warms up and is left out.

        Both are None if no step could be timed, for example because there are no steps or each
        of them measured gradient conflict.
        """
        windows = sorted(self.windows[1:] or self.windows)
        if not windows:
            return {"seconds_per_step": None, "seconds_per_step_p95": None}
        return {
            "seconds_per_step": sum(windows) / len(windows),
            "seconds_per_step_p95": windows[min(len(windows) - 1, int(0.95 * len(windows)))],
        }

    def _running(self) -> float:
        return 0.0 if self.paused else time.perf_counter() - self._since


class EndOfStep(L.Callback):
    """Records, evaluates, checkpoints and stops a run.

    Args:
        folder: The run's folder.
        data: Its data module.
        periods: ``log_every``, ``evaluate_every``, ``checkpoint_every`` in steps; 0 = never.
        select_best: Keep the weights with the lowest validation loss in ``best.ckpt``.
        metrics: Where rows go (rank zero), or None.
        tracker: W&B and other tools.
        stop: Returns whether this process was asked to stop.
        listen: Called when training starts. By then Lightning has installed its own handler of SIGTERM, which ends the
            process without a checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        data: MTLDataModule,
        periods: dict[str, int],
        *,
        select_best: bool = False,
        metrics: MetricsFile | None = None,
        tracker: Tracker | None = None,
        stop: Callable[[], bool] = lambda: False,
        listen: Callable[[], None] = lambda: None,
    ):
        self.folder, self.data, self.periods, self.select_best = folder, data, periods, select_best
        self.metrics, self.tracker, self.stop, self.listen = metrics, tracker, stop, listen
        self.best_loss, self.conflicts, self.measured = float("inf"), 0, 0
        self.step, self.stopped, self.clock = 0, False, StepClock()
        self.started, self._earlier = time.time(), 0.0
        self.flops, self._counting = StepFlops(), False

    def on_train_start(self, trainer: L.Trainer, method: Any) -> None:
        """Starts the clock, and listens to signals."""
        self.listen()
        self.step = trainer.global_step
        self.clock.restart()
        self._stop_clock_if_diagnosed(method)

    def on_train_batch_start(self, trainer: L.Trainer, method: Any, batch: Any, batch_idx: int) -> None:
        """Begins to count the FLOPs of the micro-batch where none of its kind has been counted."""
        self.flops.begin(method, batch, batch_idx)

    def on_exception(self, trainer: L.Trainer, method: Any, exception: BaseException) -> None:
        """Ends counting."""
        self.flops.end()

    def on_train_batch_end(self, trainer: L.Trainer, method: Any, *args: Any) -> None:
        """Logs, evaluates and saves when due after an optimiser step; ignores micro-batches that did not step."""
        counted = self.flops.end()
        if trainer.global_step == self.step:
            self._counting |= counted
            return
        self.step = trainer.global_step
        self.clock.count()
        if (counted or self._counting) and not self.clock.paused:
            self.clock.leave_out()
        self._counting = False
        last = self.step >= self.data.steps
        row = self._losses(trainer, method) if last or self._due("log_every") else {}
        row |= self._conflict(method)
        if row:
            self.write({"step": self.step, **row})
        if self._due("evaluate_every") and not last:
            self._evaluate(method)
        if not last and (samples := self.data.head_samples(self.step)):
            self.data.observe_heads(self.step, linear_heads(method, samples.values()))
            self.clock.restart()
        if last or self._due("checkpoint_every"):
            self._save(trainer, method)
        if self.step % STOP_EVERY == 0 and self._asked_to_stop(method.device) and not last:
            self._save(trainer, method)
            self.stopped = trainer.should_stop = True
        self._stop_clock_if_diagnosed(method)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {
            "best_loss": self.best_loss,
            "conflicts": self.conflicts,
            "measured": self.measured,
            "seconds": self.seconds(),
            "windows": list(self.clock.windows),
            "flops": self.flops.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.best_loss = state_dict["best_loss"]
        self.conflicts, self.measured = state_dict["conflicts"], state_dict["measured"]
        self._earlier, self.clock.windows = state_dict.get("seconds", 0.0), list(state_dict.get("windows", ()))
        self.flops = StepFlops(state_dict.get("flops"))

    def seconds(self) -> float:
        """Return the training time of this run, including that of earlier processes up to their last checkpoint."""
        return self._earlier + time.time() - self.started

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row to the run's own file and to the tools that follow it."""
        if self.metrics is not None:
            self.metrics.write(row)
        if self.tracker is not None:
            self.tracker.log(row)

    def _due(self, period: str) -> bool:
        every = self.periods[period]
        return every > 0 and self.step % every == 0

    def _losses(self, trainer: L.Trainer, method: MTLMethod) -> dict[str, Any]:
        method.check_finite()
        row: dict[str, Any] = {keys.LR.key(): trainer.optimizers[0].param_groups[0]["lr"]}
        losses = method.last_losses
        if losses is not None:
            row |= {
                keys.LOSS.key(task=name): v for name, v in zip(method.tasks, losses.tolist(), strict=True) if v == v
            }
        row |= {name: float(value) for name, value in method.diagnostics().items()}
        row |= self.data.diagnostics(self.step)
        self.clock.tick()
        return row

    def _conflict(self, method: MTLMethod) -> dict[str, float]:
        """Return the conflicts of a measured update at once: the run may end before the next row is due."""
        seen, method.last_update = method.last_update, None
        if seen is None:
            return {}
        method.check_finite()
        row = conflict_row(seen, [list(method.tasks)[i] for i in seen.active])
        if (conflicts := keys.CONFLICTS.key()) in row:
            self.measured += 1
            self.conflicts += row[conflicts] > 0
        return row

    def _evaluate(self, method: MTLMethod) -> None:
        scores, loss = evaluate(
            method, self.data.eval_dataloader("val"), self.data.rollouts("val"), with_loss=self.select_best
        )
        self.write({"step": self.step, **keys.flat(scores, "val")})
        self.data.observe(self.step, scores)
        if probes := self.data.probes(self.step):
            moments = {name: gradient_moments(method, halves) for name, halves in probes.items()}
            self.data.observe_gradients(self.step, moments)
        if self.select_best and loss < self.best_loss:
            self.best_loss = loss
            weights = method.state_dict()  # On all ranks, which may hold shards of them.
            if method.trainer.is_global_zero:
                checkpoint.save({"step": self.step, "state_dict": weights}, self.folder / "best.ckpt")
        self.clock.restart()

    def _save(self, trainer: L.Trainer, method: MTLMethod) -> None:
        method.check_finite()
        share_buffers(method.network)
        trainer.save_checkpoint(checkpoint.path_of(self.folder, self.step), weights_only=False)
        self.clock.restart()

    def _stop_clock_if_diagnosed(self, method: MTLMethod) -> None:
        """Pause the clock before a step that measures gradient conflict, in which the host waits anyway."""
        looks = method.diagnoses(self.step)
        if (looks or self.clock.paused) and method.device.type == "cuda":
            torch.cuda.synchronize(method.device)
        if looks and not self.clock.paused:
            self.clock.pause()
        elif self.clock.paused and not looks:
            self.clock.resume()

    def _asked_to_stop(self, device: torch.device) -> bool:
        return distributed.sum_counts([int(self.stop())], device)[0] > 0
