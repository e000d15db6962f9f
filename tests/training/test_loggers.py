"""W&B as a view of the run's own records, and runs over two ranks, through the real bench."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

import pytest

from mtlbench import cli
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.tracking import wandb_client
from mtlbench.tracking.base import About, Ending
from mtlbench.tracking.tracker import Tracker
from mtlbench.tracking.wandb_client import wandb_mode
from mtlbench.training import checkpoint
from mtlbench.training.loggers import MetricsFile, read_rows
from mtlbench.training.traces import usage
from tests.support.command_line import ended
from tests.support.tracked import records
from tests.support.wandb_server import serving
from tests.support.warm import Command

STEPS = 6
BENCH = (
    "bench",
    "digits",
    "floor=false",
    f"trainer.steps={STEPS}",
    "trainer.log_every=2",
    "trainer.evaluate_every=4",
    "trainer.diagnose_every=2",
    "trainer.examples=1",
    "optimiser.warmup=2",
    "--methods",
    "pcgrad",
)
TASKS = ("left", "right", "sum", "ink", "segments")


def bench(results, *more, **environment):
    """Runs the command without the W&B variables of whoever runs the tests, and returns its code and output."""
    without = {key: None for key in os.environ if key.startswith("WANDB_")}
    words = [*BENCH, *more, "--results", str(results)]
    return ended(Command(results.parent, words, {**without, **environment}), seconds=300)


def history(found):
    """Logged rows without W&B's own columns, except its step."""
    rows = [record["item"] for record in found.get("history", [])]
    return [{k: v for k, v in row.items() if not k.startswith("_") or k == "_step"} for row in rows]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A run over two ranks with W&B offline: the results folder."""
    results = tmp_path_factory.mktemp("two") / "results"
    done = bench(results, "--devices", "2", WANDB_MODE="offline")
    assert done.code == 0, done.text
    return results / "digits"


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The same run in one process, without WANDB_MODE."""
    results = tmp_path_factory.mktemp("one") / "results"
    done = bench(results, "--devices", "1")
    assert done.code == 0, done.text
    return results / "digits"


@pytest.fixture(scope="module")
def tracked(two_ranks):
    """Records of the one W&B run of that job."""
    files = list(two_ranks.rglob("*.wandb"))
    (file,) = [path for path in files if path.parents[2].name != "digits"]
    assert len(files) == 3, "rank zero alone tracks; the others stand for the row and the study"
    return records(file)


def run_in(root):
    (path,) = [path.parent for path in root.glob("*/spec.json")]
    return RunFolder(root, path.name)


def test_two_ranks_make_one_tracked_run_with_all_steps_on_one_axis(two_ranks, tracked):
    run = run_in(two_ranks)
    own: dict[int, dict] = {}
    for row in read_rows(run.path / "metrics.jsonl"):
        own.setdefault(row.pop("step"), {}).update(row)
    rows = {row["trainer/global_step"]: row for row in history(tracked)}
    assert [row["_step"] for row in history(tracked)] == sorted(own) == list(rows)
    for step, row in own.items():
        plain = {k: v for k, v in rows[step].items() if not k.startswith(("_step", "trainer/global_step", "pictures"))}
        assert plain == pytest.approx(row)
    assert [step for step, row in rows.items() if "pictures._type" in row] == [max(own)]
    assert tracked["metric"] == [
        {"glob_name": "*", "options": tracked["metric"][0]["options"], "step_metric": "trainer/global_step"}
    ]


def test_identity_group_and_job_type(two_ranks, tracked):
    spec = run_in(two_ranks).spec()
    (start,) = tracked["run"]
    assert (start["run_id"], start["run_group"], start["job_type"]) == (spec.run_id, "digits", "pcgrad")
    config = {key: value for key, value in start["config"]["update"].items() if key != "_wandb"}
    assert config == {**spec.identity(), "label": "pcgrad", "kind": "training"}
    assert config["trainer"]["steps"] == STEPS and config["optimiser"]["momentum"] == 0.9, "defaults are written out"


