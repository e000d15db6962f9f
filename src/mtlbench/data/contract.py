"""The data contract: what a sample and a batch hold."""

from __future__ import annotations

from typing import Any, Protocol

Sample = dict[str, Any]


Batch = dict[str, Any]


class Samples(Protocol):
    """A finite, indexable set of samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def streams(batch: Batch) -> list[Batch]:
    """Returns the plain batches inside a batch: one, or one per stream."""
    return list(batch["streams"].values()) if "streams" in batch else [batch]
