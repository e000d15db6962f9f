"""Results in a bucket: commands work in a folder of this machine, a copy of the bucket."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mtlbench.errors import StoreError
from mtlbench.runs.bucket import Bucket

COMMANDS = ("bench", "status", "report")
"""Commands that read and write a bucket; the others read the copy that these leave."""


def attach(arguments: argparse.Namespace) -> None:
    """Replace the URL in ``--results`` by the folder that holds its copy, ``results/<words of the URL>``.

    Raises:
        StoreError: If the command does not work with buckets.
    """
    url = arguments.results
    folder = Path("results") / re.sub(r"[^A-Za-z0-9.]+", "-", url).strip("-.")
    command = arguments.run.__module__.rpartition(".")[2]
    if command not in COMMANDS:
        raise StoreError(
            f"mtlbench {command} reads a folder. Found --results {url}. `mtlbench status` and `mtlbench report` copy a "
            f"bucket to {folder}: name that folder."
        )
    arguments.url, arguments.results = url, str(folder)


def opened(arguments: argparse.Namespace, suite: str, root: Path) -> Bucket | None:
    """Returns the bucket of a suite after its results were copied to ``root``; None if ``--results`` is a folder."""
    if not hasattr(arguments, "url"):
        return None
    from mtlbench.bench.executors.bucket import fetch

    bucket = Bucket(arguments.url, suite)
    fetch(root, bucket)
    return bucket


def fetched(arguments: argparse.Namespace) -> None:
    """Copies results and study of a suite from the bucket, if ``--results`` names one."""
    if not hasattr(arguments, "url"):
        return
    from mtlbench.bench.executors.bucket import fetch

    name = Path(arguments.suite).stem
    fetch(Path(arguments.results) / name, Bucket(arguments.url, name), study=True)
