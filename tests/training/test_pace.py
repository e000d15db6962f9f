"""Trainings that take turns: what is timed, what is lent, and how they end."""

from __future__ import annotations

import threading
import time

import pytest

from mtlbench.errors import MtlbenchError
from mtlbench.runs.plan import foreseen
from mtlbench.runs.store import RunFolder
from mtlbench.testing import toy_spec, trained
from mtlbench.training.cost import prediction_cost
from mtlbench.training.pace import Paced, pairs, phase_flops, preparation_flops, training_flops
from tests.support.linear_method import LINEAR, TASKS, by_hand


def linear(name, **changes):
    return toy_spec(f"{LINEAR}:{name}", tasks=TASKS, ragged=False, **changes)


class Fake:
    """A training whose blocks take as long as a test says."""

    def __init__(self, name, log, seconds):
        self.name, self.log, self.seconds = name, log, iter(seconds)

    def advance(self, steps):
        self.log.append((self.name, steps))
        return next(self.seconds)


def test_pairs_take_turns_and_the_first_block_warms_up():
    log = []
    ours = [Fake("a", log, [100, 1, 3, 5]), Fake("b", log, [100, 2, 4, 6])]
    found = pairs(ours, [Fake("r", log, [100, 7, 8, 9])], 3, 5)
    assert found == [([1, 2], [7]), ([3, 4], [8]), ([5, 6], [9])]
    assert {steps for _, steps in log} == {5}
    assert "".join(name for name, _ in log) == "abr" + "rab" + "abr" + "rab"


def test_blocks_hold_the_time_of_their_own_steps_alone():
    with Paced(linear("Plain"), 30) as fast, Paced(linear("Slow"), 30) as slow:
        found = pairs([slow], [fast], 3, 4)
        time.sleep(2)  # Time between blocks belongs to none.
        assert fast.advance(4) < 2
    assert all(mine[0] >= 4 * 0.05 for mine, _ in found)
    assert slow.method.trainer.global_step == 16 and fast.method.trainer.global_step == 20


def test_a_training_advances_by_whole_steps_of_several_micro_batches():
    with Paced(linear("Plain", accumulate=4), 6) as training:
        training.advance(2)
        assert training.method.trainer.global_step == 2
        training.advance(1)
        assert training.method.trainer.global_step == 3


def test_diagnostics_are_off():
    with Paced(toy_spec("uniform", local={"diagnose_every": 1}), 4) as training:
        training.advance(4)
        assert training.method.last_update is None


def test_flops_of_phases_are_weighted_by_the_steps_of_the_run_itself():
    spec = linear("EveryThird", steps=100)
    found = phase_flops(spec)
    assert found["plain"] == by_hand() and found["looks"] == by_hand(forward_passes=2)
    assert training_flops(spec) == 34 * by_hand(forward_passes=2) + 66 * by_hand()
    assert training_flops(spec, {"": 1.0, "plain": 2.0}) == 34 + 66 * 2


@pytest.mark.parametrize(("steps", "batches"), [(2, 2), (20, 3)])
def test_flops_of_a_run_hold_what_it_prepares(steps, batches, tmp_path):
    """A budget counts what the run itself counts: a look at every batch, and steps that do not pay for it."""
    spec, look = linear("Prepares", steps=steps), by_hand(forward_passes=1) - by_hand(forward_passes=0)
    assert phase_flops(spec)[""] == by_hand()
    assert training_flops(spec) == batches * look + steps * by_hand()
    trained(spec, str(tmp_path))
    assert RunFolder(tmp_path, spec.run_id).result()["cost"]["training_flops"] == training_flops(spec)


def test_a_preparation_is_counted_until_it_has_all_it_wants():
    seen, look = {}, by_hand(forward_passes=1) - by_hand(forward_passes=0)
    for steps, batches in ((20, 3), (2, 2), (5, 3)):
        assert preparation_flops(linear("Prepares", steps=steps), seen) == batches * look
    assert preparation_flops(linear("Unbuildable", steps=7), seen) == 3 * look, "it is known, so nothing is built"
    with pytest.raises(MtlbenchError, match="cannot be built"):
        preparation_flops(linear("Unbuildable", steps=3), seen)


@pytest.mark.parametrize("name", ["kd_mtl", "computation_sharing"])
def test_networks_of_other_runs_are_lent(name):
    from mtlbench.registry import find

    runs, serving = foreseen(find(name).plan(toy_spec(name, steps=12, tasks=["kind", "far"])))
    (last,) = [run for run in runs if run.sources]
    assert last.run_id in serving.values()
    with Paced(last, 12) as training:
        assert training.advance(12) > 0
        assert prediction_cost(training.method)["flops"] > 0


def test_errors_reach_the_caller_and_no_thread_stays():
    before = threading.active_count()
    with pytest.raises(MtlbenchError, match="in its second step"), Paced(linear("Breaks"), 5) as training:
        training.advance(1)
        training.advance(1)
    with pytest.raises(MtlbenchError, match="cannot be built"):
        Paced(linear("Unbuildable"), 5)
    with pytest.raises(ValueError, match="5 steps"), Paced(linear("Plain"), 5) as training:
        training.advance(6)
    with Paced(linear("Plain"), 5):
        pass
    assert threading.active_count() == before
