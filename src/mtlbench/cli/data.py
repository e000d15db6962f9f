"""``mtlbench data``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtlbench import suite as suites
from mtlbench.cli.arguments import add_overrides, add_suite, overrides_of
from mtlbench.errors import DataError, ExitCode, foreign_code
from mtlbench.study import resolve as studies
from mtlbench.study.validation import check_option
from mtlbench.suite import Suite

SHOWN = 20
"""Faults of a split that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds suite, folder, and what to do with the data."""
    add_suite(parser)
    add_overrides(parser, "change a key of the suite, e.g. data.options.train=64")
    parser.add_argument("--data", metavar="FOLDER", help="data folder")
    parser.add_argument(
        "--verify", action="store_true", help="read every file that a split names; count missing labels"
    )
    parser.add_argument("--download", action="store_true", help="download and unpack the publicly available files")
    parser.add_argument(
        "--convert",
        metavar="FILE",
        help="convert the data authors' original file into the layout that the suite reads",
    )
    parser.add_argument(
        "--shard",
        metavar="URL",
        help="write the data as shards below a URL, for machines whose disk is too small (data.options.source)",
    )
    parser.add_argument("--agree", action="store_true", help="accept the data's terms of use, which --download shows")


def run(arguments: argparse.Namespace) -> int:
    """Show the data that a suite needs and what is present; exit code 2 if something is missing or faulty."""
    suite = suites.load(arguments.suite, overrides_of(arguments))
    root = studies.root_of(suite, studies.Local(data=arguments.data))
    if arguments.download:
        root = root or str(Path("data") / suite.name)
        _download(_open(suite, root), Path(root), agree=arguments.agree)
    if arguments.convert:
        root = root or str(Path("data") / suite.name)
        _convert(suite, Path(arguments.convert), Path(root))
    data = _open(suite, root)
    missing = data.missing()
    source = suite.data.options.get("source")
    folder = f"folder {root}" if root else "no folder given" if missing else "which needs no folder"
    where = f"source {source}" if source else folder
    print(f"Suite {suite.name}: {suite.data.module}, {where}")
    if missing:
        print("\n".join(missing))
        if not root and not source:
            print(f"Name the folder with --data FOLDER (make: DATA=FOLDER), or put it at data/{suite.name}.")
        return ExitCode.REFUSED
    print("".join(f"  {line}\n" for line in _about(data)), end="")
    complete = _tell_tasks(suite, data)
    if arguments.shard and complete:
        fresh = data.shard(arguments.shard, lambda split, done, total: _progress(split)(done, total))
        print(f"  {fresh} shards are written, the others were there. Train with data.options.source={arguments.shard}")
    faulty = sum(_tell_split(data, split, verify=arguments.verify) for split in data.SPLITS)
    return ExitCode.DONE if complete and not faulty else ExitCode.REFUSED


def _open(suite: Suite, root: str | None) -> Any:
    from mtlbench.training.build import data_class

    module = data_class(suite.data.module)
    optional = {task for task, section in suite.tasks.items() if section.optional}
    known = module.tasks_of(suite.data.options)
    names = [task for task in (suite.tasks or known) if task in known]
    tasks = {task: known[task].with_options(optional=task in optional) for task in names}
    for option in suite.data.options:
        check_option(option, suite.data.options[option], module)
    with foreign_code(f"Opening the data of {suite.data.module}"):
        return module(root, tasks=tasks, **suite.data.options)


def _tell_tasks(suite: Suite, data: Any) -> bool:
    """Print which tasks have data, and keep these; return whether every required task has data."""
    absent = data.absent_tasks()
    for task, value in data.tasks.items():
        print(f"  {task:20} {'absent' + (' (optional)' if value.optional else '') if task in absent else 'there'}")
    required = [task for task in absent if not data.tasks[task].optional]
    data.tasks = {task: value for task, value in data.tasks.items() if task not in absent}
    return not required


def _tell_split(data: Any, split: str, *, verify: bool) -> int:
    """Print the number of samples of a split and, with ``verify``, its faults; return the number of faults."""
    if not verify:
        print(f"  {split:20} {_count(data, split)} samples")
        return 0
    from mtlbench.data.verify import verify as read_all

    found = read_all(data, split, _progress(split))
    print(f"  {split:20} {found.samples} samples, {len(found.faults)} faulty")
    for task, count in found.unlabelled.items():
        print(f"    {count} without a label of {task}")
    print("".join(f"    Warning: {doubt}\n" for doubt in found.doubts), end="")
    print("".join(f"    {fault}\n" for fault in found.faults[:SHOWN]), end="")
    if len(found.faults) > SHOWN:
        print(f"    and {len(found.faults) - SHOWN} more")
    return len(found.faults)


def _about(data: Any) -> list[str]:
    files = getattr(data, "files", None)
    return files.about() if files else []


def _count(data: Any, split: str) -> int:
    files = getattr(data, "files", None)  # a list of ids is enough: nothing need be decoded
    return len(files.ids(split)) if files else len(data.samples(split))


def _download(data: Any, root: Path, *, agree: bool) -> None:
    from mtlbench.data.download import Download, obtain

    wanted: list[Any] = data.downloads()
    if not wanted:
        raise DataError(
            f"{type(data).__name__} has no public address that a program may fetch. " + "\n".join(data.missing())
        )
    print("\n".join(dict.fromkeys(item.terms for item in wanted)))
    if not agree:
        raise DataError("Using the data means agreeing to its terms. Read them above, then add --agree.")
    for item in wanted:
        archive = isinstance(item, Download)
        fresh = obtain(item, root, _progress(item.name)) if archive else item.obtain(root)
        print(f"  {item.name:40} {('unpacked' if archive else 'fetched') if fresh else 'there'}", flush=True)


def _convert(suite: Suite, source: Path, root: Path) -> None:
    """Write the layout that a suite reads, and say how to train without the tasks for which it has no labels."""
    target = _open(suite, str(root)).convert(source, root, _progress(source.name))
    print(f"  {target} is written")
    data = _open(suite, str(root))
    absent = sorted(data.absent_tasks())
    required = [task for task in absent if not data.tasks[task].optional]
    if absent:
        print(f"  It has no labels of {', '.join(absent)}.")
    if required:
        print(f"  Train without them: {' '.join(f'tasks.{task}.optional=true' for task in required)}")


def _progress(what: str) -> Callable[..., None]:
    """Return a function that shows progress on a terminal."""

    def show(done: int, total: int | None = None) -> None:
        if sys.stderr.isatty():
            end = "\r" if done != total else "\n"
            print(f"  {what} {done:,}{f' of {total:,}' if total else ''}", end=end, file=sys.stderr, flush=True)

    return show
