"""How far tasks disagree and what a rule made of it, from the Gramian of their gradients on the shared parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """One update, seen through inner products alone.

    Attributes:
        active: Indices of the tasks, A of them.
        gramian: (A, A) of their gradients as the rule saw them: loss weights included.
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
    """Returns what the update tells about the tasks, as one record.

    Per pair: cosine. Per task: norm of the gradient of its unweighted loss, and its weight in the update. In all:
    ``conflicts``, the share of pairs with a negative cosine; ``similarity``, the mean of 2 ‖a‖ ‖b‖ / (‖a‖² + ‖b‖²)
    over pairs, 1 for equal norms; ``condition``, the condition number of the Jacobian of unit rows, at most 1e8;
    ``turn``, the angle between the update and the plain sum of gradients, in degrees.

    Args:
        seen: The update.
        tasks: Names of its active tasks.
    """
    seen = _on(torch.device("cpu"), seen)
    c = seen.loss_weights
    raw = seen.gramian / (c[:, None] * c[None, :])
    cosine, norms = cosines(seen.gramian), raw.diagonal().clamp(min=0).sqrt()
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    row = {f"gradient/cosine/{tasks[i]}|{tasks[j]}": float(cosine[i, j]) for i, j in pairs}
    row |= {f"gradient/norm/{task}": norm for task, norm in zip(tasks, norms.tolist(), strict=True)}
    weights = seen.weights if seen.weights is not None else torch.linalg.pinv(seen.gramian) @ seen.along
    row |= {f"gradient/weight/{task}": w for task, w in zip(tasks, (weights * c).tolist(), strict=True)}
    row["gradient/conflicts"] = sum(bool(cosine[i, j] < 0) for i, j in pairs) / max(1, len(pairs))
    row["gradient/similarity"] = _similarity(norms, pairs)
    row["gradient/condition"] = _condition(cosine)
    turned = (seen.along / c).sum() / (seen.length.clamp(min=0) * raw.sum().clamp(min=0)).sqrt()
    row["gradient/turn"] = round(float(turned.clamp(-1, 1).acos().rad2deg()), 4)
    return row


def _on(device: torch.device, seen: Snapshot) -> Snapshot:
    def moved(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().to(device, torch.float64)

    values = [moved(v) for v in (seen.gramian, seen.along, seen.length, seen.weights, seen.loss_weights)]
    return Snapshot(seen.active, *values)  # type: ignore[arg-type]


def _similarity(norms: Tensor, pairs: Sequence[tuple[int, int]]) -> float:
    found = [float(2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2)) for i, j in pairs]
    return sum(found) / max(1, len(found))


def _condition(cosine: Tensor) -> float:
    values = torch.linalg.eigvalsh(cosine).clamp(min=0)
    return float((values[-1] / values[0].clamp(min=1e-16)).sqrt().clamp(max=1e8))
