"""The same rows in TensorBoard, MLflow and Trackio: chosen by ``MTLBENCH_TRACK``, each an optional package."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.errors import unknown_name
from mtlbench.tracking.base import ROW, TRAINING, TRIAL, About, Ending, Sink, TrackingError, require
from mtlbench.tracking.wandb_client import project

VARIABLE = "MTLBENCH_TRACK"


@dataclass(frozen=True)
class Tool:
    """A tracking tool.

    Attributes:
        start: Starts a run in it.
        module: Module that must be importable.
        extra: Extra of mtlbench that installs it.
    """

    start: Callable[[About, Path], Sink]
    module: str
    extra: str


def wanted() -> list[str]:
    """Return the tools that ``MTLBENCH_TRACK`` names, separated by spaces or commas, each once."""
    return list(dict.fromkeys(os.environ.get(VARIABLE, "").replace(",", " ").split()))


def check() -> None:
    """Check that every tool that ``MTLBENCH_TRACK`` names can be used.

    Raises:
        TrackingError: If one is unknown, or its package is missing.
    """
    for name in wanted():
        if name not in SINKS:
            raise TrackingError(
                f"{VARIABLE} names tracking tools. {unknown_name('tool', name, SINKS)} W&B has its own variable, "
                "WANDB_MODE."
            )
        tool = SINKS[name]
        require(name, tool.module, tool.extra)


class TensorBoard(Sink):
    """Event files in ``tensorboard/`` of the run's folder: ``tensorboard --logdir results``.

    Runs that stand for rows, trials and the study have folders of their own in ``tensorboard/`` of the suite's folder.
    """

    def __init__(self, about: About, folder: Path):
        writer = require("tensorboard", "torch.utils.tensorboard", "tensorboard").SummaryWriter
        place = folder / "tensorboard" / ("" if about.kind == TRAINING else about.id)
        self._about = about
        # A resumed run gets all earlier rows again.
        for old in place.glob("events.*"):
            old.unlink()
        self._writer = writer(str(place))
        self._writer.add_text("run", f"{about.name}, suite {about.suite}", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars under their names."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def finish(self, ending: Ending) -> None:
        """Add the numbers of the summary as scalars ``final/...``, pictures side by side, and tables as text.

        A row or a trial enters the table of TensorBoard's tab HParams, by label and settings.
        """
        final = {f"final/{key}": value for key, value in numbers(ending.summary).items()}
        if self._about.kind in (ROW, TRIAL):
            settings = {key: str(value) for key, value in flattened(self._about.settings()).items()}
            self._writer.add_hparams(settings, final, run_name=".")  # In this folder, which it would name by the time.
        else:
            for key, value in final.items():
                self._writer.add_scalar(key, value)
        for key, table in ending.tables.items():
            self._writer.add_text(key, table.markdown(), 0)
        for key, pictures in ending.pictures.items():
            for number, each in enumerate(pictures):
                self._writer.add_image(f"{key}/{number}", each.pixels, dataformats="HWC")

    def close(self, code: int) -> None:
        """Flush and close the file."""
        self._writer.close()


class MLflow(Sink):
    """A run in the experiment of the suite, on the server or in the database of ``MLFLOW_TRACKING_URI``."""

    def __init__(self, about: About, folder: Path):
        self._client = require("mlflow", "mlflow", "mlflow").MlflowClient()
        known = self._client.get_experiment_by_name(about.suite)
        experiment = known.experiment_id if known else self._client.create_experiment(about.suite)
        tags = {"mtlbench.run": about.id, "kind": about.kind, "label": about.label}
        # A resumed run gets all earlier rows again, so it starts anew.
        for old in self._client.search_runs([experiment], f"tags.`mtlbench.run` = '{about.id}'"):
            self._client.delete_run(old.info.run_id)
        self._run = self._client.create_run(experiment, tags=tags, run_name=about.name).info.run_id
        for key, value in flattened(about.settings()).items():
            self._client.log_param(self._run, _plain(key), str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add metrics; signs that MLflow does not allow in names become underscores."""
        for key, value in values.items():
            self._client.log_metric(self._run, _plain(key), value, step=step)

    def finish(self, ending: Ending) -> None:
        """Add the numbers of the summary as metrics ``final/...``; tables, figures and files as artifacts."""
        for key, value in numbers(ending.summary).items():
            self._client.log_metric(self._run, _plain(f"final/{key}"), value)
        for key, table in ending.tables.items():
            self._client.log_text(self._run, table.markdown(), f"{key}.md")
        for key, figure in ending.figures.items():
            self._client.log_figure(self._run, figure, f"{key}.html")
        for path in (path for paths in ending.files.values() for path in paths):
            self._client.log_artifact(self._run, str(path))

    def close(self, code: int) -> None:
        """End the run."""
        self._client.set_terminated(self._run, "FAILED" if code else "FINISHED")


class Trackio(Sink):
    """A run in Trackio's project of the same name as that of W&B."""

    def __init__(self, about: About, folder: Path):
        self._trackio = require("trackio", "trackio", "trackio")
        # Trackio has no ids of ours: the name must tell runs apart. A resumed run gets all earlier rows again.
        with contextlib.suppress(ValueError):  # The project does not exist yet.
            for old in self._trackio.Api().runs(project()):
                if old.name == about.id:
                    old.delete()
        config = flattened(about.settings())
        self._run = self._trackio.init(project(), name=about.id, group=about.suite, config=config, embed=False)
        self._last = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row."""
        self._last = step
        self._run.log(dict(values), step=step)

    def finish(self, ending: Ending) -> None:
        """Add the numbers of the summary to the last step, under names ``final/...``, and tables as text."""
        final: dict[str, Any] = {f"final/{key}": value for key, value in numbers(ending.summary).items()}
        texts = {key: self._trackio.Markdown(table.markdown()) for key, table in ending.tables.items()}
        self._run.log(final | texts, step=self._last)

    def close(self, code: int) -> None:
        """End the run."""
        self._trackio.finish()


SINKS = {
    "tensorboard": Tool(TensorBoard, "torch.utils.tensorboard", "tensorboard"),
    "mlflow": Tool(MLflow, "mlflow", "mlflow"),
    "trackio": Tool(Trackio, "trackio", "trackio"),
}
"""Every tool besides W&B, by the name that ``MTLBENCH_TRACK`` has for it."""


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a summary that are numbers."""
    return {key: float(v) for key, v in summary.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as one level: ``optimiser.lr``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^\w\-./ :]", "_", name)
