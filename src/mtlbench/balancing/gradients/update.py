"""One update: from the losses of a step to ``.grad``, for whatever rule a method follows.

Three ways. *Plain*: one ordinary backward pass, where no rule looks at gradients. *Late*: one backward pass per task,
rows kept until the optimiser is about to step (`surgery`); it holds with precision, accumulation and any rule.
*Early*: weights first, inside the backward pass, then one more pass for their weighted sum; rows of a small view
(representation, last shared layer), or of all parameters chunk by chunk, so that T × P is never in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtlbench import distributed
from mtlbench.balancing.base import GRADIENT_HOOKS, HEADS, VIEWS, Balancer, Context
from mtlbench.balancing.gradients import rows
from mtlbench.balancing.gradients.diagnostics import Snapshot
from mtlbench.balancing.gradients.rows import Row
from mtlbench.balancing.gradients.surgery import Collected, Reduced, Surgery, apply, blend, gradients, reduce, write
from mtlbench.errors import MethodError, unknown_name

WAYS = ("auto", "plain", "light")
"""Ways to keep the rows of a rule on the Gramian."""

LIGHT_ABOVE = 2 << 30
"""Bytes of the Jacobian above which `Needs.light` is chosen where it can be."""

CHUNK = 1 << 30
"""Bytes of the Jacobian that the light way holds at once."""

NO_REPRESENTATION = (
    "A rule on the representation needs one tensor through which all heads read the shared parameters. "
    "This network names none (Outputs.representation), hides it (trainer.compile), or it is frozen. "
    "Choose another network or the rule on parameters."
)


class Rule(Protocol):
    """The hooks of a method."""

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """See `Balancer.gradient_weights`."""

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """See `Balancer.combine_gradients`."""


@dataclass(frozen=True)
class Needs:
    """What a rule needs of gradients.

    Attributes:
        hook: ``"gradient_weights"``, ``"combine_gradients"``, or None for a rule that looks at losses alone.
        view, batches, heads: See `Balancer`.
        columnwise: See `Balancer.COLUMNWISE`.
        light: Never hold the (T, P) Jacobian; for rules on the Gramian of all shared parameters.
    """

    hook: str | None = None
    view: str = "parameters"
    batches: int = 1
    heads: str = "unit"
    columnwise: bool = False
    light: bool = False

    @property
    def early(self) -> bool:
        """Whether weights are found inside the backward pass."""
        return self.light or self.view != "parameters"

    @property
    def whole(self) -> bool:
        """Whether the Gramian of all shared parameters, on one mini-batch, is all it needs."""
        return self.hook == "gradient_weights" and self.view == "parameters" and self.batches == 1

    def chosen(self, way: str, *, large: bool = False) -> Needs:
        """Returns these needs with the way to keep rows: ``"plain"``, ``"light"``, or ``"auto"``, light if large."""
        return replace(self, light=self.hook is not None and (way == "light" or way == "auto" and self.whole and large))


@dataclass(frozen=True)
class Combined:
    """What a rule made of the rows of one step.

    Attributes:
        direction: One tensor per shared parameter; empty without an active task.
        weights: One weight per active task, or None for a rule that gives none.
        seen: The update as `Update.late` was asked to look at it, or None.
        suspects: (T,) bool: tasks whose row may not be finite, or None where weights have been checked.
    """

    direction: Row
    weights: list[float] | None = None
    seen: Snapshot | None = None
    suspects: Tensor | None = None


class Update:
    """The balancing of one network. Holds nothing of a step.

    Args:
        needs: What the rule needs.
        surgery: Parameters and their gradients.
        rule: The hooks.
        last_shared: Parameters of the last shared layer, for that view.
    """

    def __init__(self, needs: Needs, surgery: Surgery, rule: Rule, last_shared: Sequence[nn.Parameter] = ()):
        self.needs, self.surgery, self.rule, self.last_shared = needs, surgery, rule, list(last_shared)
        surgery.configure(
            parts=needs.batches,
            needs_matrix=needs.hook == "combine_gradients" and not needs.columnwise,
            scatters=needs.hook == "gradient_weights",
        )

    def settle(self, trainer: Any, choice: str = "auto") -> None:
        """Chooses how rows are kept, and refuses a trainer under which the rule would not be exact.

        Args:
            trainer: Of Lightning, with strategy and optimisers in place.
            choice: ``"auto"``, ``"plain"`` or ``"light"``.

        Raises:
            MethodError: With the reason.
        """
        large = 4 * self.surgery.tasks * sum(self.surgery.sizes) > LIGHT_ABOVE
        accumulate = trainer.accumulate_grad_batches // self.needs.batches
        self.needs = self.needs.chosen(choice, large=large and accumulate == 1)
        faults = [*refusals(self.needs, accumulate), *self._refusals(trainer)]
        if faults:
            raise MethodError("\n".join(faults))

    def _refusals(self, trainer: Any) -> Iterator[str]:
        """Yields why the rule cannot work with the trainer's strategy, optimisers or parameters."""
        if self.needs.hook is None:
            return
        strategy = type(trainer.strategy).__name__
        if any(name in strategy for name in ("FSDP", "DeepSpeed", "ModelParallel")):
            yield (
                f"A gradient rule needs whole gradients on every rank; {strategy} cuts parameters into shards. "
                "Use DDP, or a loss rule."
            )
        # PyTorch and Lightning look at this attribute, which only `fused=True` at construction sets.
        unscales = any(getattr(optimiser, "_step_supports_amp_scaling", False) for optimiser in trainer.optimizers)
        if unscales and trainer.precision == "16-mixed":
            yield (
                "A fused optimiser unscales fp16 gradients by itself, before a gradient rule could see them. "
                "Use fused=False, or trainer.precision=bf16-mixed."
            )
        yield from self.view_refusals()

    def view_refusals(self, z: Sequence[Tensor | None] = ()) -> Iterator[str]:
        """Yields why the network cannot give what the rule looks at.

        Args:
            z: The representation of a forward pass, where there was one.
        """
        if self.needs.view == "last_shared" and not self.last_shared:
            yield (
                "A rule on the last shared layer needs a network that has one (last_shared_parameters()); this one "
                "names none, or it is frozen. Choose another network or rule."
            )
        if self.needs.view == "representation" and z and not any(t is not None and t.requires_grad for t in z):
            yield NO_REPRESENTATION

    def early(
        self,
        losses: Mapping[int, Tensor],
        extra: Tensor | None,
        factor: Tensor,
        ctx: Context,
        z: Sequence[Tensor],
        *,
        look: bool = False,
    ) -> Snapshot | None:
        """Finds weights and back-propagates the weighted sum, all within the backward pass.

        Args:
            losses: Loss of each active task by task index.
            extra: Sum of regularisers and of the balancer's own loss, or None.
            factor: What precision puts on the loss.
            ctx: Context of the step.
            z: The shared representation on this rank, one tensor per stream.
            look: Return what the update looks like on the shared parameters, whatever the view of the rule.
        """
        gramian = self._early_gramian(list(losses.values()), factor, z)
        weights = self._weights(gramian, ctx)
        seen = None
        if look:
            whole = gramian if self.needs.light else self.look(list(losses.values()), factor)
            seen = _snapshot(ctx, whole, weights)
        self._back_propagate(losses, weights, extra, factor)
        return seen

    def late(self, collected: Collected, scale: Tensor | float, ctx: Context, *, look: bool = False) -> Combined:
        """Averages what was collected, combines it and writes it to ``.grad``.

        Args:
            collected: The gradients of all micro-batches; they are used up.
            scale: What precision put on the losses; gradients carry it.
            ctx: Context of the step.
            look: Keep what the update looks like.
        """
        reduced = reduce(self.surgery, collected, scale)
        by_rule = self.needs.hook == "combine_gradients"
        combined = self._by_rule(reduced, ctx, look=look) if by_rule else self._by_weights(reduced, ctx, look=look)
        write(reduced, combined.direction, ctx.active, combined.weights if self.needs.heads == "weighted" else None)
        return combined

    def look(self, losses: Sequence[Tensor], factor: Tensor) -> Tensor:
        """Returns the Gramian (A, A) of the shared gradients, averaged over ranks, and keeps the graph.

        Args:
            losses: Of the active tasks.
            factor: What precision puts on a loss; the Gramian is free of it.
        """
        found = torch.stack([self._gramian_of(losses, c, factor) for c in self._chunks(len(losses))]).sum(0)
        return found / factor.to(found) ** 2

    def _by_rule(self, reduced: Reduced, ctx: Context, *, look: bool) -> Combined:
        """Combines rows by a rule on the Jacobian."""
        active, suspects = ctx.active, reduced.suspects()
        look = look and bool(active and self.surgery.shared)
        gramian, first = (reduced.last_gramian(active), reduced.first_row(active)) if look else (None, [])
        direction = apply(reduced, lambda matrix: self.rule.combine_gradients(matrix, ctx), active)
        if gramian is None:
            return Combined(direction, suspects=suspects)
        along, length = reduced.along(direction, first, active)
        return Combined(direction, None, Snapshot(active, gramian, along, length, None, ctx.losses), suspects)

    def _by_weights(self, reduced: Reduced, ctx: Context, *, look: bool) -> Combined:
        """Combines rows by weights from their Gramian."""
        weights = self._weights(reduced.gramian(ctx.active), ctx)
        seen = _snapshot(ctx, reduced.last_gramian(ctx.active), weights) if look else None
        return Combined(blend(reduced, weights, ctx.active), weights, seen)

    def _back_propagate(
        self, losses: Mapping[int, Tensor], weights: list[float], extra: Tensor | None, factor: Tensor
    ) -> None:
        """Writes the gradients of the weighted sum, of heads and of ``extra``, averaged over ranks."""
        surgery, weighted = self.surgery, self.needs.heads == "weighted"
        own = {
            i: gradients(loss, surgery.owned[i], factor * w if weighted else factor, keep=True)
            for (i, loss), w in zip(losses.items(), weights, strict=True)
        }
        start = 0.0 * factor if extra is None else extra
        total = sum((w * loss for w, loss in zip(weights, losses.values(), strict=True)), start)
        trunk = [*surgery.shared, *surgery.rest]
        heads = [p for i in own for p in surgery.owned[i]]
        if extra is not None:
            more = iter(gradients(extra, heads, factor, keep=True))
            own = {i: [g + next(more) for g in found] for i, found in own.items()}
        found = gradients(total, trunk, factor) if total.requires_grad else []
        values = distributed.mean_row([*found, *(g for row in own.values() for g in row)])
        for parameter, value in zip([*trunk[: len(found)], *heads], values, strict=True):
            parameter.grad = value.to(parameter.dtype)

    def _weights(self, gramian: Tensor, ctx: Context) -> list[float]:
        """Returns one weight per active task; brings T × T numbers to the host, the one wait of a step."""
        if not ctx.active:
            return []
        gramian = gramian.cpu()
        if not gramian.isfinite().all():
            # A bad row spoils a column of all others: the diagonal shows whose it is.
            own = gramian.diagonal().isfinite().tolist()
            raise NonFinite([i for i, fine in zip(ctx.active, own, strict=True) if not fine] or list(ctx.active))
        weights = self.rule.gradient_weights(gramian, ctx)
        if weights.shape != gramian.shape[:1] or not weights.isfinite().all():
            raise MethodError(
                f"gradient_weights must return {len(gramian)} finite weights, one per active task. Found {weights}."
            )
        return weights.tolist()

    def _early_gramian(self, losses: list[Tensor], factor: Tensor, z: Sequence[Tensor]) -> Tensor:
        if self.needs.view == "representation":
            # Rows of different ranks lie side by side: their Gramians add; a loss carries a factor of ranks.
            self._check_reached(losses, z)
            found = distributed.sum_(self._gramian_of(losses, z, factor, average=False)) / distributed.world_size() ** 2
        elif self.needs.view == "last_shared":
            found = self._gramian_of(losses, self.last_shared, factor)
        else:
            return self.look(losses, factor)
        return found / factor.to(found) ** 2

    @staticmethod
    def _check_reached(losses: list[Tensor], z: Sequence[Tensor]) -> None:
        """Refuses a representation that no head reads, or that nothing below can learn from."""
        known = [tensor for tensor in z if tensor.requires_grad]
        if losses and not any(
            found is not None
            for loss in losses
            if known
            for found in torch.autograd.grad(loss, known, retain_graph=True, allow_unused=True)
        ):
            raise MethodError(NO_REPRESENTATION)

    def _gramian_of(
        self, losses: Sequence[Tensor], wanted: Sequence[Tensor], factor: Tensor, *, average: bool = True
    ) -> Tensor:
        found = [gradients(loss, wanted, factor, keep=True) for loss in losses]
        return rows.gramian([distributed.mean_row(row) for row in found] if average else found)

    def _chunks(self, tasks: int) -> list[list[nn.Parameter]]:
        """Returns the shared parameters in order, cut so that a chunk's rows take `CHUNK` bytes, or one tensor each."""
        chunks: list[list[nn.Parameter]] = [[]]
        held = 0
        for parameter in self.surgery.shared:
            size = 4 * tasks * parameter.numel()
            if chunks[-1] and held + size > CHUNK:
                chunks.append([])
                held = 0
            chunks[-1].append(parameter)
            held += size
        return chunks


