"""Scale of rules on losses: so that one learning rate suits every rule."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlbench.errors import MethodError, unknown_name


def known_scale(rule: str, scale: str, known: Sequence[str] = ("sum", "raw")) -> str:
    """Returns the scale that a rule was given.

    Raises:
        MethodError: If the rule does not know it.
    """
    if scale not in known:
        raise MethodError(f"{rule}: {unknown_name('scale', scale, known)}")
    return scale


def sum_scaled(value: Tensor, weights: Tensor) -> Tensor:
    """Returns a combined loss times a constant, so that its weights sum to the number of tasks.

    Args:
        value: Combined loss.
        weights: (A,) its derivatives by the losses.
    """
    return value * (len(weights) / weights.detach().sum())
