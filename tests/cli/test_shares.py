"""How a bench divides cores and accelerators between runs."""

from __future__ import annotations

import os

import pytest

from mtlbench.cli import bench


@pytest.mark.parametrize(
    ("jobs", "devices", "accelerators", "cores", "found"),
    [
        (None, 1, 0, 8, (8, 1)),
        (None, 2, 0, 8, (4, 1)),
        (2, 1, 0, 8, (2, 4)),
        (16, 1, 0, 8, (16, 1)),
        (None, 1, 4, 8, (4, 2)),
        (None, 2, 4, 8, (2, 2)),
        (None, 8, 4, 8, (1, 2)),
        (3, 1, 4, 2, (3, 1)),
    ],
)
def test_runs_at_once_and_threads(
    jobs: int | None,
    devices: int,
    accelerators: int,
    cores: int,
    found: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert bench._share_cores(jobs, devices, accelerators) == found


@pytest.mark.parametrize(
    ("visible", "found"), [("", []), ("3", ["3"]), ("0, 2", ["0", "2"]), ("GPU-a,GPU-b,", ["GPU-a", "GPU-b"])]
)
def test_accelerators_are_those_that_the_user_shows(
    visible: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert bench._accelerators() == found


def test_without_a_choice_all_accelerators_count(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert bench._accelerators() == ["0", "1"]
