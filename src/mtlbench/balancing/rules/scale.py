"""The scale of loss rules, set so that one learning rate suits every rule."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlbench.errors import MethodError, unknown_name


def known_scale(rule: str, scale: str, known: Sequence[str] = ("sum", "raw")) -> str:
    """Returns the scale that a rule was given after checking its name.

    Raises:
        MethodError: If the rule has no such scale.
    """
    if scale not in known:
        raise MethodError(f"{rule}: {unknown_name('scale', scale, known)}")
    return scale


def sum_scaled(value: Tensor, weights: Tensor) -> Tensor:
    """Returns the combined loss multiplied by a constant that makes its weights sum to the number of tasks.

    Args:
        value: Combined loss.
        weights: (A,) derivatives of ``value`` with respect to the losses.
    """
    # Detached: the factor must scale the gradient, not contribute to it.
    return value * (len(weights) / weights.detach().sum())
