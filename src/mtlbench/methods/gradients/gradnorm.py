"""GradNorm: adapts the loss weights to gradient norms, so that all tasks train at the same rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.errors import MethodError, unknown_name

OPTIMISERS: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class GradNorm(GradientRule):
    """Gradient normalization for adaptive loss balancing (https://arxiv.org/abs/1711.02257, ICML 2018).

    Rule: the step follows Σ_i w_i L_i. Then w takes one descent step on Σ_i |w_i n_i - N r_i^α|, in which the target
    N r_i^α with N = mean_i w_i n_i is held fixed, and is rescaled to Σ w = T.

    Symbols: n_i norm of the gradient of L_i with respect to the last shared layer, averaged over all ranks; r_i =
    (L_i / L_i(0)) / mean_j (L_j / L_j(0)), where L_i(0) is the loss of the first step in which task i has a label.
    All weights start at 1.

    Args:
        alpha: α, strength of the pull towards one training rate; the paper uses 1.5 on NYUv2.
        lr: Learning rate of w. The paper's value is unknown to us.
        optimiser: Optimiser of w, ``"adam"`` or ``"sgd"``. The paper's choice is unknown to us.
        heads: ``"weighted"``, since the paper's loss is Σ_i w_i L_i; or ``"unit"``.
        **conventions: ``scale`` (the rule's own is ``"sum"``); see `GradientRule`.

    Differences from the paper: weights are kept at or above 1e-6, so that all are positive. Absent tasks keep their
    weights, and the others redistribute their total; the weights of a step sum to the number of active tasks. Under
    accumulation n is that of the last micro-batch. LibMTL uses softmax weights, and the losses of the first epoch for
    L(0).

    Example:
        >>> import torch
        >>> GradNorm().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))  # In the first step w = 1.
        tensor([0., 1.])
    """

    TAXONOMY = "optimisation/loss weighting/by learning speed"
    SEARCH = {"alpha": [0.5, 1.5, 3.0], "lr": [0.005, 0.025, 0.1]}
    POSITIVE = True
    view = "last_shared"

    task_weights: Tensor
    initial: Tensor

    def __init__(
        self,
        alpha: float = 1.5,
        lr: float = 0.025,
        optimiser: str = "adam",
        heads: str = "weighted",
        **conventions: Any,
    ):
        super().__init__(heads=heads, **conventions)
        if not 0 <= alpha < float("inf"):
            raise MethodError(f"gradnorm: alpha must be at least 0 and finite. Found {alpha}. The default is 1.5.")
        if not 0 < lr < float("inf"):
            raise MethodError(f"gradnorm: lr must be above 0 and finite. Found {lr}. The default is 0.025.")
        if optimiser not in OPTIMISERS:
            raise MethodError(f"gradnorm: {unknown_name('optimiser', optimiser, OPTIMISERS)}")
        self.alpha, self.lr, self.optimiser = alpha, lr, optimiser

    def configure(self, tasks: int) -> None:
        """Creates the weights, which the run's optimiser does not train, and the first losses (NaN until known)."""
        super().configure(tasks)
        self.register_buffer("task_weights", torch.ones(tasks))
        self.register_buffer("initial", torch.full((tasks,), float("nan")))
        self._optimiser_state: dict[str, Any] = {}
        self._seen: tuple[list[int], Tensor] | None = None

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the current weights (A,) and stores the norms for the step of the weights."""
        active = list(ctx.active)
        self._seen = active, gramian.diagonal().clamp(min=0).sqrt()
        weights = self.task_weights[active].double().cpu()
        return self.scaled(weights * (len(active) / weights.sum()), len(active), natural="sum")

    def after_step(self, ctx: Context) -> None:
        """Moves the weights: those of tasks with a small gradient or a slow loss grow."""
        losses = torch.full_like(self.initial, float("nan"))
        losses[list(ctx.active)] = ctx.losses.to(losses)
        self.initial.copy_(torch.where(self.initial.isnan(), losses, self.initial))
        if self._seen is not None:
            active, norms = self._seen[0], self._seen[1].to(losses)
            self._descend(active, self._slope(active, norms, (losses / self.initial)[active]))
        self._seen = None

    def _slope(self, active: list[int], norms: Tensor, progress: Tensor) -> Tensor:
        """Returns the derivative (A,) of the distance between norms and targets by the weights."""
        own = self.task_weights[active] * norms
        target = own.mean() * (progress / progress.mean()) ** self.alpha
        return torch.sign(own - target) * norms

    def _descend(self, active: list[int], slope: Tensor) -> None:
        """Takes one step of the weights' own optimiser, then restores their sum."""
        held = self.task_weights[active].sum()
        # One parameter per task, because the optimiser skips parameters without a gradient, including their state.
        parameters = self.task_weights.split(1)
        for i, value in zip(active, slope.split(1), strict=True):
            parameters[i].grad = value
        optimiser = OPTIMISERS[self.optimiser](parameters, lr=self.lr)
        if self._optimiser_state:
            optimiser.load_state_dict(self._optimiser_state)
        optimiser.step()
        self._optimiser_state = optimiser.state_dict()
        moved = self.task_weights[active].clamp(min=1e-6)
        self.task_weights[active] = moved * (held / moved.sum())

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the state of the weights' optimiser, so that a resumed run continues exactly."""
        return self._optimiser_state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the state of the weights' optimiser."""
        self._optimiser_state = state