def test_losses_metrics_and_conflicts_are_rows_and_scores_and_costs_the_summary(two_ranks, tracked):
    keys = {key for row in history(tracked) for key in row}
    assert {f"loss/{task}" for task in TASKS} <= keys
    assert {"val/left/accuracy@1", "val/sum/rmse@1", "val/segments/segments_miou@1"} <= keys
    assert {"lr", "gradient/conflicts", "gradient/cosine/left|right", "gradient/norm/ink"} <= keys
    summary = {key: value for record in tracked["summary"] for key, value in record["update"].items()}
    result = run_in(two_ranks).result()
    assert summary["val/left/accuracy@1"] == result["scores"]["left"]["accuracy@1"]
    for key in ("seconds_per_step", "peak_memory_gib", "parameters", "train_seconds"):
        assert summary[f"cost/{key}"] == pytest.approx(result["cost"][key])
    assert summary["cost/devices"] == 2
    assert tracked["exit"][0].get("exit_code", 0) == 0


def test_two_devices_give_the_result_of_one(two_ranks, one_rank):
    one, two = run_in(one_rank), run_in(two_ranks)
    assert one.run_id == two.run_id, "the number of devices is not part of identity"
    weights = [checkpoint.verified(run.path / "final.ckpt")["state_dict"] for run in (one, two)]
    for name, value in weights[0].items():
        if value.is_floating_point():
            assert (value - weights[1][name]).abs().max() < 2e-4, name
    rows = [read_rows(run.path / "metrics.jsonl") for run in (one, two)]
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=0.02, abs=2e-3)


def test_a_batch_that_does_not_divide_is_refused_before_anything_runs(tmp_path, capsys):
    assert cli.main([*BENCH, "--devices", "3", "--results", str(tmp_path)]) == 2
    assert "batch_size 32 is not a multiple of 3 device(s)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("spec.json")) and not list(tmp_path.rglob("*.wandb"))


def test_nothing_of_wandb_is_written_unless_asked_for(one_rank):
    assert not [path for path in one_rank.rglob("*") if "wandb" in path.name]


# ---- the tracker itself ---------------------------------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """No W&B settings, no account, no background process."""
    import wandb

    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def spec():
    """A run of the toy data that logs every step."""
    from mtlbench.testing import toy_spec

    return toy_spec("uniform", steps=STEPS)


def test_a_resumed_run_keeps_its_id_and_loses_no_row(clean, tmp_path):
    from mtlbench.testing.toy import trained

    clean.setenv("WANDB_MODE", "offline")
    assert trained(spec(), str(tmp_path / "check"), stop_at=4) is None
    folder = tmp_path / "check" / spec().run_id
    (first,) = folder.rglob("*.wandb")
    # The machine may resume within the same second, in which W&B gives a folder the same name.
    time.sleep(1.1)
    assert trained(spec(), str(tmp_path / "check")) is not None
    (second,) = set(folder.rglob("*.wandb")) - {first}
    before, after = records(first), records(second)
    assert before["run"][0]["run_id"] == after["run"][0]["run_id"] == spec().run_id
    assert before["exit"][0]["exit_code"] == 1 and after["exit"][0].get("exit_code", 0) == 0
    steps = [row["trainer/global_step"] for row in history(after)]
    assert steps == [row["step"] for row in read_rows(folder / "metrics.jsonl") if "loss/kind" in row]
    assert steps == list(range(1, STEPS + 1)), "the rows before the stop are there too, each once"


def test_steps_that_a_resumed_wandb_run_has_already_are_passed_over(clean, tmp_path):
    tracker = Tracker(About.training(spec()), tmp_path)
    logged = []
    run = object.__new__(wandb_client.WandbRun)
    run._run = type("Run", (), {"log": lambda self, row, step: logged.append(step), "finish": lambda *a, **k: 0})()
    run.first, run._online, tracker._sinks = 4, False, {"W&B": run}
    for step in (3, 4, 5):
        tracker.log({"step": step, "loss/a": 1.0})
    assert logged == [4, 5]


def test_nothing_asked_means_nothing_written(clean, tmp_path):
    assert wandb_mode() == "disabled"
    tracker = Tracker(About.training(spec()), tmp_path)
    tracker.log({"step": 1})
    tracker.finish(Ending())
    assert list(tmp_path.iterdir()) == []


