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
from mtlbench.balancing.gradients.surgery import Surgery, gradients
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


class Update:
    """The balancing of one network.

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
        self.gramian: Tensor | None = None
        self.seen: Snapshot | None = None
        self.suspects: Tensor | None = None

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
        """Yields why the rule cannot work with what is in place only now: strategy, optimisers, parameters."""
        if self.needs.hook is None:
            return
        strategy = type(trainer.strategy).__name__
        if any(name in strategy for name in ("FSDP", "DeepSpeed", "ModelParallel")):
            yield (
                f"A rule on gradients needs whole gradients on every rank; {strategy} cuts parameters into shards. "
                "Use DDP, or a rule on losses."
            )
        fused = any(group.get("fused") for optimiser in trainer.optimizers for group in optimiser.param_groups)
        if fused and trainer.precision == "16-mixed":
            yield (
                "A fused optimiser unscales fp16 gradients by itself, before a rule on gradients could see them. "
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
    ) -> None:
        """Finds weights and back-propagates the weighted sum, all within the backward pass.

        Args:
            losses: Loss of each active task by task index.
            extra: Sum of regularisers and of the balancer's own loss, or None.
            factor: What precision puts on the loss.
            ctx: Context of the step.
            z: The shared representation on this rank, one tensor per stream.
            look: Keep what `seen` tells of the update: of the shared parameters, whatever the view of the rule.
        """
        surgery, self.seen = self.surgery, None
        self.gramian = self._early_gramian(list(losses.values()), factor, z)
        weights = self._weights(ctx)
        if look:
            self._note(ctx, self.gramian if self.needs.light else self.look(list(losses.values()), factor), weights)
        weighted = self.needs.heads == "weighted"
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

    def late(self, scale: Tensor | float, ctx: Context, *, look: bool = False) -> None:
        """Averages what was collected, combines it and writes it to ``.grad``.

        Args:
            scale: What precision put on the losses; gradients carry it.
            ctx: Context of the step.
            look: Keep what `seen` tells of the update.
        """
        surgery, active, weights = self.surgery, ctx.active, None
        self.seen = None
        surgery.reduce(scale)
        if self.needs.hook == "combine_gradients":
            direction = self._combined(ctx, look=look)
        else:
            self.gramian = surgery.gramian(active)
            weights = self._weights(ctx)
            if look:
                self._note(ctx, surgery.last_gramian(active), weights)
            direction = surgery.blend(weights, active)
        surgery.write(direction, active, weights if self.needs.heads == "weighted" else None)
        surgery.clear()

    def look(self, losses: Sequence[Tensor], factor: Tensor) -> Tensor:
        """Returns the Gramian (A, A) of the shared gradients, averaged over ranks, and keeps the graph.

        Args:
            losses: Of the active tasks.
            factor: What precision puts on a loss; the Gramian is free of it.
        """
        found = torch.stack([self._gramian_of(losses, c, factor) for c in self._chunks(len(losses))]).sum(0)
        return found / factor.to(found) ** 2

    def _combined(self, ctx: Context, *, look: bool) -> Row:
        surgery, active = self.surgery, ctx.active
        self.suspects = surgery.suspects()
        look = look and bool(active and surgery.shared)
        gramian, first = (surgery.last_gramian(active), surgery.first_row(active)) if look else (None, [])
        direction = surgery.apply(lambda matrix: self.rule.combine_gradients(matrix, ctx), active)
        if gramian is not None:
            along, length = surgery.along(direction, first, active)
            self.seen = Snapshot(active, gramian, along, length, None, ctx.losses)
        return direction

    def _note(self, ctx: Context, gramian: Tensor, weights: list[float]) -> None:
        if weights:
            found = torch.tensor(weights, dtype=gramian.dtype, device=gramian.device)
            self.seen = Snapshot.of_weights(ctx.active, gramian, found, ctx.losses)

    def _weights(self, ctx: Context) -> list[float]:
        """Returns one weight per active task; brings T × T numbers to the host, the one wait of a step."""
        if not ctx.active:
            return []
        gramian = self.gramian.cpu()  # type: ignore[union-attr]
        if not gramian.isfinite().all():
            # A bad row spoils a column of all others: the diagonal tells whose it is.
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
