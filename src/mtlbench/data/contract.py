"""The data contract: what a sample and a batch hold."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np

Sample = dict[str, Any]


class Batch(dict[str, Any]):
    """What a method receives; its keys are described in `mtlbench.data.module`."""

    def __missing__(self, key: str) -> Any:
        if key == "image" and "inputs" in self:
            warnings.warn("Read batch['inputs']: batch['image'] is its former name.", DeprecationWarning, stacklevel=2)
            return self["inputs"]
        raise KeyError(key)


class Samples(Protocol):
    """A finite, indexable set of samples.

    If it has an attribute ``lengths``, an integer array (N,), the batches of training hold samples of similar length.
    If it has a method ``tell(task, index, value)``, ``mtlbench predict`` writes what it returns for a decoded
    prediction of a task, unless that is None.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def lengths_of(samples: Samples) -> np.ndarray | None:
    """Returns the lengths of samples whose batches hold samples of similar length, or None."""
    return getattr(samples, "lengths", None)


def streams(batch: Any) -> list[Any]:
    """Returns the plain batches inside a batch: one, or one per stream."""
    return list(batch["streams"].values()) if "streams" in batch else [batch]
