"""Share of small faults, made on purpose in the core, that the tests notice.

    python -m benchmarks.mutants --count 60              # a sample over all rooms, seconds to a minute each
    python -m benchmarks.mutants --room runs --count 30  # one room
    python -m benchmarks.mutants --again                 # the survivors once more, with the tests of today
    python -m benchmarks.mutants --list-survivors

Each mutant is one change of one place: a comparison, an operator, a constant, a condition, or a call left out. It is
made in a copy of the project, and the tests of its room run there until the first failure, the likeliest and quickest
first. Outcomes are appended to ``--out``, one JSON line a mutant, so that a run that was stopped goes on where it was.
A survivor is either equivalent to the original, which a person has to decide and writes into
``equivalent_mutants.tsv`` beside this file, or a test is missing.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.tsv")
ROOMS = {
    "method": ("method", ["tests/method", "tests/balancing"]),
    "gradients": ("balancing/gradients", ["tests/balancing", "tests/method"]),
    "balancing": ("balancing/rules", ["tests/balancing", "tests/methods/gradients"]),
    "distributed": ("distributed.py", ["tests/balancing", "tests/method"]),
    "training": ("training", ["tests/training", "tests/method", "tests/study/test_scenarios.py"]),
    "runs": ("runs", ["tests/runs", "tests/bench"]),
    "bench": ("bench", ["tests/bench", "tests/training/test_kill.py"]),
    "study": ("study", ["tests/study", "tests/suite", "tests/runs", "tests/cli/test_bad_input.py"]),
}
"""Room -> its place in the package, and the tests that ought to notice, beside all that import the changed module."""

HEAVY = ("torch", "lightning", "timm", "torchjd", "scipy.stats", "sklearn.datasets", "wandb", "omegaconf", "pytest")
"""Imported once: every mutant is tested in a fork, which starts at once."""

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
SILENT = ("strict", "stacklevel", "timeout", "frozen")
"""Arguments that change nothing unless something else is wrong."""


@dataclass(frozen=True)
class Mutant:
    """One change: its room, file, number among the file's changes, line, and text before and after."""

    room: str
    file: str
    number: int
    line: int
    before: str
    after: str


class Mutate(ast.NodeTransformer):
    """Makes change number ``wanted``, and lists all that could be made; texts, types and messages are left alone."""

    def __init__(self, wanted: int = -1):
        self.wanted, self.found = wanted, []

    def offer(self, node: ast.AST, changed: ast.AST) -> ast.AST:
        """Returns the changed node if it is the wanted one."""
        self.found.append((node.lineno, ast.unparse(node), ast.unparse(changed)))
        return ast.copy_location(changed, node) if len(self.found) - 1 == self.wanted else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        other = COMPARISONS.get(type(node.ops[0]))
        return self.offer(node, ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)) if other else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        other = OPERATORS.get(type(node.op))
        text = any(
            isinstance(side, (ast.JoinedStr, ast.Constant)) and not _number(side) for side in (node.left, node.right)
        )
        return self.offer(node, ast.BinOp(node.left, other(), node.right)) if other and not text else node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return self.offer(node, ast.BoolOp(other, node.values))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return self.offer(node, node.operand) if isinstance(node.op, (ast.Not, ast.USub)) else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            return self.offer(node, ast.Constant(not node.value))
        return self.offer(node, ast.Constant(node.value + 1)) if _number(node) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return self.offer(node, ast.IfExp(node.test, node.orelse, node.body))

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        return self.offer(node, ast.Pass()) if isinstance(node.value, ast.Call) else node

    def visit_If(self, node: ast.If) -> ast.AST:
        return node if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.args.defaults = [self.visit(value) for value in node.args.defaults]
        node.args.kw_defaults = [value and self.visit(value) for value in node.args.kw_defaults]
        node.body = [self.visit(part) for part in node.body]  # Not what types it takes and returns.
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        return node if node.arg in SILENT else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)


def mutants(room: str) -> Iterator[Mutant]:
    """Yields every change that can be made in a room."""
    place = ROOT / "src/mtlbench" / ROOMS[room][0]
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        look = Mutate()
        look.visit(ast.parse(path.read_text()))
        name = str(path.relative_to(ROOT))
        yield from (Mutant(room, name, i, line, a[:120], b[:120]) for i, (line, a, b) in enumerate(look.found))


def equivalents() -> set[tuple[str, ...]]:
    """Returns file, line, text before and after of the changes that a person found to change nothing."""
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    return {tuple(line.split("\t")[:4]) for line in lines}


