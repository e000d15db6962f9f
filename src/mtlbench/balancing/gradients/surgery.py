"""Gradient surgery: per-task rows collected, averaged over ranks, combined, and written to ``.grad``.

A batch goes one way: `collect` once per micro-batch inside the backward pass → `Collected` → `reduce` (rows, heads and
regularisers, *before* anything is combined: surgery is not linear) → `Reduced`, whose rows are combined by weights or
by a rule → `write`, after unscaling and before clipping. `update.Update.late` is this way in one place.

One process keeps the rows as autograd returns them. Several ranks, and rules that need the Jacobian as a matrix,
keep them side by side in one (T, P) matrix that is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mtlbench import distributed
from mtlbench.balancing.gradients import rows
from mtlbench.balancing.gradients.rows import Row
from mtlbench.errors import MethodError


class Surgery:
    """The parameters of one network as surgery sees them, and the memory for their rows. Holds nothing of a step.

    Args:
        shared: Parameters that two tasks or more reach; P numbers in all.
        owned: Parameters of each task alone, in task order.
        rest: Trainable parameters of balancer and regularisers that no task owns and that are not shared.
    """

    def __init__(
        self, shared: Sequence[nn.Parameter], owned: Sequence[Sequence[nn.Parameter]], rest: Sequence[nn.Parameter] = ()
    ):
        self.shared, self.owned, self.rest = list(shared), [list(o) for o in owned], list(rest)
        self.every = [*self.shared, *(p for o in self.owned for p in o), *self.rest]
        self.sizes = tuple(p.numel() for p in self.shared)
        self.tasks, self.parts, self.needs_matrix, self.scatters = len(owned), 1, False, False
        self._matrix: Tensor | None = None

    def configure(self, *, parts: int = 1, needs_matrix: bool = False, scatters: bool = False) -> None:
        """Sets how rows are kept, before the first step.

        Args:
            parts: Mini-batches whose rows are kept apart.
            needs_matrix: Whether a rule needs the (A, P) matrix.
            scatters: Whether every rank may hold a share of the columns only: enough for weights from a Gramian.
        """
        self.parts, self.needs_matrix, self.scatters = parts, needs_matrix, scatters

    @property
    def keeps_matrix(self) -> bool:
        """Whether rows lie side by side in one matrix."""
        return self.needs_matrix or distributed.world_size() > 1

    def whole(self) -> list[nn.Parameter]:
        """Returns the shared parameters for a rule that reads or moves them in training.

        Raises:
            MethodError: A rank holds only a share of them.
        """
        if any(hasattr(p, "full_tensor") for p in self.shared):
            raise MethodError(
                "trainer.strategy=fsdp leaves a share of each parameter to a rank. This rule reads or moves the shared "
                "parameters as a whole. Use trainer.strategy=ddp."
            )
        return self.shared

    def memory(self) -> Tensor:
        """Returns the matrix (parts, T, P), with a few columns more so that it can be cut for the ranks."""
        if self._matrix is None:
            like, world = self.every[0], distributed.world_size()
            size = -(-sum(self.sizes) // world) * world
            dtype = torch.promote_types(like.dtype, torch.float32)
            self._matrix = torch.zeros(self.parts, self.tasks, size, dtype=dtype, device=like.device)
        return self._matrix

    def views(self, vector: Tensor) -> list[Tensor]:
        """Returns a vector (P,) as one view per shared parameter."""
        parts = vector[: sum(self.sizes)].split(self.sizes)
        return [v.view_as(p) for v, p in zip(parts, self.shared, strict=True)]

    def fill(self, value: Tensor) -> None:
        """Fills every ``.grad`` with one value: what a gradient scaler looks at before `write` replaces it."""
        for parameter in self.every:
            parameter.grad = torch.zeros_like(parameter).copy_(value.expand_as(parameter))


# ---- collect --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """Gradients of this rank, added up over the micro-batches of a step so far.

    Attributes:
        rows: Per mini-batch, the row of each task on the shared parameters.
        heads: Gradients of each task's own parameters.
        extra: Gradients of regularisers and of the balancer's own loss on all parameters, or None.
        factor: What precision and accumulation put on the loss; all gradients carry it, as AMP needs.
    """

    rows: tuple[dict[int, Row], ...]
    heads: dict[int, Row]
    extra: Row | None
    factor: Tensor

    def overflows(self) -> Tensor:
        """Returns 1. if a gradient is not finite on some rank, else 0. (a tensor, 0-d)."""
        found = [t for part in self.rows for row in part.values() for t in row]
        found += [t for row in (*self.heads.values(), self.extra or []) for t in row]
        bad = [~t.isfinite().all() for t in found]
        flag = torch.stack(bad).any().float() if bad else torch.zeros((), device=self.factor.device)
        return distributed.any_rank(flag)


def collect(
    surgery: Surgery,
    losses: Mapping[int, Tensor],
    extra: Tensor | None,
    factor: Tensor,
    part: int = 0,
    *,
    before: Collected | None = None,
    extra_elsewhere: bool = False,
) -> Collected:
    """Returns the gradients of one micro-batch, added to those before it in their memory.

    Args:
        surgery: The parameters.
        losses: Loss of each active task, weighted, by task index.
        extra: Sum of regularisers and of the balancer's own loss, or None where none has a gradient.
        factor: What precision and accumulation put on the loss.
        part: Which of the mini-batches of a step this is.
        before: What the earlier micro-batches of the step gave; it is used up.
        extra_elsewhere: Whether some other rank has an ``extra``: all of them average it.
    """
    kept = before or Collected(tuple({} for _ in range(surgery.parts)), {}, None, factor)
    last, cut = list(losses)[-1] if losses else -1, len(surgery.shared)
    for i, loss in losses.items():
        wanted = [*surgery.shared, *surgery.owned[i]]
        got = gradients(loss, wanted, factor, keep=i != last or extra is not None)
        kept.rows[part][i] = _kept_row(surgery, kept.rows[part].get(i), got[:cut], part, i)
        kept.heads[i] = _added(kept.heads.get(i), got[cut:])
    more = kept.extra
    if extra is not None:
        more = _added(more, gradients(extra, surgery.every, factor))
    elif extra_elsewhere and more is None:
        more = rows.filled([None] * len(surgery.every), surgery.every)
    return replace(kept, extra=more, factor=factor)


def _kept_row(surgery: Surgery, before: Row | None, got: Row, part: int, task: int) -> Row:
    if before is not None:
        return _added(before, got)
    if not surgery.keeps_matrix:
        return got
    places = surgery.views(surgery.memory()[part, task])
    for place, value in zip(places, got, strict=True):
        place.copy_(value)
    return places


# ---- reduce ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reduced:
    """Gradients of a step, averaged over ranks and free of what precision put on them.

    Attributes:
        surgery: The parameters.
        rows, heads, extra: See `Collected`.
        sharded: Whether a row is only this rank's share of its columns.
    """

    surgery: Surgery
    rows: tuple[dict[int, Row], ...]
    heads: dict[int, Row]
    extra: Row | None
    sharded: bool

    def of(self, part: int, active: Sequence[int]) -> list[Row]:
        """Returns the rows of the active tasks; zeros for a task without a label in this mini-batch."""
        shared = self.surgery.shared
        known = (row for found in self.rows for row in found.values())
        like = next(known, None) or rows.filled([None] * len(shared), shared)
        return [self.rows[part].get(i) or [torch.zeros_like(t) for t in like] for i in active]

    def gramian(self, active: Sequence[int]) -> Tensor:
        """Returns the Gramian (A, A) of the active tasks, float64; of the first two mini-batches if there are more."""
        found = rows.gramian(self.of(0, active), self.of(1, active) if len(self.rows) > 1 else None)
        return distributed.sum_(found) if self.sharded else found

    def last_gramian(self, active: Sequence[int]) -> Tensor:
        """Returns the Gramian (A, A) of the rows that the update is made of, float64."""
        found = rows.gramian(self.of(-1, active))
        return distributed.sum_(found) if self.sharded else found

    def suspects(self) -> Tensor:
        """Returns (T,) bool: tasks with a row that is not finite in its first or last tensor.

        A bad number flows down from where it arises, so that the first tensor of a row shows nearly all of them.
        """
        found = [self.rows[0].get(i) for i in range(self.surgery.tasks)]
        fine = torch.zeros((), dtype=torch.bool, device=self.surgery.every[0].device)
        return torch.stack([~(row[0].sum() + row[-1].sum()).isfinite() if row else fine for row in found])

    def first_row(self, active: Sequence[int]) -> Row:
        """Returns a copy of the first active row, which combining uses up."""
        return [tensor.clone() for tensor in self.of(0, active[:1])[0]]

    def along(self, direction: Row, first: Row, active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns inner products (A,) of the rows with the update made of them, and its squared norm.

        Args:
            direction: The update.
            first: The first active row, as `first_row` kept it.
            active: The active tasks.
        """
        found = rows.gramian([direction], [first, *self.of(0, active)[1:], direction])[0]
        return found[:-1], found[-1]


