"""Ways of running all tasks over clips, with the scores and cost of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mtlbench.data import Collate, MTLDataModule
from mtlbench.networks.sharing.video import Frame, VideoTask, play
from mtlbench.networks.sharing.video_scores import VideoScores
from mtlbench.tasks.inputs import inputs_of

TOGETHER = 10
"""Clips that run side by side."""

Player = Callable[[Sequence[Tensor]], Iterator[Frame]]
"""Runs the frames of some clips."""


@dataclass(frozen=True)
class Way:
    """One way of running all tasks over clips.

    Attributes:
        label: Name in tables and figures.
        player: Runs the frames.
        threshold: θ, or None where nothing is shared.
        distance: Frames from one key frame to the next; 1 where nothing is shared.
    """

    label: str
    player: Player
    threshold: float | None = None
    distance: int = 1

    @property
    def point(self) -> dict[str, Any]:
        """Plain values that distinguish this way from others."""
        return {"label": self.label, "threshold": self.threshold, "distance": self.distance}


def frame_by_frame(tasks: Mapping[str, VideoTask]) -> Player:
    """Return the way without sharing: every task and every frame is computed separately."""

    def player(images: Sequence[Tensor]) -> Iterator[Frame]:
        each = [play({n: t}, n, images, threshold=0, distance=1, shared_blocks=0) for n, t in tasks.items()]
        for frames in zip(*each, strict=True):
            predictions = {n: p for frame in frames for n, p in frame.predictions.items()}
            yield Frame(0, predictions, {n: m for frame in frames for n, m in frame.macs.items()})

    return player


def sharing(tasks: Mapping[str, VideoTask], base: str, threshold: float, distance: int, blocks: int) -> Player:
    """Returns the way of sharing across tasks and frames, see `play`."""
    return lambda images: play(tasks, base, images, threshold=threshold, distance=distance, shared_blocks=blocks)


def count(data: MTLDataModule, limit: int | None) -> int:
    """Returns the number of clips of the last split, at most ``limit``."""
    whole = len(data.samples(data.SPLITS[-1])) // data.clip_length
    return min(limit or whole, whole)


def measure(ways: Sequence[Way], data: MTLDataModule, free: Player, clips: int) -> list[dict[str, Any]]:
    """Return scores and cost of each way, see `VideoScores.compute`.

    Args:
        ways: What to measure.
        data: Data with clips; its last split is used.
        free: The same networks without sharing, which drift is measured from.
        clips: Use the first ones.
    """
    samples, length, collate = data.samples(data.SPLITS[-1]), data.clip_length, Collate(data.tasks)
    scores = [VideoScores(data.tasks, min(way.distance, length)) for way in ways]
    for first in range(0, clips, TOGETHER):
        some = range(first, min(first + TOGETHER, clips))
        batches = [collate([samples[clip * length + t] for clip in some]) for t in range(length)]
        images = [inputs_of(batch) for batch in batches]
        truth = [frame.predictions for frame in free(images)]
        for way, score in zip(ways, scores, strict=True):
            for batch, frame, apart in zip(batches, way.player(images), truth, strict=True):
                score.update(frame, apart, batch["targets"])
    return [score.compute() for score in scores]
