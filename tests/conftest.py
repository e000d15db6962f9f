"""What all tests share: one thread, and two ranks that stay alive."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch

from mtlbench.testing.rank_pool import RankPool


@pytest.fixture(scope="session", autouse=True)
def _one_quiet_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Decoded images of the tests' small sets are not for the user's cache.
    os.environ["MTLBENCH_CACHE"] = str(tmp_path_factory.mktemp("decoded"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Two gloo ranks; starting them takes seconds, so all tests use the same."""
    ranks = RankPool(2)
    yield ranks
    ranks.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests that wait for other processes first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "launch"))


def pytest_collection_finish() -> None:
    """Spares modules and collected tests from every collection of garbage, which took 2.5 of 24 s in a subset."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
