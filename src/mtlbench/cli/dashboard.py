"""``mtlbench dashboard``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mtlbench.cli.arguments import add_results, add_suite
from mtlbench.cli.stored import study_of
from mtlbench.errors import ExitCode
from mtlbench.runs.store import write_text
from mtlbench.study.record import states_of

EPILOG = "Needs the extra `dashboards`: pip install 'mtlbench[dashboards]'. See docs/howto/wandb.md."

DRAFT = ".wandb_report"
"""File in the results folder with the id of the draft, so that it is replaced and not saved twice."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds suite, results folder, and the project in W&B."""
    add_suite(parser)
    add_results(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the JSON that would be saved, and save nothing")
    parser.add_argument("--report", action="store_true", help="also save a draft of a report with the leaderboard")
    parser.add_argument(
        "--entity",
        default="",
        metavar="NAME",
        help="owner of the project (default: WANDB_ENTITY, or your account's default entity)",
    )
    parser.add_argument(
        "--project", default="", metavar="NAME", help="project in W&B (default: WANDB_PROJECT, or mtlbench)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Saves the dashboard of a study to W&B, or prints it."""
    root, record = study_of(Path(arguments.results), arguments.suite)
    from mtlbench import report as reports
    from mtlbench.report.dashboard.content import study_runs
    from mtlbench.report.dashboard.layout import dashboard, logged
    from mtlbench.report.views.files import markdown
    from mtlbench.tracking import sync, wandb_client, workspace
    from mtlbench.tracking.base import TrackingError

    study, board = reports.load(root, states_of(root, record))
    built = dashboard(study, board, logged(study, study_runs(study, board)))
    entity = arguments.entity or os.environ.get("WANDB_ENTITY", "")
    project = arguments.project or wandb_client.project()
    if arguments.dry_run:
        print(workspace.specification(built, entity or "entity", project))
        return ExitCode.DONE
    if not sync.sent(root):
        print(
            "Warning: no run of this study is known to be in W&B, so its panels stay empty until there is one: "
            f"WANDB_MODE=online mtlbench bench {arguments.suite}, or mtlbench sync {arguments.suite}",
            file=sys.stderr,
        )
    if not (entity := entity or wandb_client.default_entity()):
        raise TrackingError(
            "A dashboard belongs to an entity, and the W&B server names none for this account. Give --entity, log in "
            "(wandb login), or look at the dashboard without saving it: --dry-run"
        )
    address = workspace.save(built, entity, project)
    print(f"Saved: {address}")
    if arguments.report:
        draft = root / DRAFT
        known = draft.read_text(errors="replace") if draft.exists() else ""
        address, found = workspace.save_report(built.name, markdown(board), entity, project, known)
        write_text(draft, found)
        print(f"Saved a draft: {address}")
    return ExitCode.DONE
