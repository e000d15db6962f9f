"""What a run costs: seconds per step without diagnostics, and FLOPs against counts by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.balancing.gradients.surgery import Reduced
from mtlbench.balancing.gradients.update import Update
from mtlbench.networks.flops import FlopCounter
from mtlbench.runs.store import read_json
from mtlbench.testing import toy_spec, trained
from mtlbench.testing.toy import ToyData
from mtlbench.training import callbacks
from mtlbench.training.callbacks import StepClock
from mtlbench.training.cost import StepFlops
from tests.support.linear_method import BATCH, CHANNELS, LINEAR, PIXELS, TASKS, WIDTH, by_hand


def result_of(spec, folder) -> dict:
    assert trained(spec, str(folder)) is not None
    return read_json(Path(folder) / spec.run_id / "result.json")


def linear(name, folder, **changes):
    spec = toy_spec(f"{LINEAR}:{name}", tasks=TASKS, ragged=False, **changes)
    return result_of(spec, folder)["cost"]


# ---- the clock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "task_moe"])
def test_seconds_per_step_hold_no_diagnostics(name, tmp_path, monkeypatch):
    asked = []

    def slow(original):
        def wrapped(*args, **kwargs):
            asked.append(1)
            time.sleep(1)
            return original(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(Update, "look", slow(Update.look))
    monkeypatch.setattr(Reduced, "last_gramian", slow(Reduced.last_gramian))
    local = {"diagnose_every": 3, "log_every": 1}
    cost = result_of(toy_spec(name, steps=8, ragged=False, local=local), tmp_path)["cost"]
    assert len(asked) == 3 and cost["train_seconds"] > 3
    assert 0 < cost["seconds_per_step"] <= cost["seconds_per_step_p95"] < 0.8


def test_no_step_can_be_timed_where_each_one_diagnoses(tmp_path):
    cost = result_of(toy_spec("uniform", steps=4, local={"diagnose_every": 1}), tmp_path)["cost"]
    assert cost["seconds_per_step"] is None and cost["seconds_per_step_p95"] is None
    assert cost["training_flops"] > 0


@pytest.fixture
def now(monkeypatch):
    """A clock that goes on when a test says so."""
    at = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: at[0])

    def pass_by(seconds):
        at[0] += seconds

    return pass_by


def test_the_clock_counts_its_own_steps(now):
    clock = StepClock()
    for _ in range(2):
        now(3.0)
        clock.count()
    clock.pause()
    now(100.0)
    clock.count()  # The step that is left out.
    clock.resume()
    now(6.0)
    clock.count()
    clock.tick()
    assert clock.windows == [4.0]


def test_an_evaluation_within_a_window_leaves_no_steps_without_their_time(now):
    clock = StepClock()
    for _ in range(7):
        now(2.0)
        clock.count()
    now(50.0)
    clock.restart()
    for _ in range(3):
        now(2.0)
        clock.count()
    clock.tick()
    assert clock.windows == [2.0]


def test_a_counted_step_is_in_no_window(now):
    clock = StepClock()
    now(70.0)
    clock.count()
    clock.leave_out()  # The first of its window: the window begins anew.
    now(2.0)
    clock.count()
    clock.tick()
    now(2.0)
    clock.count()
    now(70.0)
    clock.count()
    clock.leave_out()
    clock.tick()
    assert clock.windows == [2.0]


def test_a_clock_may_be_closed_while_it_is_paused(now):
    clock = StepClock()
    now(2.0)
    clock.count()
    clock.pause()
    clock.tick()
    now(100.0)
    clock.count()
    clock.restart()
    clock.resume()
    now(3.0)
    clock.count()
    clock.tick()
    assert clock.windows == [2.0, 3.0] and clock.summary()["seconds_per_step"] == 3.0


# ---- FLOPs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), [
    ("Plain", by_hand()), ("OneByOne", by_hand(backward_passes=2)), ("Looks", by_hand(forward_passes=2)),
])  # fmt: skip
def test_training_of_linear_layers_by_hand(name, step, tmp_path):
    cost = linear(name, tmp_path, steps=7)
    assert cost["training_flops"] == 7 * step
    assert cost["flops"] == 2 * PIXELS * WIDTH + 2 * WIDTH * CHANNELS
    assert cost["flops_alone"] == {"kind": 2 * WIDTH * (PIXELS + 3), "mean": 2 * WIDTH * (PIXELS + 1)}
    assert cost["parameters"] == WIDTH * (PIXELS + CHANNELS)
    assert cost["parameters_active"] == {"kind": WIDTH * (PIXELS + 3), "mean": WIDTH * (PIXELS + 1)}


def test_each_kind_of_step_counts_as_often_as_it_occurs(tmp_path):
    assert linear("EveryThird", tmp_path, steps=7)["training_flops"] == 4 * by_hand() + 3 * by_hand(forward_passes=2)


def test_micro_batches_add_up_to_their_step(tmp_path):
    assert linear("Plain", tmp_path, steps=4, accumulate=2)["training_flops"] == 4 * by_hand()
    assert linear("Looks", tmp_path, steps=4, accumulate=4)["training_flops"] == 4 * by_hand(forward_passes=1.25)


def test_diagnostics_are_not_counted(tmp_path):
    found = linear("Plain", tmp_path, steps=5, local={"diagnose_every": 2})
    assert found["training_flops"] == 5 * by_hand()


def test_absent_tasks_cost_no_backward_pass(tmp_path):
    """In every fourth step `shape` has no label: of its kind, another step is counted."""
    whole = toy_spec("pcgrad", steps=8, tasks=["shape", "far"], ragged=False)
    parts = toy_spec("pcgrad", steps=8, tasks=["shape", "far"])
    found = [result_of(spec, tmp_path)["cost"]["training_flops"] for spec in (whole, parts)]
    assert 0.7 * found[0] < found[1] < found[0]


def test_a_small_vision_transformer_by_hand(tmp_path):
    cost = result_of(toy_spec("uniform", steps=6, ragged=False), tmp_path)["cost"]
    patches, tokens, width, depth, channels = 2 * 3, 2 * 3 + 1, 16, 2, 8
    embed = 2 * patches * (3 * 8 * 8) * width
    attention = depth * 2 * 2 * tokens**2 * width
    linear = depth * 2 * tokens * width * width * (3 + 1 + 4 + 4)
    neck = depth * 2 * patches * width * channels + 2 * (4 * patches) * 9 * channels**2
    outputs = {name: task.channels for name, task in ToyData.TASKS.items()}
    dense = sum(2 * (4 * patches) * (9 * channels**2 + channels * outputs[name]) for name in ("shape", "far"))
    heads = dense + sum(2 * channels * outputs[name] for name in ("kind", "mean"))
    forward = embed + attention + linear + neck + heads
    assert cost["flops"] == forward
    # Backward, each product gives two; pixels need no gradient, and fused attention computes its scores once more.
    assert cost["training_flops"] == 6 * BATCH * (3 * forward - embed + attention // 2)


def test_of_experts_the_active_ones_count(tmp_path):
    arguments = {"experts": 4, "top_k": 1, "placement": [1]}
    cost = result_of(toy_spec("task_moe", steps=2, arguments=arguments), tmp_path)["cost"]
    width, hidden = 16, 64
    expert = 2 * width * hidden + hidden + width
    dense = result_of(toy_spec("uniform", steps=2), tmp_path)["cost"]
    router = cost["parameters_active"]["kind"] - dense["parameters_active"]["kind"]
    assert 0 < router < 4 * 4 * width
    assert cost["parameters"] - dense["parameters"] >= 3 * expert
    assert cost["flops"] > 2 * dense["flops"] and cost["flops_alone"]["far"] < 1.1 * dense["flops_alone"]["far"]


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "task_moe", "famo"])
def test_counting_changes_nothing(name, tmp_path, monkeypatch):
    spec = toy_spec(name, steps=5)
    counted = result_of(spec, tmp_path / "one")
    monkeypatch.setattr(StepFlops, "begin", lambda *args: None)
    plain = result_of(spec, tmp_path / "two")
    assert plain["cost"]["training_flops"] is None and counted["cost"]["training_flops"] > 0
    assert [counted[key] for key in ("weights_sha256", "optimiser_sha256", "scores")] == [
        plain[key] for key in ("weights_sha256", "optimiser_sha256", "scores")
    ]


def test_a_resumed_run_has_the_same_flops(tmp_path):
    spec = toy_spec(f"{LINEAR}:EveryThird", steps=20, tasks=TASKS, ragged=False)
    assert trained(spec, str(tmp_path), stop_at=10) is None
    resumed = result_of(spec, tmp_path)["cost"]["training_flops"]
    assert resumed == 13 * by_hand() + 7 * by_hand(forward_passes=2)


def test_the_counter_agrees_with_torchs_own():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7))
    image = torch.rand(2, 3, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        network(image).square().sum().backward()
    with FlopCounter() as ours:
        network(image).square().sum().backward()
    assert ours.flops == theirs.get_total_flops() > 0
    assert set(ours.read) >= {id(p) for p in network.parameters()}
