"""The order of one training step, the same for every method: losses over ranks, balancing, ``.grad``, the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor

from mtlbench import distributed
from mtlbench.balancing.base import Balancer, Context, loss_weights
from mtlbench.balancing.gradients.diagnostics import Snapshot
from mtlbench.balancing.gradients.surgery import Surgery
from mtlbench.balancing.gradients.update import NonFinite, Update
from mtlbench.balancing.losses import ReducedLosses, reduce_losses
from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.errors import DivergedError, MethodError
from mtlbench.method.lookahead import change_by, moved
from mtlbench.method.spec import MethodSpec
from mtlbench.method.state import StepState
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import full_precision
from mtlbench.seeding import reseed, seed_of
from mtlbench.tasks import Task


class TrainingStep(L.LightningModule):
    """What Lightning calls in a step, in its order. `MTLMethod` adds the hooks that it calls.

    ``training_step`` finds the losses over all ranks and their weights; ``backward`` collects gradients;
    ``on_before_optimizer_step`` combines them, after unscaling and before clipping; ``optimizer_step`` steps.
    """

    spec: MethodSpec
    tasks: dict[str, Task]
    network: MTLNetwork
    balancer: Balancer
    surgery: Surgery
    update: Update
    bad_step: Tensor
    _loss_weights: Tensor
    _state: StepState
    last_update: Snapshot | None

    if TYPE_CHECKING:  # The hooks of `MTLMethod` that a step calls.

        def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
            """See `MTLMethod`."""

        def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
            """See `MTLMethod`."""

        def uses(self, hook: str) -> bool:
            """See `MTLMethod`."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the value that Lightning back-propagates; `backward` may take it apart again."""
        before = None if self._state.stepped else self._state.whole
        micro_index = batch_idx % self.trainer.accumulate_grad_batches
        self._state = StepState(batch, micro_index, self.trainer.global_step, whole=before)
        # Dropout and the like are a function of (seed, step, rank): resuming needs no saved generator.
        reseed(self._noise_seed(), self.device)
        sums, regularisers = self._losses(batch)
        reduced = reduce_losses(torch.stack(sums), self._counts(batch), self._scales())
        # One tensor per task to the end: through a stack, every row's backward pass would visit all heads.
        factors = reduced.factors.unbind()
        shares = [total * factor * distributed.world_size() for total, factor in zip(sums, factors, strict=True)]
        ctx = self._context(reduced)
        self._note(reduced, ctx)
        if ctx.active and self.uses("combine_losses"):
            weights, value = loss_weights(self.combine_losses, ctx)
        else:  # The plain sum needs no derivative.
            weights, value = torch.ones_like(ctx.losses), ctx.losses.sum()
        self._state.rows = {i: weights[a] * shares[i] for a, i in enumerate(ctx.active)}
        if len(weights) == len(self.tasks):  # An index would be copied to the device in every step.
            self._loss_weights.copy_(weights)
        else:
            self._loss_weights[list(ctx.active)] = weights.to(self._loss_weights)
        own = value if self.surgery.rest else value.detach()
        self._state.extra = sum(regularisers.values(), own)
        # Value of the combined loss, gradient of Σ c_i L_i. Every share stays in the graph, also of absent tasks, and
        # so do balancer parameters: each takes part in the ordinary reduction of gradients, and no rank waits.
        idle = sum(shares) + sum(parameter.sum() for parameter in self.surgery.rest)
        self._state.total = (
            self._state.extra + sum(row - row.detach() for row in self._state.rows.values()) + 0.0 * idle
        )
        return self._state.total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Back-propagates: once and plainly, or once per task where a gradient hook is in use in this step."""
        if not self._operates():
            if self._diagnoses(cast(Context, self._state.ctx)):
                self._measure_conflict()
            loss.backward(*args, **kwargs)
            return
        try:
            self._take_apart(loss)
        finally:
            self._state.release()

    def _take_apart(self, loss: Tensor) -> None:
        state = self._state
        (factor,) = torch.autograd.grad(loss, cast(Tensor, state.total), retain_graph=True)
        extra = state.extra if state.extra is not None and state.extra.requires_grad else None
        if self.update.needs.early:
            if self._scales_losses():
                self.surgery.fill(torch.zeros((), device=self.device))  # A scaler wants a look, also without labels.
            ctx = cast(Context, state.ctx)
            look = self._diagnoses(ctx)
            self._with_names(lambda: self.update.early(state.rows, extra, factor, ctx, state.representation, look=look))
            return
        elsewhere = distributed.sum_counts([int(extra is not None)], self.device)[0] > 0
        part = self._state.micro_index % self.update.needs.batches
        self.surgery.collect(self._state.rows, extra, factor, part, extra_elsewhere=elsewhere)
        if self._scales_losses():
            self._state.overflow = overflow = self.surgery.overflows()
            self.surgery.fill(torch.where(overflow > 0, torch.inf, 0.0))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Combines and writes gradients; removes those of parameters whose tasks are absent on all ranks."""
        ctx = self._step_context()
        if self._operates():
            self._operate(ctx)
        absent = [i for i in range(len(self.tasks)) if i not in ctx.active]
        idle = [p for i in absent for p in self.surgery.owned[i]]
        if not ctx.active:
            idle += [*self.surgery.shared, *self.surgery.rest]
        for parameter in idle:
            parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then lets the balancer look at the finished step; checkpoints are written later and hold both."""
        super().optimizer_step(*args, **kwargs)
        self._state.stepped = True
        ctx = self._step_context()
        if ctx.active:
            self.balancer.after_step(ctx)
        if (self._state.step + 1) % self.spec.steps_per_epoch == 0:
            self.balancer.epoch_end()

    @property
    def last_losses(self) -> Tensor | None:
        """(T,) unscaled mean losses of the last optimiser step over all ranks, NaN for absent tasks."""
        return None if self._state.whole is None else self._state.whole.means()

    def check_finite(self) -> None:
        """Waits for the device and reports a task whose loss or gradient was NaN or infinite.

        Raises:
            DivergedError: Naming the task and the first such step.
        """
        steps = {name: step for name, step in zip(self.tasks, self.bad_step.tolist(), strict=True) if step >= 0}
        if steps:
            first = min(steps.values())
            names = ", ".join(name for name, step in steps.items() if step == first)
            raise self._diverged(names, first)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _noise_seed(self) -> int:
        return seed_of("step", self.spec.seed, self._state.step, self._state.micro_index, self.trainer.global_rank)

    def _losses(self, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns the loss sum of every task on this rank, and the regularisers."""
        sums: dict[str, Tensor] = {}
        regularisers: dict[str, Tensor] = {}
        for stream in streams(batch):
            names = [name for name in self.tasks if name in stream["targets"]]
            outputs = self.network(stream["image"], names)
            if outputs.representation is not None:
                self._state.representation.append(outputs.representation)
            for name in names:
                sums[name] = self._loss(name, outputs, stream["targets"][name])
            for key, value in self.regularisation(outputs, stream).items():
                regularisers[key] = regularisers[key] + value if key in regularisers else value
        lacking = [name for name in self.tasks if name not in sums]
        if lacking:
            raise MethodError(f"Every batch must hold every task of the run (blank where unlabelled). Lacks {lacking}.")
        return [sums[name] for name in self.tasks], regularisers

    def _loss(self, name: str, outputs: Outputs, target: Tensor) -> Tensor:
        """Returns the loss sum of one task, that of its auxiliary predictions included."""
        task = self.tasks[name]
        own = task.loss(full_precision(outputs.predictions[name]), target)
        more = (weight * task.loss(full_precision(p), target) for weight, p in outputs.auxiliary.get(name, ()))
        return sum(more, own)

    def _counts(self, batch: Batch) -> list[int]:
        return [sum(stream["counts"].get(name, 0) for stream in streams(batch)) for name in self.tasks]

    def _scales(self) -> list[float]:
        return [task.scale for task in self.tasks.values()]

    def _note(self, reduced: ReducedLosses, ctx: Context) -> None:
        """Adds up the step's losses over micro-batches, and remembers bad ones."""
        bad = ~reduced.totals.isfinite()
        if self.balancer.POSITIVE:
            present = torch.tensor([count > 0 for count in reduced.counts], device=bad.device)
            bad |= (reduced.totals * reduced.factors <= self.balancer.floor) & present
        self._mark(bad)
        state = self._state
        state.ctx, state.losses = ctx, reduced
        state.whole = reduced if state.whole is None else state.whole + reduced

    def _step_context(self) -> Context:
        """Returns the context of the whole optimiser step: all micro-batches together."""
        whole = cast(ReducedLosses, self._state.whole)
        return cast(Context, self._state.ctx) if whole is self._state.losses else self._context(whole)

    def _context(self, reduced: ReducedLosses) -> Context:
        step = self._state.step
        generator = torch.Generator().manual_seed(seed_of("method", self.spec.seed, step))

        def lookahead(change: Tensor | None, tasks: Sequence[int] | None = None) -> Tensor:
            return self._look_ahead(change, reduced.active if tasks is None else tasks)

        epoch, sizes = step // self.spec.steps_per_epoch, self.surgery.sizes
        lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        return Context(reduced.active, reduced.losses, step, epoch, generator, lookahead, sizes, self._preview, lr)

    def _preview(self, gradient: Tensor) -> Tensor:
        """Returns the change (P,) of the shared parameters that the optimiser would make for a gradient (P,)."""
        return change_by(self.trainer.optimizers[0], self.surgery.shared, gradient)

    @torch.no_grad()
    def _look_ahead(self, change: Tensor | None, wanted: Sequence[int]) -> Tensor:
        """Returns the losses of the wanted tasks on the last micro-batch, shared parameters moved by ``change``."""
        last = cast(ReducedLosses, self._state.losses)
        if change is None and not self._state.stepped:
            totals = last.totals[list(wanted)]  # Nothing has moved since they were found.
        else:
            parameters, views = ([], []) if change is None else (self.surgery.shared, self.surgery.views(change))
            with moved(self.network, parameters, views), self.trainer.precision_plugin.train_step_context():
                reseed(self._noise_seed(), self.device)
                totals = distributed.sum_(self._loss_sums([list(self.tasks)[i] for i in wanted]))
        parts = [(self._scales()[i], last.counts[i]) for i in wanted]
        return totals * totals.new_tensor([scale / count if count else float("nan") for scale, count in parts])

    def _loss_sums(self, wanted: Sequence[str]) -> Tensor:
        """Returns this rank's loss sums of the wanted tasks, as `_losses` does; what counts statistics is left out."""
        sums: dict[str, Tensor] = {}
        for stream in streams(self._state.batch):
            names = [name for name in wanted if name in stream["targets"]]
            outputs = self.network(stream["image"], names) if names else Outputs({})
            sums |= {name: self._loss(name, outputs, stream["targets"][name]) for name in names}
        return torch.stack([sums[name] for name in wanted])

    def _operates(self) -> bool:
        """Returns whether a rule on gradients acts in this step."""
        return self.update.needs.hook is not None and self.balancer.due(self._state.step)

    def _scales_losses(self) -> bool:
        return self.trainer.precision == "16-mixed"

    def _diagnoses(self, ctx: Context) -> bool:
        every = self.spec.diagnose_every
        due = every > 0 and self._state.step % every == 0
        return due and len(ctx.active) > 1 and bool(self.surgery.shared)

    def _measure_conflict(self) -> None:
        """Looks at the gradients of a rule that does not need them; leaves no trace in the step."""
        gramian = self.update.look(list(self._state.rows.values()), torch.ones(()))
        ones = torch.ones(len(gramian), dtype=gramian.dtype, device=gramian.device)
        active = cast(Context, self._state.ctx).active
        self.last_update = Snapshot.of_weights(active, gramian, ones, self._loss_weights[list(active)])

    def _operate(self, ctx: Context) -> None:
        """Combines and writes the gradients of a rule that waits for all micro-batches."""
        update, diagnoses = self.update, self._diagnoses(ctx)
        if self._scales_losses() and not update.needs.early and cast(Tensor, self._state.overflow) > 0:
            self.surgery.clear()  # The scaler skips this step; what a rule remembers shall not see it.
            return
        if not update.needs.early:
            factor = self.surgery.factor
            scale = factor * self.trainer.accumulate_grad_batches if factor is not None else 1.0
            self._with_names(lambda: update.late(scale, ctx, look=diagnoses))
            if update.suspects is not None and not self._scales_losses():
                self._mark(update.suspects)
        if diagnoses and update.seen is not None:
            self.last_update = replace(update.seen, loss_weights=self._loss_weights[list(ctx.active)])

    def _mark(self, bad: Tensor) -> None:
        """Remembers this step for tasks (T,) whose loss or gradient is bad, if it is their first."""
        self.bad_step.masked_fill_(bad & (self.bad_step < 0), self._state.step)

    def _with_names(self, action: Callable[[], None]) -> None:
        """Gives a gradient that is not finite the name of its task; a gradient scaler skips such a step instead."""
        try:
            action()
        except NonFinite as error:
            if not self._scales_losses():
                names = ", ".join(list(self.tasks)[i] for i in error.tasks)
                raise self._diverged(names, self._state.step) from error
            self.surgery.fill(torch.tensor(torch.inf, device=self.device))
            self.surgery.clear()

    @staticmethod
    def _diverged(names: str, step: int) -> DivergedError:
        return DivergedError(
            "A task's loss and gradient must stay finite, and the loss positive where the rule takes logarithms. "
            f"The loss or gradient of {names} was not at step {step}. The last good checkpoint is kept. "
            "Lower optimiser.lr, set trainer.clip, or look at the labels."
        )