def described(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Returns a mutant as `equivalents` does: by the text of its line, because the number of a line changes."""
    line = (ROOT / row["file"]).read_text().splitlines()[row["line"] - 1]
    return row["file"], line.strip(), row["before"], row["after"]


# ---- tests in a fork ------------------------------------------------------------------------------------------------


@dataclass
class Order:
    """A pytest plugin that puts the likeliest and quickest tests first, and keeps how they went.

    Attributes:
        module: Dotted name of the changed module: tests that import it by name come first.
        killers: Tests that noticed another change of the file come before all others.
        seconds: Duration of tests, as an unchanged run found it; those that are missing are left out if there are any.
        limit: Seconds after which a test hangs, which ends the process; None for a multiple of its duration.
    """

    module: str = ""
    killers: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None
    failed: list[str] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sorts the tests."""
        named = {path: names(path, self.module) for path in {item.path for item in items}}

        def place(item: Any) -> tuple[bool, bool, float]:
            return item.nodeid not in self.killers, not named[item.path], self.seconds.get(item.nodeid, 0.0)

        items[:] = sorted((i for i in items if not self.seconds or i.nodeid in self.seconds), key=place)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Sets the alarm that ends a process that hangs."""
        signal.setitimer(signal.ITIMER_REAL, self.limit or 60 + 20 * self.seconds.get(nodeid, 60.0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps failures and durations."""
        self.found[report.nodeid] = self.found.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def tested(folder: Path, tests: Sequence[str], order: Order, *, whole: bool = False) -> dict[str, Any]:
    """Runs tests in a fork with its own process group, until the first failure unless the ``whole`` is wanted.

    Returns:
        ``code`` of pytest, None if a test hung; ``failed`` tests; ``found``, seconds by test.
    """
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run(folder, tests, order, answer, whole)
    os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, 9)  # What a failed test has left behind.
    return json.loads(answer.read_text()) if answer.exists() else {"code": None, "failed": [], "found": {}}


def _run(folder: Path, tests: Sequence[str], order: Order, answer: Path, whole: bool) -> None:
    import pytest

    os.setsid()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    sys.path[:0] = [str(folder / "src"), str(folder)]
    os.environ["PYTHONPATH"] = str(folder / "src")
    # Whichever test starts the server of forks first, it has imported what runs need.
    multiprocessing.set_forkserver_preload(["mtlbench.training.worker"])
    code: Any = 3
    try:
        code = pytest.main([*([] if whole else ["-x"]), "-q", "-p", "no:cacheprovider", *tests], plugins=[order])
    finally:
        text = json.dumps({"code": int(code), "failed": order.failed, "found": order.found})
        answer.write_text(text)
        os._exit(0)


class Copy:
    """A copy of the project in which one file at a time is changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        for part in ("src", "tests", "experiments", "data_modules", "docs", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy(ROOT / part, folder)

    def change(self, mutant: Mutant) -> None:
        """Makes a change."""
        tree = Mutate(mutant.number).visit(ast.parse((ROOT / mutant.file).read_text()))
        self._write(mutant, ast.unparse(ast.fix_missing_locations(tree)))

    def restore(self, mutant: Mutant) -> None:
        """Takes it back."""
        self._write(mutant, (ROOT / mutant.file).read_text())

    def _write(self, mutant: Mutant, text: str) -> None:
        path = self.folder / mutant.file
        path.write_text(text)
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)  # Times have a grain of a second.


def outcome(copy: Copy, mutant: Mutant, order: Order) -> tuple[str, str]:
    """Returns ``"caught"``, ``"survived"``, or ``"hung"`` (which counts as caught), and the test that noticed."""
    copy.change(mutant)
    try:
        known = [name for name in order.seconds if name.startswith(tuple(tests_of(mutant)))]
        answer = tested(copy.folder, [*dict.fromkeys(name.partition("::")[0] for name in known)], order)
    finally:
        copy.restore(mutant)
    if answer["code"] is None:
        return "hung", ""
    return ("survived", "") if answer["code"] == 0 else ("caught", (answer["failed"] or ["import"])[0])


def tests_of(mutant: Mutant) -> list[str]:
    """Returns the folders and files of tests that may notice a mutant."""
    folders = [test for test in ROOMS[mutant.room][1] if (ROOT / test).exists()]
    naming = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if names(path, module_of(mutant))]
    files = [str(path.relative_to(ROOT)) for path in naming]
    return [*folders, *(name for name in files if not name.startswith(tuple(folders)))]


def module_of(mutant: Mutant) -> str:
    """Returns the dotted name of the changed module."""
    return mutant.file.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def names(path: Path, module: str) -> bool:
    """Returns whether a file imports a module by its name."""
    package, _, name = module.rpartition(".")
    found = rf"\b{re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{re.escape(name)}\b"
    return bool(package and re.search(found, path.read_text()))


def durations(copy: Copy, tests: Sequence[str], path: Path) -> dict[str, float]:
    """Returns the seconds of every test that passes on the unchanged project, measured once."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for test in tests:
        if any(name.startswith(test) for name in known):
            continue
        answer = tested(copy.folder, [test], Order(), whole=True)
        if answer["code"] not in (0, 1):
            raise SystemExit(f"The tests in {test} must run on the unchanged project. Found code {answer['code']}.")
        for name in answer["failed"]:
            print(f"left out, for it fails without any change: {name}", flush=True)
        known |= {name: s for name, s in answer["found"].items() if name not in answer["failed"]}
        path.write_text(json.dumps(known))
    return known


