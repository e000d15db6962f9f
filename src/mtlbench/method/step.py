"""The order of one training step, the same for every method: losses over ranks, balancing, ``.grad``, the optimiser.

`MTLMethod` calls these functions from Lightning's hooks, in this order: `total_loss`, `backward` (or, where no rule on
gradients acts, `measure_conflict` and an ordinary backward pass), `before_optimiser` after unscaling and before
clipping, `after_optimiser`. All of them work on one `StepState`, which holds what an earlier one found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mtlbench import distributed
from mtlbench.balancing.base import Balancer, Context, loss_weights
from mtlbench.balancing.gradients.diagnostics import Snapshot
from mtlbench.balancing.gradients.surgery import Collected, Surgery, collect
from mtlbench.balancing.gradients.update import NonFinite, Update
from mtlbench.balancing.losses import ReducedLosses, reduce_losses
from mtlbench.data import Batch
from mtlbench.errors import DivergedError
from mtlbench.method.forward import RankLosses, label_counts, loss_sums, scales
from mtlbench.method.lookahead import change_by, descent_by, moved
from mtlbench.method.spec import MethodSpec
from mtlbench.method.state import StepState
from mtlbench.networks.base import MTLNetwork
from mtlbench.seeding import reseed, seed_of
from mtlbench.tasks import Task


class Trained(Protocol):
    """What a step reads of a method.

    Attributes:
        bad_step: (T,) first step with a loss or gradient that is not finite, or -1; a step writes into it.
        loss_weights: (T,) weights of the losses; a step writes those of its active tasks.
        last_update: The last update that was measured; a step replaces it.
    """

    spec: MethodSpec
    tasks: dict[str, Task]
    network: MTLNetwork
    balancer: Balancer
    surgery: Surgery
    update: Update
    bad_step: Tensor
    loss_weights: Tensor
    last_update: Snapshot | None

    @property
    def trainer(self) -> Any:
        """Lightning's trainer."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    def uses(self, hook: str) -> bool:
        """See `MTLMethod.uses`."""

    def diagnoses(self, step: int) -> bool:
        """See `MTLMethod.diagnoses`."""

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """See `MTLMethod.combine_losses`."""

    def rank_losses(self, batch: Batch) -> RankLosses:
        """See `MTLMethod.rank_losses`."""


# ---- the order of a step --------------------------------------------------------------------------------------------


def total_loss(method: Trained, state: StepState) -> Tensor:
    """Returns the value that Lightning back-propagates; `backward` may take it apart again."""
    # Dropout and the like are a function of (seed, step, rank): resuming needs no saved generator.
    reseed(_noise_seed(method, state), method.device)
    found = method.rank_losses(state.batch)
    state.representation = found.representation
    reduced = reduce_losses(torch.stack(found.sums), label_counts(method.tasks, state.batch), scales(method.tasks))
    # One tensor per task to the end: through a stack, every row's backward pass would visit all heads.
    factors = reduced.factors.unbind()
    shares = [total * factor * distributed.world_size() for total, factor in zip(found.sums, factors, strict=True)]
    state.ctx = ctx = _context(method, state, reduced)
    state.losses = reduced
    state.whole = reduced if state.whole is None else state.whole + reduced
    _mark(method, state, _bad_losses(method.balancer, reduced))
    if ctx.active and method.uses("combine_losses"):
        weights, value = loss_weights(method.combine_losses, ctx)
    else:  # The plain sum needs no derivative.
        weights, value = torch.ones_like(ctx.losses), ctx.losses.sum()
    state.rows = {i: weights[a] * shares[i] for a, i in enumerate(ctx.active)}
    method.loss_weights[ctx.index(method.loss_weights)] = weights.to(method.loss_weights)
    own = value if method.surgery.rest else value.detach()
    state.extra = sum(found.regularisers.values(), own)
    # Value of the combined loss, gradient of Σ c_i L_i. Every share stays in the graph, also of absent tasks, and
    # so do balancer parameters: each takes part in the ordinary reduction of gradients, and no rank waits.
    idle = sum(shares) + sum(parameter.sum() for parameter in method.surgery.rest)
    state.total = state.extra + sum(row - row.detach() for row in state.rows.values()) + 0.0 * idle
    return state.total


