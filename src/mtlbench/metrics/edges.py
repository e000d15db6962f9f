"""Boundary metrics of the BSDS protocol, exact and streamed: odsF, oisF and average precision."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics import bsds
from mtlbench.metrics.boundary import Counts, average_precision, f_measure, image_counts
from mtlbench.metrics.protocol import higher

SETS = {0.0075: "pascal", 0.011: "nyud"}
"""Data sets by their customary largest distance; they name the protocols."""

THRESHOLDS = 99


def edge_protocols(max_distance: float = 0.0075, thresholds: int = THRESHOLDS) -> tuple[str, str, str]:
    """Returns the protocol ids of odsF, oisF and AP, named after the data set or after the settings that differ.

    Example:
        >>> edge_protocols(0.011)
        ('edge_odsf_nyud@1', 'edge_oisf_nyud@1', 'edge_ap_nyud@1')
        >>> edge_protocols(0.02, thresholds=33)[0]
        'edge_odsf_0.02_t33@1'
    """
    name = SETS.get(max_distance, f"{max_distance:g}")
    name += "" if thresholds == THRESHOLDS else f"_t{thresholds}"
    return f"edge_odsf_{name}@1", f"edge_oisf_{name}@1", f"edge_ap_{name}@1"


class EdgeODSF(Metric):
    """Boundary F at the best threshold of the data set (odsF) and of each image (oisF), and average precision (AP).

    Protocol, version 1 (after Martin, Fowlkes and Malik, 2004, and Arbeláez et al., 2011):

    1. Probability = sigmoid of the logit; unlabelled pixels predict nothing.
    2. Non-maximum suppression across the edge (`thinning.suppress`), then thinning (`thinning.thin`), once for all
       thresholds; true edges are thinned in the same way, so a prediction that equals the truth scores 1.
    3. At each threshold k/(K+1), k = 1..K, pixels of at least that probability are matched one to one with true
       pixels at most ``max_distance`` x the diagonal of the map away.
    4. Precision = matched / all predicted pixels, recall = matched / all true pixels. The counts of all images are
       added, then F = 2PR/(P+R). odsF is the best F over thresholds; oisF adds, for each image, the counts at its own
       best threshold (the lowest of equals); AP is `boundary.average_precision`.

    Several annotators: recall adds the matchings with each of them, and a predicted pixel is right if it matches one.

    What counts is the size of a maximum matching. BSDS minimises distance with a penalty for unmatched pixels that
    exceeds any distance a hundredfold: the same size, except that it may leave a pair unmatched where that would take
    a chain of about two hundred exchanges. With several annotators its count of right pixels depends on which of the
    best matchings is found; ours is the largest that any choice of maximum matchings gives. Other differences: BSDS
    thins at every threshold, and its scripts interpolate F between thresholds and start AP at the lowest recall
    reached.

    Thresholds cost nothing: pixels join a matching in the order of their probability (`matching.matched_in_order`).
    An image costs O(pixels + pairs within reach) as a rule; states are sums, so memory is flat and ranks add exactly.

    Args:
        max_distance: Share of the diagonal, > 0: 0.0075 for PASCAL-Context, 0.011 for NYUD-v2.
        thresholds: Number K.
        ignore: Value of unlabelled pixels.
        workers: Processes that share the images of a batch; 0 = this one. In a daemonic process always 0.
    """

    full_state_update = False
    count = staticmethod(image_counts)
    counts: Tensor
    best: Tensor
    broken: Tensor

    def __init__(
        self, *, max_distance: float = 0.0075, thresholds: int = THRESHOLDS, ignore: int = 255, workers: int = 0
    ):
        super().__init__()
        self.max_distance, self.ignore, self.workers = max_distance, ignore, workers
        self.protocols = higher(*edge_protocols(max_distance, thresholds))
        self.thresholds = np.arange(1, thresholds + 1) / (thresholds + 1)
        self.add_state("counts", torch.zeros(4, thresholds, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("best", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("broken", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds logits (B, 1, H, W) against the edges (B, A, H, W) of A annotators: 0, 1 or ignored."""
        labelled = target != self.ignore
        self.broken += (prediction.isnan() & labelled.any(1, keepdim=True)).sum()
        seen = labelled.flatten(1).any(1)
        probability = prediction[seen, 0].double().sigmoid().nan_to_num().cpu().numpy()
        truth = torch.where(labelled, (target == 1).to(torch.uint8), 255)[seen].cpu().numpy()
        for found in self._each(list(probability), list(truth)):
            self.counts += torch.from_numpy(found).to(self.counts.device)
            own_best = found[:, f_measure(found).argmax()]
            self.best += torch.from_numpy(own_best).to(self.best.device)

    def compute(self) -> dict[str, float]:
        """Returns odsF, oisF and AP in [0, 1]; NaN if no edge was labelled or some prediction was NaN."""
        if self.broken or not self.counts[3].any():
            return {protocol.id: float("nan") for protocol in self.protocols}
        counts, best = self.counts.cpu().numpy(), self.best.cpu().numpy()
        values = self.summarise(counts, best)
        return {protocol.id: float(value) for protocol, value in zip(self.protocols, values, strict=True)}

    @staticmethod
    def summarise(counts: Counts, best: Counts) -> tuple[float, float, float]:
        """Returns odsF, oisF and AP of summed counts (4, K) and of those at each image's best threshold (4,)."""
        return float(f_measure(counts).max()), float(f_measure(best)), average_precision(counts)

    def _each(self, probabilities: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> list[Counts]:
        alone = not self.workers or multiprocessing.current_process().daemon
        every: Callable[..., map[Counts]] = map if alone else _pool(self.workers).map  # type: ignore[assignment]
        n = len(truths)
        return list(every(self.count, probabilities, truths, [self.thresholds] * n, [self.max_distance] * n))


class EdgeBSDS(EdgeODSF):
    """odsF, oisF and AP by the official procedure of BSDS500, for data with several annotators.

    As `EdgeODSF`, except that the map is taken as it is (it should be non-maximum suppressed already), thinned anew at
    every threshold and matched with each annotator by itself at the least total distance; a predicted pixel is right
    if any of the matchings takes it. `EdgeODSF` counts the most pixels that any choice of maximum matchings allows,
    which is .5 to 1.6 points higher with the five annotators of BSDS500, and the same with one annotator to .1 %. F is
    interpolated between thresholds, and AP is 0 outside the recalls that thresholds reach.

    Every threshold is matched by itself: about two orders of magnitude slower than `EdgeODSF`.
    """

    count = staticmethod(bsds.official_counts)

    def __init__(
        self, *, max_distance: float = 0.0075, thresholds: int = THRESHOLDS, ignore: int = 255, workers: int = 0
    ):
        super().__init__(max_distance=max_distance, thresholds=thresholds, ignore=ignore, workers=workers)
        name = f"{max_distance:g}" + ("" if thresholds == THRESHOLDS else f"_t{thresholds}")
        self.protocols = higher(*(f"edge_{kind}_bsds_{name}@1" for kind in ("odsf", "oisf", "ap")))

    @staticmethod
    def summarise(counts: Counts, best: Counts) -> tuple[float, float, float]:
        """Returns odsF, oisF and AP of summed counts, as the scripts do."""
        return bsds.best_f(counts), float(f_measure(best)), bsds.official_average_precision(counts)


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """Returns the processes that all metrics share; spawned, since a process with a GPU must not be forked."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
