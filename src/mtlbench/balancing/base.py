"""`Balancer`: how T task losses become one update. Knows no Lightning, no network, no ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtlbench.distributed import sent
from mtlbench.errors import MethodError, unknown_name
from mtlbench.registry import Registered
from mtlbench.seeding import seed_of

GRADIENT_HOOKS = ("gradient_weights", "combine_gradients")
BALANCING_HOOKS = ("combine_losses", *GRADIENT_HOOKS)
VIEWS = ("parameters", "representation", "last_shared")
SCALES = ("sum", "mean")
HEADS = ("unit", "weighted")


@dataclass(frozen=True)
class Context:
    """The only thing, beside its arguments, that a balancing hook may read. Equal on all ranks.

    Attributes:
        active: Indices of the tasks with a label on some rank in this step; A of them. Rows follow this order.
        losses: (A,) losses of those tasks, averaged over all ranks, scaled, detached.
        step: Optimiser step, from 0.
        epoch: Passes over the training data that are complete.
        generator: On the CPU, a function of seed and step: the only source of random draws.
        lookahead: ``lookahead(change, tasks=None)`` takes a change (P,) of the shared parameters, or None for none, and
            returns the losses (A,) of the current batch after it, or those of the task indices ``tasks`` alone, which
            costs less. It leaves no trace. Under accumulation the batch is the last micro-batch, and a task without
            a label in it has NaN. Every rank must call it.
        sizes: Numbers in each shared parameter, in the order of a Jacobian's columns; empty by hand.
        preview: Takes a gradient (P,) and returns the change (P,) that the run's optimiser would make for it now, with
            its learning rate, decay and state, leaving no trace. Clipping (``trainer.clip``) has no part in it.
        descent: Takes a gradient (P,) and returns the change (P,) of plain gradient descent: minus the gradient times
            the present learning rate of every parameter.
        lr: Learning rate of this step: that of the optimiser's first group.
    """

    active: tuple[int, ...]
    losses: Tensor
    step: int
    epoch: int
    generator: torch.Generator
    lookahead: Callable[..., Tensor]
    sizes: tuple[int, ...] = ()
    preview: Callable[[Tensor], Tensor] = lambda gradient: _no_lookahead(gradient)
    descent: Callable[[Tensor], Tensor] = lambda gradient: _no_lookahead(gradient)
    lr: float = 1.0

    def index(self, values: Tensor) -> slice | Tensor:
        """Returns an index of the active tasks in values (T, ...), for reading and writing.

        A list as an index would be copied to the device, and waited for.
        """
        if len(self.active) == len(values):
            return slice(None)
        return sent(self.active, values, torch.int64)


class Balancer(nn.Module, Registered):
    """Base of every balancing rule. Override one hook (or two: from losses, then from gradients).

    What a rule remembers is a buffer created in `configure`, so that a checkpoint carries it. Use a
    Parameter only for values that the main optimiser must train.

    Attributes:
        POSITIVE: Whether every loss must be above `floor`, because the rule takes logarithms or quotients.
        COLUMNWISE: Whether `combine_gradients` treats every column alone. It is then called with blocks of columns,
            in order, which stay in the cache, and no (A, P) matrix is made.
        view: Of what the rows are gradients: all shared ``"parameters"``; the shared ``"representation"`` that the
            heads read, all samples of all ranks side by side; or the parameters of the ``"last_shared"`` layer. The
            latter two need `gradient_weights`, cost one backward pass through the trunk, and work on one
            micro-batch at a time.
        batches: Independent mini-batches per step. With 3 the batch is cut in three: `gradient_weights` gets the
            cross-Gramian G₁ G₂ᵀ, and its weights act on the rows of the third; heads see the mean of all.
        heads: Gradient of a task's own parameters: ``"unit"``, that of its (loss-weighted) loss, or ``"weighted"``,
            multiplied by the weight that `gradient_weights` gave to the task.
    """

    POSITIVE: ClassVar[bool] = False
    COLUMNWISE: ClassVar[bool] = False

    tasks: int = 0
    view: str = "parameters"
    batches: int = 1
    heads: str = "unit"
    floor: float = 0.0

    # By hand: number of the next step, epoch of the last one, and its context until `after_step` has seen it.
    _next_step: int = 0
    _epoch: int = 0
    _unfinished: Context | None = None

    def configure(self, tasks: int) -> None:
        """Creates the state for ``tasks`` tasks. Called once, before training or loading; extend it."""
        self.tasks = tasks
        self._next_step, self._epoch, self._unfinished = 0, 0, None

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Combines (A,) losses, averaged over ranks, into a scalar. May be non-linear. Default: their sum."""
        return losses.sum()

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns (A,) weights from the (A, A) Gramian of the tasks' gradients: float64, finite, on the CPU."""
        raise NotImplementedError

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Combines the (A, P) shared gradients, averaged over ranks, into a direction (P,)."""
        raise NotImplementedError

    def due(self, step: int) -> bool:
        """Returns whether the rule looks at gradients in this step; else it is the plain sum, one backward pass."""
        return True

    def after_step(self, ctx: Context) -> None:
        """Is called after every optimiser step. ``ctx.losses`` are those before the step."""

    def epoch_end(self) -> None:
        """Is called after the last step of every pass over the training data, after `after_step`."""

    def summary(self) -> dict[str, Any]:
        """Returns plain values by name that are stored beside the result. Called on one rank, after training."""
        return {}

    def weights(
        self, gramian: Tensor, losses: Tensor | None = None, *, seed: int = 0, step: int | None = None, epoch: int = 0
    ) -> Tensor:
        """Returns the task weights (T,) for a (T, T) Gramian, by hand and outside any training: one step.

        Args:
            gramian: G Gᵀ, or G₁ G₂ᵀ for a rule on three batches.
            losses: Current losses (T,); ones if not given.
            seed: What the rule draws is a function of seed and step, the same as in a run of that seed.
            step: Number of the step, from 0; one more than in the last call if not given.
            epoch: Passes over the data that are complete.

        Raises:
            MethodError: If the rule is not a function of the Gramian, a value is not finite, or a loss not positive
                where it must be.
        """
        if not overrides(self, Balancer, "gradient_weights"):
            raise MethodError(
                f"Weights are those of a rule on the Gramian; {type(self).__name__} is none. Use direction(), which "
                "takes the (T, P) Jacobian and the losses."
            )
        ctx = self._by_hand(gramian, losses, seed, step, epoch)
        return self.gradient_weights(gramian.detach().double().cpu(), ctx).to(gramian)

    def direction(
        self,
        jacobian: Tensor,
        losses: Tensor | None = None,
        *,
        seed: int = 0,
        step: int | None = None,
        epoch: int = 0,
        lookahead: Callable[[Tensor], Tensor] | None = None,
        lr: float = 1.0,
    ) -> Tensor:
        """Returns the update direction (P,) for a (T, P) Jacobian and (T,) losses, by hand: one step.

        Loss weights apply first: row i is multiplied by ∂ combine_losses / ∂ L_i, as in training.

        Args:
            jacobian: One gradient per task; (3, T, P) for a rule on three batches.
            losses: Current losses; ones if not given.
            seed: What the rule draws is a function of seed and step, the same as in a run of that seed.
            step: Number of the step, from 0; one more than in the last call if not given.
            epoch: Passes over the data that are complete.
            lookahead: For rules that try changes: takes a change (P,) of the parameters, returns the losses (T,) after.
            lr: Learning rate of the plain gradient descent whose steps such a rule previews.

        Raises:
            MethodError: If a value is not finite, a loss not positive where it must be, or a look-ahead lacks.
        """
        parts = jacobian.expand(self.batches, *jacobian.shape[-2:])
        ctx = self._by_hand(parts[-1], losses, seed, step, epoch)
        if lookahead is not None:
            ahead = _ahead(lookahead, ctx.losses)
            ctx = replace(ctx, lookahead=ahead, preview=lambda g: -lr * g, descent=lambda g: -lr * g, lr=lr)
        parts = loss_weights(self.combine_losses, ctx)[0][:, None] * parts
        if not self.due(ctx.step):
            return parts.mean(0).sum(0)
        if overrides(self, Balancer, "combine_gradients"):
            return self.combine_gradients(parts[0], ctx)
        if overrides(self, Balancer, "gradient_weights"):
            one, two = (parts[0], parts[1]) if self.batches > 1 else (parts[0], parts[0])
            weights = self.gradient_weights((one.double() @ two.double().T).cpu(), ctx)
            return weights.to(parts) @ parts[-1]
        return parts[0].sum(0)

    def end_step(self, losses: Tensor | None = None) -> None:
        """Ends the step of the last call by hand with what the rule does after an optimiser step.

        The next call does it too. Call it before ``state_dict()``, and where the rule looks at the losses after the
        step (`famo`).

        Args:
            losses: Losses (T,) of the same batch after the step.

        Raises:
            MethodError: If the rule needs the losses and there are none.
        """
        if self._unfinished is not None:
            ahead = _no_lookahead if losses is None else _ahead(lambda change: losses, losses)
            self.after_step(replace(self._unfinished, lookahead=ahead))
        self._unfinished = None

    def _by_hand(
        self, rows: Tensor, losses: Tensor | None, seed: int = 0, step: int | None = None, epoch: int = 0
    ) -> Context:
        """Ends the step of the last call and returns the context of the next one."""
        tasks = len(rows)
        if self.tasks != tasks:
            self.configure(tasks)
        self._check(rows, losses, epoch)
        self.end_step()
        if self._next_step and epoch > self._epoch:
            self.epoch_end()
        step = self._next_step if step is None else step
        values = torch.ones(tasks, dtype=rows.dtype, device=rows.device) if losses is None else losses.detach()
        generator = torch.Generator().manual_seed(seed_of("method", seed, step))
        ctx = Context(tuple(range(tasks)), values, step, epoch, generator, _no_lookahead)
        self._next_step, self._epoch, self._unfinished = step + 1, epoch, ctx
        return ctx

    def _check(self, rows: Tensor, losses: Tensor | None, epoch: int) -> None:
        bad = [i for i, row in enumerate(rows) if not row.isfinite().all()]
        if bad:
            raise MethodError(f"Gradients must be finite. Those of task {', '.join(map(str, bad))} hold NaN or inf.")
        if self.POSITIVE and losses is not None and not (losses > self.floor).all():
            raise MethodError(
                f"{type(self).__name__} takes logarithms or quotients of losses: each must be above {self.floor:g}. "
                f"Found {losses.tolist()}."
            )
        if epoch < self._epoch:
            raise MethodError(
                f"Epochs go forward. Found epoch {epoch} after {self._epoch}. configure({self.tasks}) starts anew."
            )


class GradientRule(Balancer):
    """Base of the shipped gradient rules, with the two conventions in which the literature differs.

    Args:
        scale: ``"sum"``: the weights of equal tasks sum to their number, as in Σ L_i, so that one learning rate
            suits every rule. ``"mean"``: they sum to 1.
        heads: See `Balancer`.
    """

    def __init__(self, *, scale: str = "sum", heads: str = "unit"):
        super().__init__()
        for what, given, known in (("scale", scale, SCALES), ("heads", heads, HEADS)):
            if given not in known:
                raise MethodError(f"{type(self).__name__}: {unknown_name(what, given, known)}")
        self.scale, self.heads = scale, heads

    def scaled(self, value: Tensor, tasks: int, *, natural: str) -> Tensor:
        """Returns weights or a direction on the chosen scale.

        Args:
            value: On the rule's natural scale.
            tasks: Number of active tasks.
            natural: ``"sum"`` or ``"mean"``.
        """
        if natural == self.scale:
            return value
        return value * tasks if self.scale == "sum" else value / tasks


def _ahead(losses_after: Callable[[Tensor], Tensor], losses: Tensor) -> Callable[..., Tensor]:
    """Returns a context's look-ahead, by hand: ``losses`` are those without a change."""

    def ahead(change: Tensor | None, tasks: Sequence[int] | None = None) -> Tensor:
        found = losses.detach() if change is None else losses_after(change).detach()
        return found if tasks is None else found[list(tasks)]

    return ahead