def reduce(surgery: Surgery, collected: Collected, scale: Tensor | float) -> Reduced:
    """Divides what was collected by ``scale`` and averages it over ranks, in its memory.

    A row of one mini-batch of several becomes its own mean: only heads and regularisers average over all.
    """
    kept, heads, extra = collected.rows, collected.heads, collected.extra
    for part in kept:
        _divide(part.values(), scale / surgery.parts)
    _divide([*heads.values(), extra or []], scale)
    if distributed.world_size() == 1:
        return Reduced(surgery, kept, heads, extra, sharded=False)
    sharded = distributed.scatters() and surgery.scatters
    for index, part in enumerate(kept):
        for i in sorted(part):
            vector = surgery.memory()[index, i]
            part[i] = [distributed.scatter_mean(vector)] if sharded else surgery.views(distributed.mean_(vector))
    for i in sorted(heads):
        heads[i] = distributed.mean_row(heads[i])
    return Reduced(surgery, kept, heads, None if extra is None else distributed.mean_row(extra), sharded)


# ---- combine --------------------------------------------------------------------------------------------------------


def blend(reduced: Reduced, weights: Sequence[float], active: Sequence[int]) -> Row:
    """Returns Σ w_i · row_i of the last mini-batch, one tensor per shared parameter; uses up the rows."""
    if not active or not reduced.surgery.shared:
        return []
    found = rows.combine(reduced.of(-1, active), weights)
    return reduced.surgery.views(distributed.gather(found[0])) if reduced.sharded else found


