"""The real W&B client against a stand-in server: a bench online, runs sent later, servers that fail in between."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtlbench import report
from mtlbench.cli.stored import study_of
from mtlbench.report.dashboard.content import study_runs
from mtlbench.report.dashboard.layout import dashboard, logged
from mtlbench.report.dashboard.mirror import mirror
from mtlbench.runs import keys
from mtlbench.runs.store import RunFolder
from mtlbench.study.record import states_of
from mtlbench.testing import toy_spec
from mtlbench.testing.toy import trained
from mtlbench.tracking import sync, wandb_client, workspace
from mtlbench.tracking.base import About, Ending
from mtlbench.tracking.tracker import Tracker
from mtlbench.training.loggers import read_rows
from mtlbench.training.traces import send_again
from tests.support.command_line import mtlbench
from tests.support.instant import finished, resolved
from tests.support.tracked import benched
from tests.support.wandb_server import ENTITY, WandbServer, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A server with an account on it, and a client that waits for it for two seconds."""
    import wandb

    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    wandb.teardown()
    with serving() as found:
        monkeypatch.setattr(wandb_client, "WAIT_S", 5.0)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        yield found
        wandb.teardown()


def steps(server: WandbServer, run: str) -> list[int]:
    return [row["_step"] for row in server.history(run)]


def test_a_bench_arrives_as_a_whole_and_its_dashboard_replaces_itself(server: WandbServer, tmp_path: Path) -> None:
    root = benched(tmp_path, "scenes")
    states = states_of(*study_of(tmp_path, "scenes"))
    report.write(root, states)
    assert mirror(root, states) == 3
    assert server.complete == set(server.runs) and len(server.complete) == 6
    for path in root.glob("*/metrics.jsonl"):
        run, rows = path.parent.name, read_rows(path)
        assert steps(server, run) == sorted({row["step"] for row in rows})
        ending = keys.final_values(RunFolder(root, run).result() or {})
        assert {k: v for k, v in server.summaries[run].items() if k in ending} == pytest.approx(ending)
    assert any("scenes-report" in artifact for artifact in server.artifacts)
    assert sync.waiting(root) == ([], 0), "nothing is left to send"
    study, board = report.load(root, states)
    built = dashboard(study, board, logged(study, study_runs(study, board)))
    sent = {key for run in server.runs for row in [*server.history(run), server.summaries.get(run, {})] for key in row}
    assert built.keys() <= sent
    address = workspace.save(built, ENTITY, "mtlbench")
    assert workspace.save(built, ENTITY, "mtlbench") == address
    (view,) = server.views.values()
    assert json.loads(view["spec"]) == json.loads(workspace.specification(built, ENTITY, "mtlbench"))["spec"]
    for _ in range(2):
        answer = mtlbench(tmp_path, "dashboard", "scenes", "--report", "--results", str(tmp_path))
        assert answer.code == 0 and f"/{ENTITY}/mtlbench" in answer.text and len(server.views) == 1, answer.text
    (draft,) = server.reports.values()
    assert draft["type"] == "runs/draft" and "pcgrad" in draft["spec"]


def test_a_server_that_cannot_start_a_run_turns_it_offline(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_client, "WAIT_S", 2.0)
    server.trouble = "half"
    tracker = Tracker(About("a", "a", "digits", "training", "uniform"), tmp_path)
    tracker.log({"step": 1, "loss/left": 1.0})
    tracker.finish(Ending())
    assert (tracker.mode, tracker.lost) == ("offline", False)
    assert "It goes on offline" in capfd.readouterr().out
    assert len(list(tmp_path.glob("wandb/offline-run-*-a/run-a.wandb"))) == 1


