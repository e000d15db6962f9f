"""Share of correct keypoints."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher

Array = NDArray[Any]


class _Decodes(Protocol):
    def decode(self, prediction: Tensor) -> Tensor: ...


class CorrectKeypoints(Metric):
    """Percentage of correct keypoints (PCK), as a share: how many labelled keypoints are found near their place.

    A keypoint is correct if it is at most ``share`` times the longer side of the person's true box away. Of an image,
    as many poses count as it shows persons: those with the highest scores. They are assigned to persons one to one,
    such that most keypoints are correct. Persons to ignore may be found; their keypoints do not count.

    Args:
        task: Its ``decode`` turns raw predictions into rows of x0, y0, x1, y1, score, and x, y and visibility of each
            keypoint.
        share: Largest distance, as a share of the longer side, > 0. It names the protocol.
    """

    full_state_update = False
    hits: Tensor
    count: Tensor
    broken: Tensor

    def __init__(self, task: _Decodes, *, share: float = 0.2):
        super().__init__()
        self.task, self.share = task, share
        self.protocols = higher(f"pck_{share:g}@1")
        for name in ("hits", "count", "broken"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds raw predictions (B, channels, H, W) against rows (B, N, 5 + 3J); images with NaN rows do not count."""
        labelled = ~target[:, 0, 0].isnan()
        self.broken += prediction[labelled].isnan().any().long()
        poses, truth = (x.double().cpu().numpy() for x in (self.task.decode(prediction), target))
        for place in np.flatnonzero(labelled.cpu().numpy()):
            persons = truth[place][(truth[place][:, 2:4] > truth[place][:, :2]).all(1)]
            found = poses[place][np.argsort(-poses[place][:, 4], kind="stable")][: len(persons)]
            right, known = correct(found, persons, self.share)
            self.hits += int(right[linear_sum_assignment(right, maximize=True)].sum())
            self.count += int(known.sum())

    def compute(self) -> dict[str, float]:
        """Returns the share in [0, 1]; NaN if no keypoint is labelled, or if a labelled prediction was NaN."""
        share = float("nan") if self.broken else float(self.hits.double() / self.count)
        return {self.protocols[0].id: share}


def correct(poses: Array, persons: Array, share: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns how many keypoints of each person (M) every pose (N) gets right, (N, M), and which count, (M, J).

    Args:
        poses: (N, 5 + 3J) rows.
        persons: (M, 5 + 3J) rows.
        share: Largest distance, as a share of the longer side of the person's box.
    """
    shape = (poses.shape[1] - 5) // 3, 3
    ours, theirs = (rows[:, 5:].reshape(len(rows), *shape) for rows in (poses, persons))
    known = (theirs[..., 2] > 0) & (persons[:, 4, None] > 0)
    reach = share * (persons[:, 2:4] - persons[:, :2]).max(1, initial=0)
    distance = np.linalg.norm(ours[:, None, :, :2] - theirs[None, :, :, :2], axis=-1)
    near = (distance <= reach[None, :, None]) & (ours[:, None, :, 2] > 0)
    return (near & known).sum(-1), known
