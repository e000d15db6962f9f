"""Gradient surgery: per-task rows collected, averaged over ranks, combined, and written to ``.grad``.

Order of one optimiser step: `collect` per micro-batch inside the backward pass, `reduce` once (a single collective
for rows, heads and regularisers, *before* anything is combined: surgery is not linear), `write` after unscaling and
before clipping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtlbench.balancing import ranks


class _Flat:
    """A list of parameters as one flat vector."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = list(parameters)
        self.sizes = [p.numel() for p in self.parameters]
        self.size = sum(self.sizes)

    def pack(self, gradients: Sequence[Tensor | None], out: Tensor, *, add: bool) -> None:
        parts = [
            torch.zeros(n, dtype=out.dtype, device=out.device) if g is None else g.reshape(-1).to(out.dtype)
            for g, n in zip(gradients, self.sizes, strict=True)
        ]
        if not parts:
            return
        if add:
            out += torch.cat(parts)
        else:
            torch.cat(parts, out=out)

    def views(self, vector: Tensor) -> list[Tensor]:
        return [v.view_as(p) for v, p in zip(vector.split(self.sizes), self.parameters, strict=True)]


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
        self.shared, self.owned, self.rest = _Flat(shared), [_Flat(o) for o in owned], _Flat(rest)
        self.every = _Flat([*shared, *(p for o in owned for p in o), *rest])
        self.tasks = len(owned)
        self._buffer: Tensor | None = None
        self._with_extra = False
        self._active: set[int] = set()
        self.factor: Tensor | None = None

    def collect(self, rows: Mapping[int, Tensor], extra: Tensor | None, factor: Tensor) -> None:
        """Adds the gradients of one micro-batch.

        Args:
            rows: Loss of each active task, weighted, by task index.
            extra: Sum of regularisers and of the balancer's own loss, or None where none has a gradient.
            factor: What precision and accumulation put on the loss; gradients carry it, as AMP needs.
        """
        had_extra = self._with_extra
        rows_out, heads_out, extra_out = self._parts(extra is not None)
        last = list(rows)[-1] if rows else -1
        for i, row in rows.items():
            wanted = [*self.shared.parameters, *self.owned[i].parameters]
            keep = i != last or extra is not None
            got = torch.autograd.grad(row, wanted, factor.to(row.dtype), retain_graph=keep, allow_unused=True)
            add, cut = i in self._active, len(self.shared.parameters)
            self.shared.pack(got[:cut], rows_out[i], add=add)
            self.owned[i].pack(got[cut:], heads_out[i], add=add)
            self._active.add(i)
        if extra is not None:
            got = torch.autograd.grad(extra, self.every.parameters, factor.to(extra.dtype), allow_unused=True)
            self.every.pack(got, extra_out, add=had_extra)
        self.factor = factor

    def rows(self, losses: Sequence[Tensor]) -> Tensor:
        """Returns the shared gradients (A, P) of this rank and keeps the graph: a look, not a step."""
        found = []
        for loss in losses:
            got = torch.autograd.grad(loss, self.shared.parameters, retain_graph=True, allow_unused=True)
            row = torch.empty(self.shared.size, dtype=loss.dtype, device=loss.device)
            self.shared.pack(got, row, add=False)
            found.append(row)
        return torch.stack(found)

    def finite(self) -> Tensor:
        """Returns 0. if every collected gradient is finite on every rank, else 1. (a tensor, 0-d)."""
        buffer = self._settled()
        return ranks.any_rank((~buffer.isfinite().all()).to(buffer.dtype))

    def reduce(self, scale: Tensor | float) -> Tensor:
        """Divides by ``scale``, averages everything over ranks in one collective, and returns the rows (T, P)."""
        buffer = self._settled()
        # Whether it is one is asked on the host alone: an accelerator would have to be waited for.
        if not isinstance(scale, Tensor) or scale.device.type != "cpu" or scale != 1:
            buffer /= scale
        ranks.mean_(buffer)
        return self._parts(self._with_extra)[0]

    def write(self, direction: Tensor, active: Sequence[int]) -> None:
        """Writes direction (P,), head and regulariser gradients to ``.grad``; None for tasks absent everywhere."""
        _, heads, extra = self._parts(self._with_extra)
        for parameter, view in zip(self.shared.parameters, self.shared.views(direction), strict=True):
            parameter.grad = view
        for flat, values in zip(self.owned, heads, strict=True):
            for parameter, view in zip(flat.parameters, flat.views(values), strict=True):
                parameter.grad = view
        if self._with_extra:
            for parameter, view in zip(self.every.parameters, self.every.views(extra), strict=True):
                parameter.grad = view if parameter.grad is None else parameter.grad + view
        for i in set(range(self.tasks)) - set(active):
            for parameter in self.owned[i].parameters:
                parameter.grad = None

    def clear(self) -> None:
        """Forgets what was collected; the memory is kept for the next step."""
        self._active.clear()
        self._with_extra, self.factor = False, None

    def fill(self, value: Tensor) -> None:
        """Fills every ``.grad`` with one value: what a gradient scaler looks at before `write` replaces it."""
        for parameter in self.every.parameters:
            parameter.grad = torch.zeros_like(parameter).copy_(value.expand_as(parameter))

    def _settled(self) -> Tensor:
        """Returns what was collected as one vector; tasks without a row in this step are zero in it."""
        rows, heads, _ = self._parts(self._with_extra)
        for i in set(range(self.tasks)) - self._active:
            rows[i].zero_()
            heads[i].zero_()
        return self._memory()

    def _memory(self) -> Tensor:
        """Returns the one buffer: rows and heads, and room for regularisers from the step on that first has one."""
        needed = self.tasks * self.shared.size + sum(o.size for o in self.owned)
        needed += self.every.size if self._with_extra else 0
        if self._buffer is None or self._buffer.numel() < needed:
            like, old = self.every.parameters[0], self._buffer
            # At least float32: rows of a bf16 network would lose what surgery compares.
            dtype = torch.promote_types(like.dtype, torch.float32)
            self._buffer = torch.zeros(needed, dtype=dtype, device=like.device)
            if old is not None:
                self._buffer[: old.numel()] = old
        return self._buffer[:needed]

    def _parts(self, with_extra: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        """Returns views of the one buffer: rows (T, P), one vector per head, extra."""
        self._with_extra = self._with_extra or with_extra
        sizes = [self.tasks * self.shared.size, *(o.size for o in self.owned)]
        sizes.append(self.every.size if self._with_extra else 0)
        rows, *heads, extra = self._memory().split(sizes)
        return rows.view(self.tasks, self.shared.size), heads, extra


def gramian_of(rows: Tensor) -> Tensor:
    """Returns G Gᵀ as float64 (A, A) from rows (A, P)."""
    return (rows @ rows.T).double()
