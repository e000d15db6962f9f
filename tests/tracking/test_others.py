"""TensorBoard, MLflow and Trackio through the tracker: which calls they receive, and what a missing package says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from mtlbench.tracking import others
from mtlbench.tracking.base import About, Ending, Picture, Table, TrackingError
from mtlbench.tracking.tracker import Tracker
from tests.support.command_line import mtlbench

ABOUT = About("uniform-s0-1", "uniform s0", "digits", "training", "uniform", {"seed": 0, "optimiser": {"lr": 0.1}})
ROWS = ({"step": 1, "loss/left": 2.0}, {"step": 2, "loss/left": 1.0, "gradient/cosine/left|right": -0.5})
ENDING = Ending(
    {"val/left/accuracy@1": 0.75, "cost/device": "cpu"},
    pictures={"pictures": [Picture(np.zeros((2, 3, 3), np.uint8), "0: input")]},
)


def follow(monkeypatch: pytest.MonkeyPatch, folder: Path, tool: str, module: str, fake: Any) -> None:
    """Passes two rows and an ending on to a tool whose module is a stand-in."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(others.VARIABLE, tool)
    monkeypatch.setitem(sys.modules, module, fake)
    tracker = Tracker(ABOUT, folder)
    for row in ROWS:
        tracker.log(row)
    tracker.finish(ENDING)


def test_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.old").touch()
    writer = MagicMock()
    module = SimpleNamespace(SummaryWriter=MagicMock(return_value=writer))
    follow(monkeypatch, tmp_path, "tensorboard", "torch.utils.tensorboard", module)
    assert [call.args for call in writer.add_scalar.call_args_list] == [
        ("loss/left", 2.0, 1),
        ("loss/left", 1.0, 2),
        ("gradient/cosine/left|right", -0.5, 2),
        ("final/val/left/accuracy@1", 0.75),
    ]
    assert writer.add_image.call_args.args[0] == "pictures/0"
    writer.close.assert_called_once()
    assert not list(tmp_path.rglob("events.old")), "a resumed run logs its earlier rows again"


def test_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = MagicMock()
    client.search_runs.return_value = [SimpleNamespace(info=SimpleNamespace(run_id="old"))]
    client.create_run.return_value.info.run_id = "new"
    follow(monkeypatch, tmp_path, "mlflow", "mlflow", SimpleNamespace(MlflowClient=lambda: client))
    client.delete_run.assert_called_once_with("old")
    assert {call.args for call in client.log_param.call_args_list} >= {("new", "optimiser.lr", "0.1")}
    logged = [(call.args[1:], call.kwargs.get("step")) for call in client.log_metric.call_args_list]
    assert logged[2:] == [(("gradient/cosine/left_right", -0.5), 2), (("final/val/left/accuracy_1", 0.75), None)]
    client.set_terminated.assert_called_once_with("new", "FINISHED")


def test_trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake, other, same = MagicMock(), MagicMock(), MagicMock()
    other.name, same.name = "uniform-s1-2", ABOUT.id
    fake.Api.return_value.runs.return_value = [other, same]
    follow(monkeypatch, tmp_path, "trackio", "trackio", fake)
    same.delete.assert_called_once_with()
    other.delete.assert_not_called()
    run = fake.init.return_value
    assert [(call.args[0], call.kwargs["step"]) for call in run.log.call_args_list] == [
        ({"loss/left": 2.0}, 1),
        ({"loss/left": 1.0, "gradient/cosine/left|right": -0.5}, 2),
        ({"final/val/left/accuracy@1": 0.75}, 2),
    ]
    fake.finish.assert_called_once()


TABLE = Table(("method", "delta_m"), [("a|b", 1.23456789), ("uniform", None)])
ROW = About("uniform-s0-row-1", "uniform s0: all tasks", "digits", "row", "uniform", {"seed": 0})
SUMMARY = About("digits-summary-1", "digits: summary", "digits", "summary", "(summary)")


def test_a_table_becomes_markdown() -> None:
    assert TABLE.markdown() == "| method | delta_m |\n| --- | --- |\n| a\\|b | 1.23457 |\n| uniform |  |"


def test_tensorboard_shows_rows_as_hparams_and_tables_as_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writer = MagicMock()
    module = SimpleNamespace(SummaryWriter=MagicMock(return_value=writer))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    others.TensorBoard(ROW, tmp_path).finish(Ending({"delta_m": 1.5}))
    assert module.SummaryWriter.call_args.args == (str(tmp_path / "tensorboard" / ROW.id),), "a folder of its own"
    (settings, metrics), more = writer.add_hparams.call_args.args, writer.add_hparams.call_args.kwargs
    assert settings == {"seed": "0", "suite": "digits", "kind": "row", "label": "uniform"}
    assert metrics == {"final/delta_m": 1.5} and more == {"run_name": "."}
    writer.add_scalar.assert_not_called()
    others.TensorBoard(SUMMARY, tmp_path).finish(Ending(tables={"table/leaderboard": TABLE}))
    assert writer.add_text.call_args.args == ("table/leaderboard", TABLE.markdown(), 0)


def test_mlflow_keeps_tables_figures_and_the_page_as_artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = MagicMock()
    client.create_run.return_value.info.run_id = "new"
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client))
    page, figure = tmp_path / "report.html", object()
    ending = Ending(tables={"table/leaderboard": TABLE}, figures={"verdict/seeds": figure}, files={"report": [page]})
    others.MLflow(SUMMARY, tmp_path).finish(ending)
    client.log_text.assert_called_once_with("new", TABLE.markdown(), "table/leaderboard.md")
    client.log_figure.assert_called_once_with("new", figure, "verdict/seeds.html")
    client.log_artifact.assert_called_once_with("new", str(page))


def test_trackio_shows_tables_as_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = MagicMock()
    fake.Api.return_value.runs.return_value = []
    monkeypatch.setitem(sys.modules, "trackio", fake)
    others.Trackio(SUMMARY, tmp_path).finish(Ending({"delta_m": 1.5}, {"table/leaderboard": TABLE}))
    fake.Markdown.assert_called_once_with(TABLE.markdown())
    logged = {"final/delta_m": 1.5, "table/leaderboard": fake.Markdown.return_value}
    assert fake.init.return_value.log.call_args.args == (logged,)


def test_one_tool_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = MagicMock()
    fake.init.return_value.log.side_effect = OSError("disk full")
    client = MagicMock()
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client))
    follow(monkeypatch, tmp_path, "trackio, mlflow", "trackio", fake)
    assert capsys.readouterr().out.count("trackio tracking stopped: OSError: disk full") == 1
    client.set_terminated.assert_called_once()


@pytest.mark.parametrize("tool", sorted(others.SINKS))
def test_a_missing_package_is_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str
) -> None:
    monkeypatch.setitem(sys.modules, others.SINKS[tool].module, None)
    monkeypatch.setenv(others.VARIABLE, tool)
    answer = mtlbench(tmp_path, "bench", "digits")
    assert answer.code == 2 and f"pip install 'mtlbench[{tool}]'" in answer.text
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tool_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(others.VARIABLE, "tensorbord")
    answer = mtlbench(tmp_path, "bench", "digits")
    assert answer.code == 2 and "Did you mean 'tensorboard'?" in answer.text


def test_the_dashboard_says_how_to_install_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlbench.tracking import workspace
    from mtlbench.tracking.panels import Dashboard

    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(TrackingError, match=r"pip install 'mtlbench\[dashboards\]'"):
        workspace.specification(Dashboard("a", "a", (), ()), "e", "p")
