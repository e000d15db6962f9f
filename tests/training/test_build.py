"""What a specification says arrives in data module, method, trainer and record; and when a run logs and evaluates."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import replace

import pytest
import torch

from mtlbench.method import MTLMethod
from mtlbench.runs.store import RunFolder
from mtlbench.testing import toy_spec, trained
from mtlbench.training import callbacks, run
from mtlbench.training.build import build, build_with_network
from mtlbench.training.callbacks import StepClock
from mtlbench.training.trainer import build_trainer

TINY = "tests.support.step_parts:Tiny"
LOCAL = {"root": "somewhere", "workers": 2, "diagnose_every": 4, "surgery": "light", "weights": "file.safetensors"}


def distinct(balancer="pcgrad", **trainer):
    """Returns a specification in which no value is a default or equal to another."""
    options = {"batch_size": 12, "steps": 9, "accumulate": 3, "seed": 7, "local": LOCAL, **trainer}
    return toy_spec(TINY, balancer=balancer, **options)


def test_a_specification_arrives_in_data_and_method():
    spec = distinct().with_tasks("far", "kind").with_labels({"kind": {"share": 0.5}})
    spec = replace(spec, tasks={**spec.tasks, "far": {**spec.tasks["far"], "scale": 5.0, "optional": True}})
    method, data = build(spec)
    assert (data.root, data.batch_size, data.steps, data.seed) == ("somewhere", 12, 9, 7)
    assert (data.workers, data.micro, data.batches, data.ragged) == (2, 3, 1, True)
    assert list(data.tasks) == ["far", "kind"] and data.labels == {"kind": {"share": 0.5}}
    found = method.spec
    assert (found.steps, found.steps_per_epoch, found.seed) == (9, 48 // 12, 7)
    assert (found.diagnose_every, found.surgery, found.model["weights"]) == (4, "light", "file.safetensors")
    assert found.optimiser == spec.optimiser and found.model == {**spec.model, "weights": "file.safetensors"}
    assert list(method.tasks) == ["far", "kind"] and type(method.balancer).__name__ == "PCGrad"
    assert (method.tasks["far"].scale, method.tasks["far"].optional, method.tasks["kind"].scale) == (5.0, True, 1.0)


def test_options_and_mini_batches_arrive():
    spec = distinct("sdmgrad")
    spec = replace(spec, data={**spec.data, "options": {"ragged": False, "size": 36}})
    method, data = build(spec)
    assert (data.batches, data.ragged, data.size, method.spec.steps_per_epoch) == (3, False, 36, 3)


def test_a_specification_without_choices_takes_the_defaults():
    spec = replace(toy_spec("uniform"), local={})
    method, data = build(spec)
    assert (data.root, data.workers, data.labels) == (None, 0, {})
    assert (method.spec.diagnose_every, method.spec.surgery, method.spec.model["weights"]) == (0, "auto", None)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("32-true", torch.float32)])
def test_weights_depend_on_the_seed_alone(precision, dtype):
    def weights(name, seed):
        return build_with_network(toy_spec(name, precision=precision, seed=seed))[0].network.state_dict()

    one, again, other = weights("uniform", 0), weights("pcgrad", 0), weights("uniform", 1)
    assert all(value.dtype == dtype for value in one.values())
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("clip", [0.0, 0.25])
def test_a_trainer_is_what_the_specification_says(clip, tmp_path):
    trainer = build_trainer(distinct(clip=clip, precision="bf16-mixed"), tmp_path, [], 1, batches=3)
    assert (trainer.max_steps, trainer.accumulate_grad_batches, trainer.precision) == (9, 9, "bf16-mixed")
    assert trainer.gradient_clip_val == (0.25 if clip else None) and trainer.max_epochs == -1
    assert (trainer.limit_val_batches, trainer.num_sanity_val_steps, trainer.world_size) == (0, 0, 1)
    assert trainer.default_root_dir == str(tmp_path) and not trainer.loggers and not trainer.checkpoint_callbacks
    assert trainer.progress_bar_callback is None
    assert build_trainer(distinct(), tmp_path, [], 1).accumulate_grad_batches == 3


# ---- when ------------------------------------------------------------------------------------------------------------


def rows_of(folder, spec):
    lines = (RunFolder(folder, spec.run_id).path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("steps", [12, 13])
def test_a_run_logs_and_evaluates_when_it_is_due_and_at_its_end(steps, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(callbacks.EndOfStep, "_save", lambda self, *_: saved.append(self.step))
    spec = toy_spec(TINY, steps=steps, evaluate_every=3, local={"log_every": 4, "checkpoint_every": 5})
    trained(spec, str(tmp_path))
    rows = rows_of(tmp_path, spec)
    assert [row["step"] for row in rows if "lr" in row] == ([4, 8, 12] if steps == 12 else [4, 8, 12, 13])
    assert [row["step"] for row in rows if any(key.startswith("val/") for key in row)] == (
        [3, 6, 9, 12] if steps == 12 else [3, 6, 9, 12, 13]
    )
    assert saved == [5, 10, steps]


def test_a_period_of_zero_is_never(tmp_path):
    spec = toy_spec(TINY, steps=3, evaluate_every=0, local={"log_every": 0, "checkpoint_every": 0})
    trained(spec, str(tmp_path))
    rows = rows_of(tmp_path, spec)
    assert [(row["step"], "lr" in row) for row in rows] == [(3, True), (3, False)], "the last step, and the scores"


def test_a_single_process_records_although_a_launcher_calls_it_another_rank(tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.setenv(name, "1")  # As in a job of torchrun or SLURM that starts benches side by side.
    spec = toy_spec(TINY, steps=2, evaluate_every=0)
    trained(spec, str(tmp_path))
    assert [(row["step"], "lr" in row) for row in rows_of(tmp_path, spec)] == [(1, True), (2, True), (2, False)]


def test_the_tasks_of_a_cluster_job_are_not_the_ranks_of_a_run(tmp_path, monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert build_trainer(distinct(), tmp_path, [], 1).is_global_zero
    trainer = build_trainer(distinct(), tmp_path, [], 2)
    assert (trainer.num_devices, trainer.num_nodes, trainer.global_rank) == (2, 1, 0)


def test_a_clock_leaves_out_its_first_window_and_the_time_between(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    clock = StepClock()

    def window(seconds, steps):
        now[0] += seconds
        for _ in range(steps):
            clock.count()
        clock.tick()

    assert set(clock.summary().values()) == {None}, "nothing was measured"
    window(30.0, 3)
    assert clock.summary() == {"seconds_per_step": 10.0, "seconds_per_step_p95": 10.0}
    for step in range(1, 21):
        window(float(4 * step), 4)
        now[0] += 1000.0
        clock.restart()
    window(5.0, 0)
    assert clock.windows == [10.0, *map(float, range(1, 21))]
    assert clock.summary() == {"seconds_per_step": 10.5, "seconds_per_step_p95": 20.0}


def test_the_record_of_a_run(tmp_path):
    spec = toy_spec(TINY, steps=2, balancer="pcgrad", seed=4, local={"diagnose_every": 0}).with_tasks("far", "kind")
    trained(spec, str(tmp_path))
    result = json.loads((RunFolder(tmp_path, spec.run_id).path / "result.json").read_text())
    method = build_with_network(spec)[0]
    assert {key: result[key] for key in ("run_id", "hash", "label", "method", "seed", "tasks", "steps", "split")} == {
        "run_id": spec.run_id, "hash": spec.hash, "label": TINY, "method": "Tiny", "seed": 4, "tasks": ["far", "kind"],
        "steps": 2, "split": "val",
    }  # fmt: skip
    assert result["images"] == {"train": 48, "val": 7} and result["validation"] is None
    assert result["conflict_share"] is None and result["task_gates"] is False
    assert set(result["scores"]) == {"far", "kind"} and result["format"] == 1
    cost = result["cost"]
    assert cost["parameters"] == sum(p.numel() for p in method.network.parameters())
    # Two multiplications per weight and pixel: a convolution of 3 x 3 and two heads of 1 x 1 on 16 x 24 pixels.
    assert cost["flops"] == 2 * 16 * 24 * (3 * 9 * 6 + 6 * (1 + 3))
    assert (cost["device"], cost["devices"], cost["threads"]) == ("cpu", 1, torch.get_num_threads())
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 0.8 * resident < cost["peak_memory_gib"] * 2**30 <= resident
    assert 0 < cost["seconds_per_step"] < cost["train_seconds"]
    assert result["finished"] >= result["started"] + cost["train_seconds"] > 1.7e9


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_of_that_step(tmp_path):
    spec = toy_spec(TINY, steps=12, local={"checkpoint_every": 0})
    assert trained(spec, str(tmp_path), stop_at=6) is None
    assert [path.name for path in RunFolder(tmp_path, spec.run_id).path.glob("*.ckpt")] == ["step-00000010.ckpt"]
    assert trained(spec, str(tmp_path), stop_at=12) is not None, "too late to stop"


def test_a_network_is_scored_where_it_was_trained(tmp_path, monkeypatch):
    order = []
    move, score = MTLMethod.to, run.finish
    monkeypatch.setattr(MTLMethod, "cpu", lambda self: order.append("cpu"))  # What Lightning calls when training ends.
    monkeypatch.setattr(MTLMethod, "to", lambda self, *place: order.append(place) or move(self, *place))
    monkeypatch.setattr(run, "finish", lambda *args: order.append("finish") or score(*args))
    trained(toy_spec(TINY, steps=1), str(tmp_path))
    assert order[order.index("cpu") :] == ["cpu", (torch.device("cpu"),), "finish"]