def _snapshot(ctx: Context, gramian: Tensor, weights: list[float]) -> Snapshot | None:
    if not weights:
        return None
    found = torch.tensor(weights, dtype=gramian.dtype, device=gramian.device)
    return Snapshot.of_weights(ctx.active, gramian, found, ctx.losses)


def needs_of(uses: Callable[[str], bool], balancer: Balancer) -> Needs:
    """Returns what the rule of a method needs.

    Args:
        uses: Tells whether the method or its balancer overrides a hook.
        balancer: The method's balancer.
    """
    hook = next((hook for hook in reversed(GRADIENT_HOOKS) if uses(hook)), None)
    if hook is None:
        return Needs()
    for what, given, known in (("view", balancer.view, VIEWS), ("heads", balancer.heads, HEADS)):
        if given not in known:
            raise MethodError(f"{type(balancer).__name__}: {unknown_name(what, given, known)}")
    if hook == "combine_gradients" and (balancer.view != "parameters" or balancer.batches > 1):
        raise MethodError("A view, or several mini-batches, is for rules that override gradient_weights alone.")
    return Needs(hook, balancer.view, balancer.batches, balancer.heads, balancer.COLUMNWISE)


def refusals(needs: Needs, accumulate: int) -> Iterator[str]:
    """Yields why a rule cannot work with the trainer of a suite."""
    if needs.light and not needs.whole:
        yield (
            "trainer.surgery=light is for rules on the Gramian of all shared parameters, on one mini-batch. "
            "Use trainer.surgery=auto for this one."
        )
    if needs.early and accumulate > 1:
        what = "trainer.surgery=light" if needs.light else f"A rule on the view {needs.view!r}"
        yield f"{what} finds its weights within one backward pass. Set trainer.accumulate=1. Found {accumulate}."


class NonFinite(Exception):
    """The gradients of some tasks hold NaN or infinity."""

    def __init__(self, tasks: list[int]):
        super().__init__(f"gradients of tasks {tasks}")
        self.tasks = tasks
