"""`Task`: one thing to predict, with its loss, its ignore rule, its metrics and their direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench import visualise
from mtlbench.metrics.protocol import Protocol
from mtlbench.tasks.blind import Blind
from mtlbench.tasks.geometry import Geometry, LabelOptions
from mtlbench.visualise import IGNORE, Picture

__all__ = ["IGNORE", "Array", "Task", "form_fault", "masked", "masked_sum"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Task(ABC):
    """One thing to predict.

    A kind of your own overrides what differs from the defaults: `draw` or `caption` for pictures, `warp` for
    augmentation, `store`, `restore` and `outside` for the cache of decoded labels, `fault` for the range of its values.

    Attributes:
        name: Key in ``batch["targets"]`` and in the network's predictions.
        scale: Static factor on the loss, applied before any balancing.
        optional: Whether the task is dropped when the data lacks it altogether.
        array: Whether a decoded prediction is numbers with neither a picture nor a word for them.
    """

    name: str
    scale: float = 1.0
    optional: bool = False

    kind: ClassVar[str]
    dense: ClassVar[bool] = True
    per_token: ClassVar[bool] = False
    in_delta_m: ClassVar[bool] = True
    array: ClassVar[bool] = False

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels that the head must predict."""

    @property
    def branches(self) -> tuple[int, ...]:
        """How the channels divide into quantities, each of which may get a branch of a head. Default: one of all."""
        return (self.channels,)

    def form(self, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape of one sample's raw prediction: (channels, H, W) of dense tasks, (channels,) of others."""
        return (self.channels, height, width) if self.dense else (self.channels,)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """What `metric` computes; the first one enters Δm and the ranking."""
        return cast(tuple[Protocol, ...], self.metric().protocols)

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Returns which elements carry a label: bool, (B, H, W) for a label per pixel, (B,) for one per sample."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the sum of the loss over valid elements, a scalar in the graph of ``prediction``.

        Args:
            prediction: (B, *form), float32, raw network output.
            target: As the kind's docstring says.
        """

    @abstractmethod
    def metric(self) -> Metric:
        """Returns a fresh metric: ``update(prediction, target)``, ``compute() -> {protocol id: float}``.

        Its ``protocols`` tell what it computes.
        """

    def monitor(self) -> Metric:
        """Returns the metric for training; override it if `metric` takes too long. Default: `metric`."""
        return self.metric()

    def blind(self) -> Blind | None:
        """Returns what fits the best prediction that ignores the input, see `mtlbench.tasks.blind`.

        Default: None. The row `floor` then lacks this task.
        """
        return None

    @abstractmethod
    def blank(self, height: int, width: int) -> Tensor:
        """Returns the target of a sample that has no label for this task."""

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns a raw prediction in the form of a target: class ids, probability, unit vector, metres, number."""
        return prediction

    def decode_beside(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Decodes a raw prediction for display beside its target. Default: `decode`."""
        return self.decode(prediction)

    def decode_at(self, prediction: Tensor, height: int, width: int) -> Tensor:
        """Decodes a raw prediction for another size of the image. Default: dense ones are resized first.

        Not afterwards, because class ids and unit vectors have no values in between.
        """
        if self.dense:
            prediction = F.interpolate(prediction, (height, width), mode="bilinear")
        return self.decode(prediction)

    def fault_within(self, target: Tensor, height: int, width: int) -> str | None:
        """As `fault`, with the size of the image, which limits places in it. Default: `fault`."""
        return self.fault(target)

    def fault(self, target: Tensor) -> str | None:
        """Finds what is wrong with the values of a target, one sample's or a batch's: the rule and a value.

        It runs on every batch, so it should take few passes over the target. Default: no value is infinite, and NaN
        stands only where `valid` treats it as missing.

        Returns:
            For example ``"classes are 0..6, or 255 for ignore. Found 7"``; None if the target is fine.
        """
        if not target.is_floating_point() or target.isfinite().all():
            return None
        bad = target.isinf().any() or (self.dense and target.isnan().any())
        return f"labels are finite. Found {first_of(target, ~target.isfinite())}" if bad else None

    def vacant(self, target: Array) -> bool:
        """Returns whether a target carries no information any more, so that it counts as missing. Default: never."""
        return False

    def draw(self, value: Array, truth: Array | None = None) -> Picture:
        """Draws a dense label or a decoded prediction as RGB uint8 (H, W, 3). Elements without a label are hatched.

        Default: one channel as a scale of colours, more as red, green and blue.

        Args:
            value: A target, or what `decode` made of a prediction, of one sample.
            truth: The target, whose range sets the colours, so that pictures compare. Default: ``value``.
        """
        return visualise.values(value, truth)

    def draw_on(self, image: Picture, value: Array, truth: Array | None = None) -> Picture:
        """As `draw`, for kinds that draw on the image, uint8 (H, W, 3). Default: `draw`, without it."""
        return self.draw(value, truth)

    def caption(self, value: Array) -> str:
        """Returns a whole-image label or a decoded prediction of one sample as text; ``"–"`` where there is none."""
        return visualise.number(value)

    def warp(self, target: Array, geometry: Geometry, options: LabelOptions) -> Array:
        """Makes a dense target follow a change of geometry.

        Default: the value of the nearest pixel, 255 = ignore outside.

        Args:
            target: Of one sample, as `blank` is formed.
            geometry: Mirror, turn, enlargement and crop.
            options: How the recipe wants labels to follow.
        """
        return geometry.nearest(target, IGNORE)

    def store(self, label: Array) -> Array:
        """Returns what the cache keeps of a decoded label, in few bytes: (H, W), (C, H, W) or (C,).

        Default: the label, float64 as float32.
        """
        return label.astype(np.float32) if label.dtype == np.float64 else label

    def restore(self, stored: Array) -> Array:
        """Converts a stored label to a target. Default: float32, with a channel."""
        return stored.astype(np.float32)[None] if stored.ndim == 2 else stored.astype(np.float32)

    def outside(self, stored: Array) -> float:
        """Returns the stored value of an unlabelled pixel, for padding. Default: 255."""
        return IGNORE

    def count(self, target: Tensor) -> int:
        """Returns the number of valid elements; the same on every device and independent of predictions."""
        return int(self.valid(target).sum())

    def describe(self) -> dict[str, Any]:
        """Returns the plain record that enters a run's identity."""
        return {"kind": self.kind, **asdict(self), "protocols": [p.identity() for p in self.protocols]}

    def with_options(self, **changes: Any) -> Task:
        """Returns a copy with another ``scale`` or ``optional``."""
        return replace(self, **changes)


class Number(Task):
    """One number for a sample. Target: float32 (B,), NaN = missing."""

    dense: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        return 1

    def valid(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def blank(self, height: int, width: int) -> Tensor:
        return torch.tensor(float("nan"))


def masked(prediction: Tensor, valid: Tensor) -> Tensor:
    """Returns the prediction (B, C, ...) with zeros where ``valid`` (B, ...) is False.

    Before the loss and not after it: an ignored element may hold NaN, and 0 · NaN would poison the gradient.
    """
    return torch.where(valid[:, None], prediction, 0.0)


def masked_sum(per_element: Tensor, valid: Tensor) -> Tensor:
    """Returns the sum over elements where ``valid`` is True."""
    return torch.where(valid, per_element, 0.0).sum()


def first_of(target: Tensor, bad: Tensor) -> float | int:
    """Returns the first value that breaks a rule."""
    value = target[bad][0].item()
    return round(value, 6) if isinstance(value, float) else int(value)


def form_fault(task: Task, target: Tensor, height: int, width: int) -> str | None:
    """Finds what is wrong with the shape or the type of one sample's target: the rule and the fact; None if fine.

    Args:
        task: What is predicted.
        target: Of one sample.
        height: Of the image.
        width: Of the image.
    """
    try:
        wanted = _form(task, height, width)
    except TypeError:  # a kind with a field that cannot be hashed
        wanted = _form.__wrapped__(task, height, width)
    (dtype, shape), own, size = wanted, target.dtype, tuple(target.shape)
    # Any precision holds the values; whole numbers in place of real ones, or the reverse, mean something else.
    if size == shape and own.is_floating_point == dtype.is_floating_point:
        return None
    as_image = task.dense and shape[-2:] == (height, width)
    hint = "; a label must have the size of its image" if as_image and size[-2:] != (height, width) else ""
    return f"the label must be {dtype} of shape {shape}, found {own} of shape {size}{hint}"


@cache
def _form(task: Task, height: int, width: int) -> tuple[torch.dtype, tuple[int, ...]]:
    blank = task.blank(height, width)
    return blank.dtype, tuple(blank.shape)
