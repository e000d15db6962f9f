"""`Balancer`: how T task losses become one update. Knows no Lightning, no network, no ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

GRADIENT_HOOKS = ("gradient_weights", "combine_gradients")
BALANCING_HOOKS = ("combine_losses", *GRADIENT_HOOKS)


@dataclass(frozen=True)
class Context:
    """The only thing, beside its arguments, that a balancing hook may read. Equal on all ranks.

    Attributes:
        active: Indices of the tasks with a label on some rank in this step; A of them. Rows follow this order.
        losses: (A,) losses of those tasks, averaged over all ranks, scaled, detached.
        step: Optimiser step, from 0.
        epoch: Passes over the training data that are complete.
        generator: On the CPU, a function of seed and step: the only source of random draws.
        lookahead: Takes a change (P,) of the shared parameters, or None for none, and returns the losses (A,)
            of the current batch after it, leaving no trace. Under accumulation this is the last micro-batch, and a
            task without a label in it has NaN.
    """

    active: tuple[int, ...]
    losses: Tensor
    step: int
    epoch: int
    generator: torch.Generator
    lookahead: Callable[[Tensor | None], Tensor]


class Balancer(nn.Module):
    """Base of every balancing rule. Override one hook (or two: from losses, then from gradients).

    What a rule remembers is a buffer created in `configure`, so that a checkpoint carries it. A Parameter is
    trained by the main optimiser: only for what shall be trained that way.

    Attributes:
        VERSION: Raise it when the same arguments give another result; it enters every run's identity.
        SEARCH: Search space per argument, for tuning.
    """

    VERSION: ClassVar[int] = 1
    SEARCH: ClassVar[dict[str, Any]] = {}

    tasks: int = 0

    def configure(self, tasks: int) -> None:
        """Creates the state for ``tasks`` tasks. Called once, before training or loading; extend it."""
        self.tasks = tasks

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Combines (A,) losses, averaged over ranks, into a scalar. May be non-linear. Default: their sum."""
        return losses.sum()

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns (A,) weights from the (A, A) float64 Gramian of the tasks' shared gradients."""
        raise NotImplementedError

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Combines the (A, P) shared gradients, averaged over ranks, into a direction (P,)."""
        raise NotImplementedError

    def after_step(self, ctx: Context) -> None:
        """Is called after every optimiser step. ``ctx.losses`` are those before the step."""

    def epoch_end(self) -> None:
        """Is called after the last step of every pass over the training data, after `after_step`."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None, *, seed: int = 0) -> Tensor:
        """Returns the task weights (T,) for a (T, T) Gramian, by hand and outside any training.

        Raises:
            TypeError: If the rule is not a function of the Gramian.
        """
        if not overrides(self, Balancer, "gradient_weights"):
            raise TypeError(f"{type(self).__name__} is not a function of the Gramian: use direction().")
        return self.gradient_weights(gramian, self._by_hand(len(gramian), losses, gramian, seed))

    def direction(self, jacobian: Tensor, losses: Tensor | None = None, *, seed: int = 0) -> Tensor:
        """Returns the update direction (P,) for a (T, P) Jacobian and (T,) losses, by hand.

        Loss weights apply first: row i is multiplied by ∂ combine_losses / ∂ L_i, as in training.

        Args:
            jacobian: One gradient per task.
            losses: Current losses; ones if not given.
            seed: Seed of rules that draw at random.
        """
        ctx = self._by_hand(len(jacobian), losses, jacobian, seed)
        rows = loss_weights(self.combine_losses, ctx)[0][:, None] * jacobian
        if overrides(self, Balancer, "combine_gradients"):
            return self.combine_gradients(rows, ctx)
        if overrides(self, Balancer, "gradient_weights"):
            gramian = (rows @ rows.T).double()
            return self.gradient_weights(gramian, ctx).to(rows.dtype) @ rows
        return rows.sum(0)

    def _by_hand(self, tasks: int, losses: Tensor | None, like: Tensor, seed: int) -> Context:
        if self.tasks != tasks:
            self.configure(tasks)
        values = torch.ones(tasks, dtype=like.dtype, device=like.device) if losses is None else losses.detach()

        def no_lookahead(step: Tensor | None) -> Tensor:
            raise RuntimeError("A look-ahead needs a network; it exists only in training.")

        generator = torch.Generator().manual_seed(seed)
        return Context(tuple(range(tasks)), values, 0, 0, generator, no_lookahead)


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
