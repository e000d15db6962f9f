"""How far tasks disagree, from the Gramian of their gradients on the shared parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cosines(gramian: Tensor) -> Tensor:
    """Returns pairwise cosines (A, A) of a Gramian (A, A); 0 where a gradient is zero."""
    norms = gramian.diagonal().clamp(min=0).sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0, gramian / scale.clamp(min=torch.finfo(gramian.dtype).tiny), 0.0)


def conflict_row(gramian: Tensor, tasks: Sequence[str]) -> dict[str, float]:
    """Returns the share of conflicting pairs, every pairwise cosine and every norm, as one record.

    Args:
        gramian: (A, A), rows in the order of ``tasks``.
        tasks: Names of the active tasks.
    """
    cosine = cosines(gramian).tolist()
    norms = gramian.diagonal().clamp(min=0).sqrt().tolist()
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    row = {f"gradient/cosine/{tasks[i]}|{tasks[j]}": cosine[i][j] for i, j in pairs}
    row |= {f"gradient/norm/{task}": norm for task, norm in zip(tasks, norms, strict=True)}
    row["gradient/conflicts"] = sum(cosine[i][j] < 0 for i, j in pairs) / max(1, len(pairs))
    return row