def apply(reduced: Reduced, rule: Callable[[Tensor], Tensor], active: Sequence[int]) -> Row:
    """Applies a rule (A, P) → (P,) to the rows; returns one tensor per shared parameter and uses the rows up.

    A rule that needs no matrix treats columns alone and is called block by block.
    """
    surgery = reduced.surgery
    if not active or not surgery.shared:
        return []
    if not surgery.needs_matrix:
        return rows.combine_by(rule, reduced.of(0, active))
    matrix = surgery.memory()[0, :, : sum(surgery.sizes)]
    # A copy: what a rule hands over may be what it remembers, and ``.grad`` is clipped in place.
    return surgery.views(rule(matrix if len(active) == surgery.tasks else matrix[list(active)]).clone())


# ---- write ----------------------------------------------------------------------------------------------------------


def write(
    reduced: Reduced, direction: Sequence[Tensor], active: Sequence[int], head_weights: Sequence[float] | None = None
) -> None:
    """Writes direction, head and regulariser gradients to ``.grad``; None for tasks absent everywhere.

    Args:
        reduced: Where the gradients of heads and regularisers are.
        direction: One tensor per shared parameter; empty without an active task.
        active: The active tasks.
        head_weights: Factors on the gradients of their heads, or None.
    """
    surgery, heads = reduced.surgery, reduced.heads
    for parameter, value in zip(surgery.shared, direction, strict=bool(direction)):
        parameter.grad = value.to(parameter.dtype)
    for position, i in enumerate(active):
        if head_weights is not None and heads[i]:
            torch._foreach_mul_(heads[i], head_weights[position])
        for parameter, value in zip(surgery.owned[i], heads[i], strict=True):
            parameter.grad = value.to(parameter.dtype)
    if reduced.extra is not None:
        for parameter, value in zip(surgery.every, reduced.extra, strict=True):
            value = value.to(parameter.dtype)
            parameter.grad = value if parameter.grad is None else parameter.grad.add_(value)
    for i in set(range(surgery.tasks)) - set(active):
        for parameter in surgery.owned[i]:
            parameter.grad = None


# ---- inside ---------------------------------------------------------------------------------------------------------


def gradients(loss: Tensor, wanted: Sequence[Tensor], factor: Tensor, *, keep: bool = False) -> Row:
    """Returns the gradients of one loss, times a factor; zeros where it does not reach."""
    if not wanted or not loss.requires_grad:
        return rows.filled([None] * len(wanted), wanted)
    given = factor.to(loss)
    found = torch.autograd.grad(loss, wanted, given, retain_graph=keep, allow_unused=True)
    return rows.filled(found, wanted, given)


def _divide(every: Iterable[Row], scale: Tensor | float) -> None:
    # Whether it is one is asked on the host alone: an accelerator would have to be waited for.
    if not isinstance(scale, Tensor) or scale.device.type != "cpu" or scale != 1:
        for row in filter(None, every):
            torch._foreach_div_(row, scale)


def _added(total: Row | None, more: Row) -> Row:
    if total is None or not more:
        return more
    torch._foreach_add_(total, more)
    return total
