"""The order of data in shards: a shuffle that needs few shards at a time, and what is told to read ahead."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from mtlbench.data import StepBatches
from mtlbench.data.windows import Ahead, Layout, Window


def order(window: Window, size: int, seed: int = 0) -> np.ndarray:
    return window.order(size, np.random.default_rng(seed))


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize(("size", "samples"), [(20, 5), (23, 5), (4, 9), (5, 1)])
def test_shards_divide_a_split(size: int, samples: int, spread: bool) -> None:
    layout = Layout(size, samples, spread)
    shards = [layout.members(shard) for shard in range(layout.count)]
    assert sorted(index for shard in shards for index in shard) == list(range(size))
    assert max(map(len, shards)) <= samples and min(map(len, shards)) > 0
    for index in range(size):
        shard, row = layout.place(index)
        assert shards[shard][row] == index
    assert not spread or max(map(len, shards)) - min(map(len, shards)) <= 1


def test_an_order_holds_every_sample_once_and_depends_on_the_generator_alone() -> None:
    window = Window(3, 10)
    first = order(window, 97)
    assert sorted(first) == list(range(97))
    assert np.array_equal(first, order(window, 97)) and not np.array_equal(first, order(window, 97, seed=1))


def test_a_pass_fetches_every_shard_once_and_those_of_the_first_window_twice() -> None:
    window, size, epochs = Window(4, 50), 2000, 3
    layout, held, fetched = window.layout(size), OrderedDict(), 0
    for epoch in range(epochs):
        for index in order(window, size, epoch):
            shard = layout.place(int(index))[0]
            fetched += shard not in held
            held[shard] = held.pop(shard, None)
            if len(held) > window.shards + 1:
                held.popitem(last=False)
    assert layout.count == 40 and fetched <= epochs * (layout.count + window.shards)


def test_samples_of_all_shards_of_the_window_are_mixed() -> None:
    window, size = Window(8, 100), 4000
    shards = order(window, size) % window.layout(size).count
    parts = [len(set(shards[start : start + 100])) for start in range(0, size, 100)]
    assert min(parts) >= 8 and max(parts) <= 10, "as many while the pass begins and ends"
    whole = order(Window(100, 100), size)
    assert np.corrcoef(whole, np.arange(size))[0, 1] == pytest.approx(0, abs=0.05)
    assert len(set(whole[:100] % 40)) > 30, "a window over everything shuffles everything"


def test_reading_in_turn_needs_one_shard_at_a_time() -> None:
    window = Window(2, 5)
    shards = window.in_turn(23) % window.layout(23).count
    assert sorted(window.in_turn(23)) == list(range(23)) and (np.diff(shards) >= 0).all()


def test_batches_take_the_order_of_the_window_and_resume_within_it() -> None:
    options = {"shuffle": Window(2, 4).order}
    whole = list(StepBatches(26, 8, 7, 3, **options))
    assert list(StepBatches(26, 8, 7, 3, start=4, **options)) == whole[4:] != list(StepBatches(26, 8, 7, 3))[4:]
    ranks = [list(StepBatches(26, 8, 7, 3, rank=rank, world=2, **options)) for rank in range(2)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert sorted(shares[0] + shares[1]) == sorted(batch) and not set(shares[0]) & set(shares[1])


def test_what_comes_next_is_told_early_and_across_the_end_of_a_pass() -> None:
    orders = [np.random.default_rng(epoch).permutation(40) for epoch in range(3)]
    told: list[list[int]] = []
    ahead = Ahead(orders.__getitem__, lambda coming: told.append(coming.tolist()), 16)
    for index in orders[0]:
        ahead(0, int(index))
    assert len(told) == 20, "eight times per reach"
    both = np.concatenate(orders[:2]).tolist()
    assert told == [both[at : at + 16] for at in range(0, 40, 2)]