@pytest.fixture
def offline(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A finished study two of whose runs were logged offline: their ids."""
    root = finished(tmp_path / "results", resolved("methods=[uniform, famo]"))
    runs = sorted(path.parent.name for path in root.glob("*/result.json"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for run in runs:
        tracker = Tracker(About(run, run, "digits", "training", "uniform"), root / run)
        for step in (1, 2, 3):
            tracker.log({"step": step, "loss/left": 1 / step})
        tracker.finish(Ending({"cost/devices": 1}))
    return runs


def test_runs_that_were_logged_offline_are_sent_once(server: WandbServer, offline: list[str], tmp_path: Path) -> None:
    server.trouble = "500"
    answer = mtlbench(tmp_path, "sync", "digits")
    assert answer.code == 2 and "does not answer: status 500. Nothing was sent" in answer.text
    server.trouble, server.refused = "", {offline[1]}
    answer = mtlbench(tmp_path, "sync", "digits")
    assert answer.code == 1 and f"FAILED {offline[1]}" in answer.text and "Sent 1 of 2 runs." in answer.text
    server.refused = set()
    answer = mtlbench(tmp_path, "sync", "digits")
    assert answer.code == 0 and "Sent 1 of 1 runs." in answer.text, answer.text
    assert [steps(server, run) for run in offline] == [[1, 2, 3], [1, 2, 3, 4]], "what was begun ends with own records"
    assert server.complete == set(offline)
    before = list(server.operations)
    answer = mtlbench(tmp_path, "sync", "digits")
    assert answer.code == 0 and "Everything was sent before." in answer.text
    assert server.operations == before


def test_a_run_that_is_not_done_is_left_for_later(offline: list[str], tmp_path: Path) -> None:
    (tmp_path / "results" / "digits" / offline[0] / "result.json").unlink()
    unsent, later = sync.waiting(tmp_path / "results" / "digits")
    assert ([piece.run for piece in unsent], later) == ([offline[1]], 1)


def test_an_interrupted_sending_leaves_no_row_twice(
    server: WandbServer, offline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = sync.waiting(tmp_path / "results" / "digits")[0][0]
    server.deaf = True
    monkeypatch.setattr(sync, "SEND_S", 6.0)
    assert sync.send(piece) == "not finished after 6 s"
    arrived = steps(server, piece.run)  # On a busy machine, not all rows arrive in this time.
    assert arrived and arrived == [1, 2, 3][: len(arrived)], "rows arrived, their sender does not know it"
    server.deaf = False
    monkeypatch.setattr(sync, "SEND_S", 60.0)
    answer = mtlbench(tmp_path, "sync", "digits")
    assert answer.code == 0 and "Sent 2 of 2 runs." in answer.text, answer.text
    assert steps(server, piece.run) == [1, 2, 3, 4], "the run's own records have one row more"
    assert sync.waiting(piece.path.parents[3]) == ([], 0)


def test_processes_that_began_in_the_same_second_are_pieces_of_one_run(tmp_path: Path) -> None:
    for place in ("run-20261128_133400-uniform-s0-1", "run-20261128_133400-uniform-s0-1-1"):
        folder = tmp_path / "uniform-s0-1" / "wandb" / place
        folder.mkdir(parents=True)
        (folder / "run-uniform-s0-1.wandb").touch()
    (piece,) = sync.pieces(tmp_path)
    assert piece.run == "uniform-s0-1" and piece.path.parent.name.endswith("-1-1"), "the later one holds all rows"


def test_a_server_that_fails_while_a_run_is_logged_gets_the_rest_later(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.then = "500"
    spec = toy_spec("uniform", steps=6, evaluate_every=0)
    tracker = Tracker(About.training(spec), tmp_path / spec.suite / spec.run_id)
    assert tracker.mode == "online"
    tracker.close()
    server.rows[spec.run_id] = {0: {"_step": 1, "loss/kind": 0.0}, 1: {"_step": 2, "loss/kind": 0.0}}
    assert RunFolder(tmp_path / spec.suite, spec.run_id).claim(spec)
    assert trained(spec, str(tmp_path / spec.suite)) is not None
    assert "W&B tracking stopped: TimeoutError" in capfd.readouterr().out
    folder = RunFolder(tmp_path / spec.suite, spec.run_id)
    assert folder.result() is not None
    server.trouble = server.then = ""
    (piece,) = sync.waiting(folder.root)[0]
    assert piece.begun
    assert send_again(folder) == ""
    assert steps(server, spec.run_id) == sorted({row["step"] for row in read_rows(folder.path / "metrics.jsonl")})
    assert sync.waiting(folder.root) == ([], 0)
