"""Saliency metrics over probability thresholds: maxF and the best foreground IoU, from additive counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher


class MaxF(Metric):
    """Largest F over 19 thresholds 0.05 ... 0.95, with β² = 0.3, from counts summed over the set.

    A pixel is predicted salient if its probability, the sigmoid of the logit, is at least the threshold.

    Args:
        squash: Take the sigmoid a second time, as the InvPT line does: predictions lie in [0.5, 0.731], so only four
            thresholds are informative. Reported as ``saliency_maxf_invpt@1``, for comparison with rows of that line.
        ignore: Value of unlabelled pixels.
    """

    full_state_update = False
    histogram: Tensor
    broken: Tensor
    BETA_SQUARE = 0.3

    def __init__(self, *, squash: bool = False, ignore: int = 255):
        super().__init__()
        self.squash, self.ignore = squash, ignore
        self.protocol = "saliency_maxf_invpt@1" if squash else "saliency_maxf@1"
        self.protocols = higher(self.protocol)
        self.thresholds = [k / 20 for k in range(1, 20)]
        self.add_state("histogram", torch.zeros(2, 20, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("broken", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts logits (B, 1, H, W) against float (B, 1, H, W) labels: 0, 1 or ignored."""
        valid = target != self.ignore
        self.broken += (prediction.isnan() & valid).sum()
        probability = prediction.double().sigmoid()
        probability = probability.sigmoid() if self.squash else probability
        self.histogram += _histogram(probability, target == 1, valid, self.thresholds).sum(1)

    def compute(self) -> dict[str, float]:
        """Returns ``{protocol: F in [0, 1]}``; NaN if a valid prediction was, or if nothing is salient or predicted."""
        histogram = self.histogram.double()
        false, true = _at_least(histogram)
        missed = histogram[1].sum() - true
        # F = (1 + β²) TP / ((1 + β²) TP + β² FN + FP): defined although precision or recall is not.
        hits = (1 + self.BETA_SQUARE) * true
        scores = hits / (hits + self.BETA_SQUARE * missed + false)
        score = float("nan") if self.broken else float(scores.nan_to_num(-1).max())
        return {self.protocol: score if score >= 0 else float("nan")}


class SaliencyIoU(Metric):
    """IoU of the salient pixels of each image, averaged over images, at the best of 15 thresholds 0.2 ... 0.9.

    The form of the ASTMT line, `saliency_miou_best@1`. `saliency_miou@1` is another number: both classes, counted
    over the set, at threshold 0.5. An image with neither a salient nor a predicted pixel counts 1.

    Args:
        ignore: Value of unlabelled pixels; an image of them alone does not count.
    """

    full_state_update = False
    total: Tensor
    images: Tensor
    protocols = higher("saliency_miou_best@1")

    def __init__(self, *, ignore: int = 255):
        super().__init__()
        self.ignore = ignore
        self.thresholds = [k / 20 for k in range(4, 19)]
        self.add_state("total", torch.zeros(15, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds logits (B, 1, H, W) against float (B, 1, H, W) labels: 0, 1 or ignored."""
        valid = target != self.ignore
        histogram = _histogram(prediction.double().sigmoid(), target == 1, valid, self.thresholds)
        false, true = _at_least(histogram.double())
        union = false + histogram[1].sum(-1, keepdim=True)
        overlap = torch.where(union > 0, true / union, 1.0)
        overlap[(prediction.isnan() & valid).flatten(1).any(1)] = torch.nan
        seen = valid.flatten(1).any(1)
        self.total += overlap[seen].sum(0)
        self.images += seen.sum()

    def compute(self) -> dict[str, float]:
        """Returns ``{protocol: share in [0, 1]}``; NaN without labels, or if a valid prediction was NaN."""
        return {"saliency_miou_best@1": float((self.total / self.images).max())}


def _histogram(probability: Tensor, positive: Tensor, valid: Tensor, thresholds: list[float]) -> Tensor:
    """Returns, for negatives and positives, (2, B, K + 1) pixels by the number of thresholds that they reach."""
    edges = torch.tensor(thresholds, dtype=probability.dtype, device=probability.device)
    level = torch.bucketize(probability, edges, right=True)
    cells, batch = len(thresholds) + 1, len(probability)
    image = torch.arange(batch, device=level.device).view(-1, 1, 1, 1)
    cell = ((positive.long() * batch + image) * cells + level)[valid]
    return torch.bincount(cell, minlength=2 * batch * cells).view(2, batch, cells)


def _at_least(histogram: Tensor) -> Tensor:
    """Returns (..., K) pixels that reach each threshold, of (..., K + 1) by how many they reach."""
    return histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]