def operates(method: Trained, state: StepState) -> bool:
    """Returns whether a gradient rule acts in this step."""
    return method.update.needs.hook is not None and method.balancer.due(state.step)


def measure_conflict(method: Trained, state: StepState) -> None:
    """Looks at the gradients of a rule that does not need them, if it is time to; leaves no trace in the step."""
    ctx = cast(Context, state.ctx)
    if _diagnoses(method, state, ctx):
        gramian = method.update.look(list(state.rows.values()), torch.ones(()))
        ones = torch.ones(len(gramian), dtype=gramian.dtype, device=gramian.device)
        method.last_update = Snapshot.of_weights(ctx.active, gramian, ones, method.loss_weights[list(ctx.active)])


def backward(method: Trained, state: StepState, loss: Tensor) -> None:
    """Back-propagates ``loss`` once per task, and drops the graph."""
    try:
        (factor,) = torch.autograd.grad(loss, cast(Tensor, state.total), retain_graph=True)
        extra = state.extra if state.extra is not None and state.extra.requires_grad else None
        if method.update.needs.early:
            _update_early(method, state, extra, factor)
        else:
            _collect(method, state, extra, factor)
    finally:
        state.release()


def before_optimiser(method: Trained, state: StepState) -> None:
    """Combines and writes gradients; removes those of parameters whose tasks are absent on all ranks."""
    ctx, surgery = _step_context(method, state), method.surgery
    if operates(method, state) and not method.update.needs.early:
        _update_late(method, state, ctx)
    if state.seen is not None:
        method.last_update = replace(state.seen, loss_weights=method.loss_weights[list(ctx.active)])
    absent = [i for i in range(len(method.tasks)) if i not in ctx.active]
    idle = [p for i in absent for p in surgery.owned[i]]
    if not ctx.active:
        idle += [*surgery.shared, *surgery.rest]
    for parameter in idle:
        parameter.grad = None


def after_optimiser(method: Trained, state: StepState) -> None:
    """Lets the balancer look at the finished step; checkpoints are written later and hold both."""
    state.stepped = True
    ctx = _step_context(method, state)
    if ctx.active:
        method.balancer.after_step(ctx)
    if (state.step + 1) % method.spec.steps_per_epoch == 0:
        method.balancer.epoch_end()


def diverged(names: str, step: int) -> DivergedError:
    """Returns the error about tasks whose loss or gradient was bad at a step."""
    return DivergedError(
        "A task's loss and gradient must stay finite, and the loss positive where the rule takes logarithms. "
        f"The loss or gradient of {names} was not at step {step}. The last good checkpoint is kept. "
        "Lower optimiser.lr, set trainer.clip, or look at the labels."
    )


# ---- gradients ------------------------------------------------------------------------------------------------------


def _update_early(method: Trained, state: StepState, extra: Tensor | None, factor: Tensor) -> None:
    """Finds weights and writes gradients, all within the backward pass."""
    if _scales_losses(method):
        method.surgery.fill(torch.zeros((), device=method.device))  # A scaler wants a look, also without labels.
    ctx = cast(Context, state.ctx)
    look = _diagnoses(method, state, ctx)
    with _named(method, state):
        state.seen = method.update.early(state.rows, extra, factor, ctx, state.representation, look=look)


def _collect(method: Trained, state: StepState, extra: Tensor | None, factor: Tensor) -> None:
    """Adds the rows of this micro-batch to those of the step."""
    elsewhere = distributed.sum_counts([int(extra is not None)], method.device)[0] > 0
    part = state.micro_index % method.update.needs.batches
    state.collected = collect(
        method.surgery, state.rows, extra, factor, part, before=state.collected, extra_elsewhere=elsewhere
    )
    if _scales_losses(method):
        state.overflow = overflow = state.collected.overflows()
        method.surgery.fill(torch.where(overflow > 0, torch.inf, 0.0))