def test_online_without_an_account_never_prompts(clean, tmp_path, capsys):
    clean.setenv("WANDB_MODE", "online")
    assert wandb_mode() == "offline"
    assert "logged offline" in capsys.readouterr().out
    (tmp_path / "netrc").write_text("machine other.example login user password " + "0" * 40)
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert wandb_mode() == "online"
    clean.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert wandb_mode() == "offline", "the key is for another server"


REASONS = {"down": "[Errno", "hang": "timed out", "500": "status 500"}


@pytest.mark.parametrize("trouble", sorted(REASONS))
def test_training_ends_well_without_a_wandb_server(clean, tmp_path, trouble, capfd):
    from mtlbench.testing.toy import trained

    clean.setattr(wandb_client, "REACH_S", 1.0)
    with serving() as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.trouble = trouble
        clean.setenv("WANDB_MODE", "online")
        clean.setenv("WANDB_API_KEY", "0" * 40)
        down = f"http://127.0.0.1:{unused.getsockname()[1]}"
        clean.setenv("WANDB_BASE_URL", down if trouble == "down" else server.url)
        started = time.monotonic()
        assert trained(spec(), str(tmp_path / "check")) is not None
        assert time.monotonic() - started < wandb_client.WAIT_S, "nothing waits for a server that does not answer"
    folder = tmp_path / "check" / spec().run_id
    assert (folder / "result.json").exists()
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss/kind" in row] == list(range(1, STEPS + 1))
    assert f"does not answer: {REASONS[trouble]}" in capfd.readouterr().out
    (kept,) = folder.rglob("offline-run-*/*.wandb")
    assert len(history(records(kept))) == STEPS


def test_the_use_of_experts_is_a_table_in_the_last_row(clean, tmp_path):
    clean.setenv("WANDB_MODE", "offline")
    tracker = Tracker(About.training(spec()), tmp_path)
    tracker.log({"step": 3, "loss/a": 1.0})
    layer = {"probability": [[0.6, 0.4], [0.2, 0.8]], "load": [[1.0, 0.0], [0.25, 0.75]]}
    experts = {"tasks": ["a", "b"], "layers": {"block1.mlp": layer}}
    tracker.finish(Ending({"cost/devices": 1}, usage({"experts": experts})))
    (row,) = history(records(next(tmp_path.rglob("*.wandb"))))
    assert row["trainer/global_step"] == 3 and row["experts/usage._type"] == "table-file"
    table = json.loads(next(tmp_path.rglob("*.table.json")).read_text())
    assert table["columns"] == ["layer", "task", "expert", "probability", "load"]
    assert table["data"] == [
        ["block1.mlp", "a", 0, 0.6, 1.0],
        ["block1.mlp", "a", 1, 0.4, 0.0],
        ["block1.mlp", "b", 0, 0.2, 0.25],
        ["block1.mlp", "b", 1, 0.8, 0.75],
    ]


def test_an_error_of_wandb_ends_tracking_and_not_the_run(clean, tmp_path, capsys):
    class Broken(wandb_client.WandbRun):
        def __init__(self):
            pass

        def log(self, *args, **kwargs):
            raise ConnectionError("gone")

    tracker = Tracker(About.training(spec()), tmp_path)
    tracker._sinks = {"W&B": Broken()}
    tracker.log({"step": 1})
    tracker.log({"step": 2})
    tracker.finish(Ending())
    assert capsys.readouterr().out.count("W&B tracking stopped: ConnectionError: gone") == 1


# ---- the run's own rows ---------------------------------------------------------------------------------------------


def test_rows_after_the_resumed_step_are_dropped_and_a_torn_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "a": 1.5}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "a"')
    rows = MetricsFile(path, resume_step=2)
    rows.write({"step": 3, "a": 2.5})
    rows.close()
    assert read_rows(path) == [{"step": 1, "a": 1.5}, {"step": 2, "a": 1.5}, {"step": 3, "a": 2.5}]
    shutil.copy(path, tmp_path / "again.jsonl")
    MetricsFile(tmp_path / "again.jsonl").close()
    assert read_rows(tmp_path / "again.jsonl") == [], "a run that starts anew keeps nothing"


def test_only_plain_records_enter_the_configuration():
    assert json.loads(json.dumps(spec().identity())) == spec().identity()
    assert isinstance(spec(), RunSpec)