def _no_lookahead(change: Tensor | None, tasks: Sequence[int] | None = None) -> Tensor:
    raise MethodError(
        "This rule looks at the losses of the batch after a change of the parameters, which needs a network. By hand, "
        "give it those after the step, end_step(losses) between two calls, or, where it tries changes before the step, "
        "direction(..., lookahead=losses_after)."
    )


def overrides(instance: object, base: type, hook: str) -> bool:
    """Returns whether the class of ``instance`` defines ``hook`` itself instead of inheriting it from ``base``."""
    return getattr(type(instance), hook) is not getattr(base, hook)


def loss_weights(combine: Callable[[Tensor, Context], Tensor], ctx: Context) -> tuple[Tensor, Tensor]:
    """Returns the weights c = ∂combine/∂L (A,), detached, and the combined value (), attached to own parameters.

    Because c is taken at the rank-averaged losses, back-propagating Σ c_i · (share of L_i) on every rank is exact
    under gradient averaging, however non-linear ``combine`` is.
    """
    with torch.enable_grad():
        losses = ctx.losses.clone().requires_grad_()
        value = combine(losses, ctx)
        (weights,) = torch.autograd.grad(value, losses, retain_graph=True, allow_unused=True)
    return torch.zeros_like(ctx.losses) if weights is None else weights, value
