"""An order for data in shards that do not fit on a disk: samples are shuffled within a window that moves over them.

The order is a function of seed, epoch and the number of samples alone. It does not depend on where the data is read
from, so files on a disk and shards in a bucket give the same batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Layout:
    """Which shard a sample of a split lies in.

    Attributes:
        size: Samples of the split.
        samples: Samples of a shard, at most.
        spread: Whether a shard holds every n-th sample, of n shards, instead of consecutive ones. Neighbours, such as
            views of one building, then lie in different shards, and every shard is a fair part of the whole.
    """

    size: int
    samples: int
    spread: bool

    @property
    def count(self) -> int:
        """Number of shards, n."""
        return -(-self.size // self.samples)

    def place(self, index: int) -> tuple[int, int]:
        """Returns the shard of a sample, and its row there."""
        if self.spread:
            row, shard = divmod(index, self.count)
            return shard, row
        return divmod(index, self.samples)

    def members(self, shard: int) -> range:
        """Returns the samples of a shard, in order."""
        if self.spread:
            return range(shard, self.size, self.count)
        return range(shard * self.samples, min(self.size, (shard + 1) * self.samples))


@dataclass(frozen=True)
class Window:
    """How a pass over the training samples is shuffled.

    The shards are put into a random order. Each sample then moves back by a random number of shards, less than
    ``shards``; those that would move beyond the end are put at the beginning. So at any time, samples of ``shards``
    shards are drawn, and a shard at a time is replaced. With as many shards as there are, all samples are shuffled.

    Attributes:
        shards: Shards from which samples are drawn at the same time.
        samples: Samples of a shard.
    """

    shards: int
    samples: int

    def layout(self, size: int) -> Layout:
        """Returns the shards of a training split."""
        return Layout(size, self.samples, spread=True)

    def order(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """Returns the indices of all samples, each once, in the order of one pass."""
        count = self.layout(size).count
        position = np.empty(count)
        position[generator.permutation(count)] = np.arange(count)
        moved = position[np.arange(size) % count] + min(self.shards, count) * generator.random(size)
        return np.argsort(moved % count, kind="stable")

    def in_turn(self, size: int) -> np.ndarray:
        """Returns the indices of all samples, shard after shard, for reading them without chance."""
        layout = self.layout(size)
        return np.concatenate([np.array(layout.members(shard)) for shard in range(layout.count)])


class Ahead:
    """Tells samples in shards which of them are read next, so that their shards are there in time.

    Args:
        order: Returns the order of an epoch.
        prefetch: Is given the indices that come next, in order; must return at once.
        reach: How many of them.
    """

    def __init__(self, order: Callable[[int], np.ndarray], prefetch: Callable[[np.ndarray], None], reach: int):
        self.order, self.prefetch, self.reach = order, prefetch, reach
        self._told: tuple[int, int] | None = None
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, epoch: int, index: int) -> None:
        """Is called before a sample is read."""
        order, places = self._known(epoch)
        at = int(places[index])
        part = (epoch, at * 8 // self.reach)
        if part == self._told:
            return
        self._told = part
        coming = order[at : at + self.reach]
        if len(coming) < self.reach:
            coming = np.concatenate([coming, self._known(epoch + 1)[0][: self.reach - len(coming)]])
        self.prefetch(coming)

    def _known(self, epoch: int) -> Any:
        """Returns the order of an epoch and its inverse."""
        if epoch not in self._orders:
            order = self.order(epoch)
            places = np.empty_like(order)
            places[order] = np.arange(len(order))
            self._orders = {e: known for e, known in self._orders.items() if e in (epoch - 1, epoch + 1)}
            self._orders[epoch] = order, places
        return self._orders[epoch]
