"""Dashboards as W&B workspaces. The only module that knows wandb-workspaces, whose interface is in public preview."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mtlbench.runs.keys import AXIS
from mtlbench.tracking import panels
from mtlbench.tracking.base import TrackingError, require
from mtlbench.tracking.panels import Axis, Dashboard, Panel, Section

MOST_RUNS = 200
"""Runs that a panel shows at most."""


def specification(dashboard: Dashboard, entity: str, project: str) -> str:
    """Return what `save` would send, as JSON.

    Args:
        dashboard: The dashboard.
        entity: Owner of the project.
        project: Project that holds the runs.

    Raises:
        TrackingError: If wandb-workspaces is not installed.
    """
    return json.dumps(_workspace(dashboard, entity, project)._spec, indent=1, ensure_ascii=False)


def save(dashboard: Dashboard, entity: str, project: str) -> str:
    """Create the view, or replace the one with the same slug, and return its address.

    Args:
        dashboard: The dashboard.
        entity: Owner of the project.
        project: Project that holds the runs.

    Raises:
        TrackingError: If wandb-workspaces is not installed, or the server refuses the view.
    """
    workspaces = _workspaces()
    built = _workspace(dashboard, entity, project)
    try:
        try:
            known = workspaces.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={_slug(dashboard)}")
        except ValueError:  # The project has no such view yet.
            known = None
        if known is not None:
            built._internal_id = known._internal_id
        return str(built.save().url)
    except Exception as error:
        raise _refused(entity, project, error) from error


def save_report(title: str, markdown: str, entity: str, project: str, known: str = "") -> tuple[str, str]:
    """Save a draft of a report, and return its address and its id.

    Args:
        title: Its title.
        markdown: Its text.
        entity: Owner of the project.
        project: Project that holds the runs.
        known: Id of a draft that was saved before and is replaced.

    Raises:
        TrackingError: If wandb-workspaces is not installed, or the server refuses the report.
    """
    reports = require("mtlbench dashboard", "wandb_workspaces.reports.v2", "dashboards")
    try:
        report = reports.Report(entity=entity, project=project, title=title, blocks=[reports.MarkdownBlock(markdown)])
        report.id = known
        report.save(draft=True)
        return str(report.url), str(report.id)
    except Exception as error:
        raise _refused(entity, project, error) from error


def _refused(entity: str, project: str, error: Exception) -> TrackingError:
    return TrackingError(
        f"Dashboards are saved to a project on a W&B server. {entity}/{project}: {type(error).__name__}: {error}. "
        "Log runs to the project first (WANDB_MODE=online, or mtlbench sync), and check --entity, --project, "
        "WANDB_BASE_URL and the login (wandb login)."
    )


def _workspaces() -> Any:
    return require("mtlbench dashboard", "wandb_workspaces.workspaces", "dashboards")


def _workspace(dashboard: Dashboard, entity: str, project: str) -> Any:
    workspaces, expr = _workspaces(), require("mtlbench dashboard", "wandb_workspaces.expr", "dashboards")
    order = [expr.Ordering(expr.Summary(dashboard.order), ascending=False)] if dashboard.order else []
    built = workspaces.Workspace(
        entity=entity,
        project=project,
        name=dashboard.name,
        sections=[_section(workspaces, section) for section in dashboard.sections],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS, max_runs=MOST_RUNS, remove_legends_from_panels=False),
        runset_settings=workspaces.RunsetSettings(
            filters=[expr.Metric("ID").isin(list(dashboard.runs))],
            groupby=[expr.Config("label")],
            order=[*order, expr.Ordering(expr.Metric("CreatedTimestamp"), ascending=False)],
            group_colors=dict(dashboard.colours),
            pinned_columns=["run:displayName", *(f"summary:{key}" for key in dashboard.columns)],
        ),
    )
    # Ids are made from what they name, so that the same dashboard is the same JSON.
    built._internal_name = f"nw-{_slug(dashboard)}-v"
    built._internal_runset_id = _id(dashboard.slug, "runs")
    for section in built.sections:
        for number, panel in enumerate(section.panels):
            panel._id = _id(dashboard.slug, section.name, str(number))
    return built


def _section(workspaces: Any, section: Section) -> Any:
    return workspaces.Section(
        name=section.name,
        panels=[_panel(panel, _layout(number)) for number, panel in enumerate(section.panels)],
        is_open=section.open,
        panel_settings=workspaces.SectionPanelSettings(x_axis=AXIS),
        layout_settings=workspaces.SectionLayoutSettings(columns=3, rows=max(1, -(-len(section.panels) // 3))),
    )


def _layout(number: int) -> dict[str, int]:
    return {"x": 8 * (number % 3), "y": 6 * (number // 3), "w": 8, "h": 6}


def _panel(panel: Panel, place: dict[str, int]) -> Any:
    reports = require("mtlbench dashboard", "wandb_workspaces.reports.v2", "dashboards")
    layout = reports.Layout(**place)
    match panel:
        case panels.Lines():
            return reports.LinePlot(
                title=panel.title,
                x=AXIS,
                y=list(panel.keys),
                log_y=panel.log,
                groupby=reports.Config("label"),
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
                max_runs_to_show=MOST_RUNS,
                layout=layout,
            )
        case panels.Bars():
            return reports.BarPlot(
                title=panel.title,
                metrics=list(panel.keys),
                groupby=reports.Config("label"),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
                max_runs_to_show=MOST_RUNS,
                max_bars_to_show=MOST_RUNS,
                layout=layout,
            )
        case panels.Scatter():
            x, y = reports.SummaryMetric(panel.x), reports.SummaryMetric(panel.y)
            return reports.ScatterPlot(title=panel.title, x=x, y=y, log_x=True, running_ymax=True, layout=layout)
        case panels.Parallel():
            return reports.ParallelCoordinatesPlot(
                title=panel.title, columns=[_axis(reports, axis) for axis in panel.axes], layout=layout
            )
        case panels.Importance():
            return reports.ParameterImportancePlot(with_respect_to=panel.key, layout=layout)
        case panels.Media():
            return reports.MediaBrowser(title=panel.title, media_keys=list(panel.keys), layout=layout)
        case panels.TablePanel():
            return reports.WeavePanelSummaryTable(table_name=panel.key, layout=layout)
        case panels.Text():
            return reports.MarkdownPanel(markdown=panel.markdown, layout=layout)


def _axis(reports: Any, axis: Axis) -> Any:
    metric = reports.Config(axis.key) if axis.config else reports.SummaryMetric(axis.key)
    return reports.ParallelCoordinatesPlotColumn(metric=metric, display_name=axis.title, inverted=axis.inverted)


def _slug(dashboard: Dashboard) -> str:
    """Return the slug as W&B allows it: letters and digits; the address is derived from it."""
    return _id("view", dashboard.slug)


def _id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:11]
