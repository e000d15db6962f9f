"""How far tasks disagree and what a rule made of it, from the Gramian of their gradients on the shared parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlbench.runs import keys


@dataclass(frozen=True)
class Snapshot:
    """One update, seen through inner products alone.

    Attributes:
        active: Indices of the tasks, A of them.
        gramian: (A, A) of their gradients on the shared parameters, loss weights included.
        along: (A,) inner products of the same gradients with the update.
        length: Squared norm of the update.
        weights: (A,) weights of the gradients in the update, or None where the rule gives none.
        loss_weights: (A,) weights of the losses.
    """

    active: tuple[int, ...]
    gramian: Tensor
    along: Tensor
    length: Tensor
    weights: Tensor | None
    loss_weights: Tensor

    @classmethod
    def of_weights(cls, active: tuple[int, ...], gramian: Tensor, weights: Tensor, loss_weights: Tensor) -> Snapshot:
        """Returns the snapshot of an update Σ w_i g_i."""
        along = gramian @ weights
        return cls(active, gramian, along, weights @ along, weights, loss_weights)


def cosines(gramian: Tensor) -> Tensor:
    """Returns pairwise cosines (A, A) of a Gramian (A, A); 0 where a gradient is zero."""
    norms = gramian.diagonal().clamp(min=0).sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0, gramian / scale.clamp(min=torch.finfo(gramian.dtype).tiny), 0.0)


def conflict_row(seen: Snapshot, tasks: Sequence[str]) -> dict[str, float]:
    """Summarises an update as one record of plain values.

    Per pair: cosine. Per task: norm of the gradient of its unweighted loss, and its weight in the update. In all:
    ``conflicts``, the share of pairs with a negative cosine; ``similarity``, the mean of 2 ‖a‖ ‖b‖ / (‖a‖² + ‖b‖²)
    over pairs, 1 for equal norms; ``condition``, the condition number of the Jacobian of unit rows, at most 1e8;
    ``turn``, the angle between the update and the plain sum of gradients, in degrees.

    What cannot be told is left out: the gradient of a task whose loss has weight 0, and with it the plain sum; the
    similarity of two zeros, and the angle of one; everything in a step that overflowed.

    Args:
        seen: The update.
        tasks: Names of its active tasks.
    """
    seen = _on(torch.device("cpu"), seen)
    if not seen.gramian.isfinite().all():
        return {}
    c = seen.loss_weights
    known = [i for i in range(len(tasks)) if c[i] != 0]
    raw = seen.gramian / (c[:, None] * c[None, :])
    cosine, norms = cosines(seen.gramian), raw.diagonal().clamp(min=0).sqrt()
    pairs = list(itertools.combinations(known, 2))
    row = {keys.COSINE.key(task=tasks[i], other=tasks[j]): float(cosine[i, j]) for i, j in pairs}
    row |= {keys.NORM.key(task=tasks[i]): float(norms[i]) for i in known}
    weights = seen.weights if seen.weights is not None else torch.linalg.pinv(seen.gramian) @ seen.along
    row |= {keys.WEIGHT.key(task=task): w for task, w in zip(tasks, (weights * c).tolist(), strict=True)}
    if pairs:
        row[keys.CONFLICTS.key()] = sum(bool(cosine[i, j] < 0) for i, j in pairs) / len(pairs)
        row[keys.SIMILARITY.key()] = _similarity(norms, pairs)
        row[keys.CONDITION.key()] = _condition(cosine[known][:, known])
    turned = (seen.along / c).sum() / (seen.length.clamp(min=0) * raw.sum().clamp(min=0)).sqrt()
    row[keys.TURN.key()] = round(float(turned.clamp(-1, 1).acos().rad2deg()), 4)
    return {key: value for key, value in row.items() if math.isfinite(value)}


def _on(device: torch.device, seen: Snapshot) -> Snapshot:
    def moved(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().to(device, torch.float64)

    values = [moved(v) for v in (seen.gramian, seen.along, seen.length, seen.weights, seen.loss_weights)]
    return Snapshot(seen.active, *values)  # type: ignore[arg-type]


def _similarity(norms: Tensor, pairs: Sequence[tuple[int, int]]) -> float:
    found = [float(2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2)) for i, j in pairs]
    told = [value for value in found if value == value]  # Not so for two gradients of zero.
    return sum(told) / len(told) if told else math.nan


def _condition(cosine: Tensor) -> float:
    values = torch.linalg.eigvalsh(cosine).clamp(min=0)
    return float((values[-1] / values[0].clamp(min=1e-16)).sqrt().clamp(max=1e8))
