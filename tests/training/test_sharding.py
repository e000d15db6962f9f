"""Two ranks with shards equal one process, stopped and resumed or not; what needs whole parameters is refused."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import ExitCode, MethodError
from mtlbench.testing import TOLERANCE, difference, toy_spec, trained
from mtlbench.testing.rank_pool import RankError
from mtlbench.training.build import build_with_network
from mtlbench.training.sharding import FSDP2Strategy, check_sharding
from tests.support.command_line import mtlbench

STEPS = 7


def sharded(name="uniform", **local):
    return toy_spec(name, steps=STEPS, evaluate_every=2, local={"strategy": "fsdp", "checkpoint_every": 0, **local})


def trained_in_shards(spec, folder, *, stop_at=None):
    """Trains on this rank; returns the final weights, and the share of the network's numbers that it held."""
    shares = []
    step = FSDP2Strategy.optimizer_step

    def look(self, *args, **kwargs):
        parameters = [p for group in self.optimizers[0].param_groups for p in group["params"]]
        shares.append(sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters))
        return step(self, *args, **kwargs)

    FSDP2Strategy.optimizer_step = look
    try:
        return trained(spec, folder, world=2, stop_at=stop_at), shares
    finally:
        FSDP2Strategy.optimizer_step = step


@pytest.mark.parametrize(("name", "local"), [("uniform", {}), ("famo", {"gradient_checkpointing": True})])
def test_two_ranks_with_shards_equal_one_process(name, local, pool, tmp_path):
    alone = trained(toy_spec(name, steps=STEPS, evaluate_every=2), str(tmp_path / "one"))
    (first, shares), (second, others) = pool.call(trained_in_shards, sharded(name, **local), str(tmp_path / "two"))
    assert difference(first, second) == 0 and difference(alone, first) <= TOLERANCE
    assert not any(hasattr(value, "full_tensor") for value in first.values())
    assert all(0.4 < a < 0.6 and a + b == 1 for a, b in zip(shares, others, strict=True)) and len(shares) == STEPS


def test_a_stopped_run_resumes_from_its_checkpoint(pool, tmp_path):
    straight = pool.call(trained_in_shards, sharded(), str(tmp_path / "straight"))[0][0]
    assert pool.call(trained_in_shards, sharded(), str(tmp_path / "cut"), stop_at=4)[0][0] is None
    resumed, shares = pool.call(trained_in_shards, sharded(), str(tmp_path / "cut"))[0]
    assert len(shares) < STEPS and difference(straight, resumed) == 0


def test_a_rule_on_gradients_is_refused(pool, tmp_path):
    with pytest.raises(RankError, match="needs whole gradients on every rank; FSDP2Strategy"):
        pool.call(trained, sharded("pcgrad"), str(tmp_path), world=2)


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("task_moe", {}, "overrides training_step"), ("uncertainty", {}, "outside the network"),
    ("uniform", {"local": {"diagnose_every": 5}}, "diagnose_every=0"),
    ("uniform", {"precision": "16-mixed"}, "bf16-mixed"), ("uniform", {"local": {"compile": "inductor"}}, "compile"),
])  # fmt: skip
def test_what_needs_whole_parameters_is_refused(name, changes, message):
    spec = toy_spec(name, **changes)
    with pytest.raises(MethodError, match=message):
        check_sharding(build_with_network(spec)[0], spec)


def test_a_rule_that_moves_parameters_is_refused():
    method, _ = build_with_network(toy_spec("uniform"))
    assert method.surgery.whole() == method.surgery.shared
    method.surgery.shared[0].full_tensor = torch.Tensor()  # What marks a share.
    with pytest.raises(MethodError, match=r"trainer\.strategy=ddp"):
        method.surgery.whole()


@pytest.mark.parametrize(("words", "facts"), [
    (["trainer.strategy=fsdq"], ["Unknown strategy 'fsdq'", "'fsdp'"]),
    (["--methods", "pcgrad", "--devices", "2", "trainer.strategy=fsdp"],
     ["pcgrad: A gradient rule needs whole gradients", "trainer.diagnose_every=25"]),
])  # fmt: skip
def test_a_bench_refuses_what_it_cannot_shard(words, facts, tmp_path):
    answer = mtlbench(tmp_path, "bench", "digits", *words)
    assert answer.code == ExitCode.REFUSED and [fact for fact in facts if fact not in answer.text] == [], answer.text
