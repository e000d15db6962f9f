"""Gradient surgery: per-task rows collected, averaged over ranks, combined, and written to ``.grad``.

Order of one optimiser step: `collect` per micro-batch inside the backward pass, `reduce` once (rows, heads and
regularisers, *before* anything is combined: surgery is not linear), then `gramian` and `blend`, or a rule on the
rows themselves, and `write` after unscaling and before clipping.

One process keeps the rows as autograd returns them. Several ranks, and rules that need the Jacobian as a matrix,
keep them side by side in one (T, P) matrix that is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtlbench import distributed
from mtlbench.balancing.gradients import rows
from mtlbench.balancing.gradients.rows import Row


class Surgery:
    """Collects and combines the gradients of one network.

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
        self.factor: Tensor | None = None
        self._matrix: Tensor | None = None
        self.clear()

    def configure(self, *, parts: int = 1, needs_matrix: bool = False, scatters: bool = False) -> None:
        """Sets how rows are kept.

        Args:
            parts: Mini-batches whose rows are kept apart.
            needs_matrix: Whether a rule needs the (A, P) matrix.
            scatters: Whether every rank may hold a share of the columns only: enough for weights from a Gramian.
        """
        self.parts, self.needs_matrix, self.scatters = parts, needs_matrix, scatters
        self.clear()

    def clear(self) -> None:
        """Forgets what was collected."""
        self._rows: list[dict[int, Row]] = [{} for _ in range(self.parts)]
        self._heads: dict[int, Row] = {}
        self._extra: Row | None = None
        self._shards = False
        self.factor = None

    def collect(
        self,
        losses: Mapping[int, Tensor],
        extra: Tensor | None,
        factor: Tensor,
        part: int = 0,
        *,
        extra_elsewhere: bool = False,
    ) -> None:
        """Adds the gradients of one micro-batch.

        Args:
            losses: Loss of each active task, weighted, by task index.
            extra: Sum of regularisers and of the balancer's own loss, or None where none has a gradient.
            factor: What precision and accumulation put on the loss; gradients carry it, as AMP needs.
            part: Which of the mini-batches of a step this is.
            extra_elsewhere: Whether some other rank has an ``extra``: all of them average it.
        """
        last, cut = list(losses)[-1] if losses else -1, len(self.shared)
        for i, loss in losses.items():
            wanted = [*self.shared, *self.owned[i]]
            got = gradients(loss, wanted, factor, keep=i != last or extra is not None)
            self._add_row(part, i, got[:cut])
            self._heads[i] = _added(self._heads.get(i), got[cut:])
        if extra is not None:
            self._extra = _added(self._extra, gradients(extra, self.every, factor))
        elif extra_elsewhere and self._extra is None:
            self._extra = rows.filled([None] * len(self.every), self.every)
        self.factor = factor

    def overflows(self) -> Tensor:
        """Returns 1. if a collected gradient is not finite on some rank, else 0. (a tensor, 0-d)."""
        found = [t for part in self._rows for row in part.values() for t in row]
        found += [t for row in (*self._heads.values(), self._extra or []) for t in row]
        bad = [~t.isfinite().all() for t in found]
        flag = torch.stack(bad).any().float() if bad else torch.zeros((), device=self.every[0].device)
        return distributed.any_rank(flag)

    def reduce(self, scale: Tensor | float) -> None:
        """Divides by ``scale`` and averages everything over ranks.

        A row of one mini-batch of several becomes its own mean: only heads and regularisers average over all.
        """
        for part in self._rows:
            _divide(part.values(), scale / self.parts)
        _divide([*self._heads.values(), self._extra or []], scale)
        if distributed.world_size() == 1:
            return
        self._shards = distributed.scatters() and self.scatters
        for index, part in enumerate(self._rows):
            for i in sorted(part):
                vector = self._vector(index, i)
                part[i] = [distributed.scatter_mean(vector)] if self._shards else self.views(distributed.mean_(vector))
        for i in sorted(self._heads):
            self._heads[i] = distributed.mean_row(self._heads[i])
        if self._extra is not None:
            self._extra = distributed.mean_row(self._extra)

    def gramian(self, active: Sequence[int]) -> Tensor:
        """Returns the Gramian (A, A) of the active tasks, float64; of the first two mini-batches if there are more."""
        one = self._of(0, active)
        found = rows.gramian(one, self._of(1, active) if self.parts > 1 else None)
        return distributed.sum_(found) if self._shards else found

    def suspects(self) -> Tensor:
        """Returns (T,) bool: tasks with a row that is not finite in its first or last tensor.

        A bad number flows down from where it arises, so that the first tensor of a row shows nearly all of them.
        """
        found = [self._rows[0].get(i) for i in range(self.tasks)]
        fine = torch.zeros((), dtype=torch.bool, device=self.every[0].device)
        return torch.stack([~(row[0].sum() + row[-1].sum()).isfinite() if row else fine for row in found])

    def first_row(self, active: Sequence[int]) -> Row:
        """Returns a copy of the first active row, which combining uses up."""
        return [tensor.clone() for tensor in self._of(0, active[:1])[0]]

    def along(self, direction: Row, first: Row, active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns inner products (A,) of the rows with the update made of them, and its squared norm.

        Args:
            direction: The update.
            first: The first active row, as `first_row` kept it.
            active: The active tasks.
        """
        found = rows.gramian([direction], [first, *self._of(0, active)[1:], direction])[0]
        return found[:-1], found[-1]

    def last_gramian(self, active: Sequence[int]) -> Tensor:
        """Returns the Gramian (A, A) of the rows that the update is made of, float64."""
        found = rows.gramian(self._of(self.parts - 1, active))
        return distributed.sum_(found) if self._shards else found

    def blend(self, weights: Sequence[float], active: Sequence[int]) -> Row:
        """Returns Σ w_i · row_i of the last mini-batch, one tensor per shared parameter; uses up the rows."""
        found = rows.combine(self._of(self.parts - 1, active), weights) if active and self.shared else []
        if self._shards and found:
            return self.views(distributed.gather(found[0]))
        return found

    def apply(self, rule: Callable[[Tensor], Tensor], active: Sequence[int]) -> Row:
        """Returns what a rule (A, P) → (P,) makes of the rows, one tensor per shared parameter; uses them up.

        A rule that needs no matrix treats columns alone and is called block by block.
        """
        if not active or not self.shared:
            return []
        if not self.needs_matrix:
            return rows.combine_by(rule, self._of(0, active))
        # A copy: what a rule hands over may be what it remembers, and ``.grad`` is clipped in place.
        return self.views(rule(self._matrix_of(active)).clone())

    def write(self, direction: Sequence[Tensor], active: Sequence[int], head_weights: Sequence[float] | None) -> None:
        """Writes direction, head and regulariser gradients to ``.grad``; None for tasks absent everywhere.

        Args:
            direction: One tensor per shared parameter; empty without an active task.
            active: The active tasks.
            head_weights: Factors on the gradients of their heads, or None.
        """
        for parameter, value in zip(self.shared, direction, strict=bool(direction)):
            parameter.grad = value.to(parameter.dtype)
        for position, i in enumerate(active):
            if head_weights is not None and self._heads[i]:
                torch._foreach_mul_(self._heads[i], head_weights[position])
            for parameter, value in zip(self.owned[i], self._heads[i], strict=True):
                parameter.grad = value.to(parameter.dtype)
        if self._extra is not None:
            for parameter, value in zip(self.every, self._extra, strict=True):
                value = value.to(parameter.dtype)
                parameter.grad = value if parameter.grad is None else parameter.grad.add_(value)
        for i in set(range(self.tasks)) - set(active):
            for parameter in self.owned[i]:
                parameter.grad = None

    def fill(self, value: Tensor) -> None:
        """Fills every ``.grad`` with one value: what a gradient scaler looks at before `write` replaces it."""
        for parameter in self.every:
            parameter.grad = torch.zeros_like(parameter).copy_(value.expand_as(parameter))

    def _add_row(self, part: int, task: int, got: Row) -> None:
        found = self._rows[part]
        if task in found:
            found[task] = _added(found[task], got)
        elif self.needs_matrix or distributed.world_size() > 1:
            found[task] = self.views(self._vector(part, task))
            for place, value in zip(found[task], got, strict=True):
                place.copy_(value)
        else:
            found[task] = got

    def _of(self, part: int, active: Sequence[int]) -> list[Row]:
        """Returns the rows of the active tasks; zeros for a task without a label in this mini-batch."""
        known = (row for found in self._rows for row in found.values())
        like = next(known, None) or rows.filled([None] * len(self.shared), self.shared)
        return [self._rows[part].get(i) or [torch.zeros_like(t) for t in like] for i in active]

    def _matrix_of(self, active: Sequence[int]) -> Tensor:
        whole = self._memory()[0, :, : sum(self.sizes)]
        return whole if len(active) == self.tasks else whole[list(active)]

    def _vector(self, part: int, task: int) -> Tensor:
        return self._memory()[part, task]

    def _memory(self) -> Tensor:
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
