"""``mtlbench sync``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.cli.arguments import add_results, add_suite
from mtlbench.cli.stored import study_of
from mtlbench.errors import ExitCode
from mtlbench.runs.store import RunFolder

if TYPE_CHECKING:
    from mtlbench.tracking.sync import Piece

EPILOG = f"Exit codes: {ExitCode.described()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds suite and results folder."""
    add_suite(parser)
    add_results(parser)
    parser.add_argument("--dry-run", action="store_true", help="list the runs that would be sent, and send nothing")


def run(arguments: argparse.Namespace) -> int:
    """Sends every run of a study that W&B logged offline and that was not sent yet."""
    root, _ = study_of(Path(arguments.results), arguments.suite)
    from mtlbench.tracking import sync, wandb_client
    from mtlbench.tracking.base import TrackingError

    unsent, running = sync.waiting(root)
    later = f" {running} run(s) are not finished; the same command sends them later." if running else ""
    if not unsent:
        known = "Everything was sent before." if sync.sent(root) else "W&B logged nothing here (WANDB_MODE=offline)."
        print(f"Nothing to send. {known}{later}")
        return ExitCode.DONE
    if arguments.dry_run:
        print("\n".join(str(piece.path.parent) for piece in unsent))
        return ExitCode.DONE
    if not wandb_client.has_account():
        raise TrackingError(
            "Sending runs needs an account. No key was found. Log in (wandb login) or set WANDB_API_KEY."
        )
    if reason := wandb_client.unreachable():
        raise TrackingError(
            f"Sending runs needs a W&B server. {wandb_client.server()} does not answer: {reason}. Nothing was sent; "
            "the same command tries again."
        )
    failed = 0
    for number, piece in enumerate(unsent, 1):
        print(f"{number}/{len(unsent)} {piece.run}", flush=True)
        if reason := _send(root, piece):
            failed += 1
            print(f"FAILED {piece.run}: {reason}", file=sys.stderr)
    print(f"Sent {len(unsent) - failed} of {len(unsent)} runs.{later}")
    if failed:
        print("The same command sends the others; what was sent is not sent again.", file=sys.stderr)
    return ExitCode.FAILED if failed else ExitCode.DONE


def _send(root: Path, piece: Piece) -> str:
    """Send a run, or the rest of one that the server has in part, and return why that failed, or ``""``."""
    from mtlbench.tracking import sync

    if not piece.begun or not (root / piece.run).is_dir():
        return sync.send(piece)
    from mtlbench.training.traces import send_again

    return send_again(RunFolder(root, piece.run))
