"""Uncertainty weighting: a learned log-variance per task."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, Context
from mtlbench.errors import MethodError, unknown_name

FACTORS = {"regression": 1.0, "classification": 2.0}
"""Twice the factor of e^{-s_i} L_i in either form."""


class Uncertainty(Balancer):
    """Multi-task learning using uncertainty to weigh losses (https://arxiv.org/abs/1705.07115, CVPR 2018).

    Rule: L = 2 · Σ_i (a_i e^{-s_i} L_i + ½ s_i).

    Symbols: s_i = log σ_i², trained by the run's optimiser without weight decay; a_i = ½ in the regression form, 1 in
    the classification form.

    Args:
        initial: Initial s_i. The paper does not state it; common implementations use -0.5 or 0. With 0 every task
            starts with weight 1.
        forms: Form of each task, in the order of the run's tasks: ``"regression"`` or ``"classification"``. None for
            regression throughout, as in common implementations; the paper uses the other form for cross-entropies.

    Differences from the paper: the factor 2 puts the regression form on sum scale (weights 1 at the start), so that
    one learning rate suits every method. It leaves the minimum s_i = ln(2 a_i L_i) where it is. A task in
    classification form starts with weight 2: the paper's ratio of the forms is kept.

    Example:
        >>> import torch
        >>> Uncertainty().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
    """

    TAXONOMY = "optimisation/loss weighting/by uncertainty"
    SEARCH = {"initial": [-0.5, 0.0, 0.5]}

    factors: Tensor

    def __init__(self, initial: float = 0.0, forms: list[str] | None = None):
        super().__init__()
        if not math.isfinite(initial):
            raise MethodError(f"uncertainty: initial must be finite. Found {initial}. The default is 0.")
        if not (forms is None or isinstance(forms, (list, tuple))):
            raise MethodError(f"uncertainty: forms must be a list with one form per task. Found {forms!r}.")
        for form in map(str, forms or ()):
            if form not in FACTORS:
                raise MethodError(f"uncertainty: {unknown_name('form', form, FACTORS)}")
        self.initial, self.forms = initial, forms

    def configure(self, tasks: int) -> None:
        """Creates one log-variance per task.

        Raises:
            MethodError: If there are not as many forms as tasks.
        """
        forms = ["regression"] * tasks if self.forms is None else self.forms
        if len(forms) != tasks:
            raise MethodError(
                f"uncertainty: forms must name one form per task of the run, in its order. Found {len(forms)} for "
                f"{tasks} task{'s' * (tasks != 1)}."
            )
        super().configure(tasks)
        # Not persistent, because the arguments hold the forms.
        self.register_buffer("factors", torch.tensor([FACTORS[form] for form in forms]), persistent=False)
        self.log_variance = nn.Parameter(torch.full((tasks,), float(self.initial)))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Weighs (A,) losses by their learned precision; the log-variances see the same gradient on all ranks."""
        active = ctx.index(self.log_variance)
        s, factors = self.log_variance[active], self.factors[active]
        return (factors * torch.exp(-s) * losses + s).sum()