def _update_late(method: Trained, state: StepState, ctx: Context) -> None:
    """Combines and writes the rows of all micro-batches."""
    collected, state.collected = cast(Collected, state.collected), None
    if _scales_losses(method) and cast(Tensor, state.overflow) > 0:
        return  # The scaler skips this step; what a rule remembers must not see it.
    scale = collected.factor * method.trainer.accumulate_grad_batches
    with _named(method, state):
        combined = method.update.late(collected, scale, ctx, look=_diagnoses(method, state, ctx))
        state.seen = combined.seen
        if combined.suspects is not None and not _scales_losses(method):
            _mark(method, state, combined.suspects)


@contextmanager
def _named(method: Trained, state: StepState) -> Iterator[None]:
    """Gives a gradient that is not finite the name of its task; a gradient scaler skips such a step instead."""
    try:
        yield
    except NonFinite as error:
        if not _scales_losses(method):
            names = ", ".join(list(method.tasks)[i] for i in error.tasks)
            raise diverged(names, state.step) from error
        method.surgery.fill(torch.tensor(torch.inf, device=method.device))


def _scales_losses(method: Trained) -> bool:
    return method.trainer.precision == "16-mixed"


def _diagnoses(method: Trained, state: StepState, ctx: Context) -> bool:
    return method.diagnoses(state.step) and len(ctx.active) > 1


# ---- losses and context ---------------------------------------------------------------------------------------------


def _bad_losses(balancer: Balancer, reduced: ReducedLosses) -> Tensor:
    """Returns (T,) bool: tasks whose loss is not finite, or not positive where it must be."""
    bad = ~reduced.totals.isfinite()
    if balancer.POSITIVE:
        present = distributed.sent([count > 0 for count in reduced.counts], bad)
        bad |= (reduced.totals * reduced.factors <= balancer.floor) & present
    return bad


def _mark(method: Trained, state: StepState, bad: Tensor) -> None:
    """Remembers this step for tasks (T,) whose loss or gradient is bad, if it is their first."""
    method.bad_step.masked_fill_(bad & (method.bad_step < 0), state.step)


def _noise_seed(method: Trained, state: StepState) -> int:
    return seed_of("step", method.spec.seed, state.step, state.micro_index, method.trainer.global_rank)


def _step_context(method: Trained, state: StepState) -> Context:
    """Returns the context of the whole optimiser step: all micro-batches together."""
    whole = cast(ReducedLosses, state.whole)
    return cast(Context, state.ctx) if whole is state.losses else _context(method, state, whole)


def _context(method: Trained, state: StepState, reduced: ReducedLosses) -> Context:
    generator = torch.Generator().manual_seed(seed_of("method", method.spec.seed, state.step))
    optimiser, surgery = method.trainer.optimizers[0], method.surgery

    def lookahead(change: Tensor | None, tasks: Sequence[int] | None = None) -> Tensor:
        return _look_ahead(method, state, change, reduced.active if tasks is None else tasks)

    def preview(gradient: Tensor) -> Tensor:
        return change_by(optimiser, surgery.whole(), gradient)

    return Context(
        reduced.active,
        reduced.losses,
        state.step,
        state.step // method.spec.steps_per_epoch,
        generator,
        lookahead,
        surgery.sizes,
        preview,
        descent=lambda gradient: descent_by(optimiser, surgery.whole(), gradient),
        lr=float(optimiser.param_groups[0]["lr"]),
    )


@torch.no_grad()
def _look_ahead(method: Trained, state: StepState, change: Tensor | None, wanted: Sequence[int]) -> Tensor:
    """Returns the losses of the wanted tasks on the last micro-batch, shared parameters moved by ``change``."""
    last, names = cast(ReducedLosses, state.losses), list(method.tasks)
    if change is None and not state.stepped:
        totals = last.totals[list(wanted)]  # Nothing has moved since they were found.
    else:
        parameters, views = ([], []) if change is None else (method.surgery.whole(), method.surgery.views(change))
        with moved(method.network, parameters, views), method.trainer.precision_plugin.train_step_context():
            reseed(_noise_seed(method, state), method.device)
            sums = loss_sums(method.network, method.tasks, state.batch, [names[i] for i in wanted])
            totals = distributed.sum_(torch.stack(sums))
    factors = [last.scales[i] / last.counts[i] if last.counts[i] else float("nan") for i in wanted]
    return totals * distributed.sent(factors, totals)