# ---- the sample -----------------------------------------------------------------------------------------------------


def sample(rooms: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Returns mutants drawn from the rooms in turn, without those known to change nothing."""
    draw, same = random.Random(seed), equivalents()
    drawn = [draw.sample(every, len(every)) for every in (list(mutants(room)) for room in rooms)]
    queues = [[m for m in queue if described(asdict(m)) not in same] for queue in drawn]
    return [queue[i] for i in range(count) for queue in queues if i < len(queue)][:count]


def run(turns: Sequence[Mutant], known: list[dict[str, Any]], out: Path, limit: float | None) -> None:
    """Tests mutants one by one, and writes each outcome to ``out`` and into ``known``."""
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder).resolve())
        tests = sorted({test for mutant in turns for test in tests_of(mutant)})
        seconds = durations(copy, tests, out.with_suffix(".seconds.json"))
        for mutant in turns:
            killers = [row["test"] for row in known if row["file"] == mutant.file]
            since = time.monotonic()
            found, test = outcome(copy, mutant, Order(module_of(mutant), killers, seconds, limit))
            row = {**asdict(mutant), "outcome": found, "test": test, "seconds": round(time.monotonic() - since)}
            known.append(row)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{found:9} {row['seconds']:4} s  {shown(row)}  {test}", flush=True)


def shown(row: Mapping[str, Any]) -> str:
    """Returns a mutant as one line."""
    return f"{row['file']}:{row['line']}  {row['before']}  ->  {row['after']}"


def main() -> None:
    """Runs a sample of mutants and prints the share that the tests notice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", choices=ROOMS, action="append", help="rooms (default: all)")
    parser.add_argument("--count", type=int, default=60, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, help="seconds until a test hangs (default: 20 times its usual time)")
    parser.add_argument("--out", type=Path, default=Path("results/mutants.jsonl"))
    parser.add_argument("--again", action="store_true", help="test the survivors in --out once more instead")
    parser.add_argument("--list-survivors", action="store_true", help="print the survivors in --out instead")
    options = parser.parse_args()
    out, rooms = options.out, options.room or list(ROOMS)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    turns = [] if options.again or options.list_survivors else sample(rooms, options.count, options.seed)
    if options.again:
        keys = {_key(row) for row in known if row["outcome"] == "survived"}
        known = [row for row in known if _key(row) not in keys]
        out.write_text("".join(json.dumps(row) + "\n" for row in known))
        turns = [m for room in ROOMS for m in mutants(room) if _key(asdict(m)) in keys]
    done = {_key(row) for row in known}
    out.parent.mkdir(parents=True, exist_ok=True)
    if turns := [m for m in turns if _key(asdict(m)) not in done]:
        run(turns, known, out, options.limit)
    same = equivalents()
    known = [row for row in known if described(row) not in same]
    survivors = [row for row in known if row["outcome"] == "survived"]
    print("".join(f"{shown(row)}\n" for row in survivors if options.list_survivors), end="")
    noticed = len(known) - len(survivors)
    print(f"{noticed} of {len(known)} mutants noticed" + (f" ({100 * noticed / len(known):.0f} %)" if known else ""))


def _key(row: Mapping[str, Any]) -> tuple[str, int, str, str]:
    return row["file"], row["number"], row["before"], row["after"]


if __name__ == "__main__":
    main()
