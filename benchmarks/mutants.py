"""Share of small faults, made on purpose in the core, that the tests notice.

    python benchmarks/mutants.py --count 60              # a sample over all rooms, about a minute each
    python benchmarks/mutants.py --room runs --count 30  # one room
    python benchmarks/mutants.py --list-survivors

Each mutant is one change of one place: a comparison, an operator, a constant, a condition, or a call left out. It is
made in a copy of the source, and the tests of its room run against that copy until the first failure. Outcomes are
appended to ``--out``, one JSON line a mutant, so that a run that was stopped goes on where it was. A survivor is
either equivalent to the original, which a person has to decide, or a test is missing.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "method": ("method", ["tests/method", "tests/balancing/test_update.py"]),
    "gradients": ("balancing/gradients", ["tests/balancing", "tests/method"]),
    "balancing": ("balancing/rules", ["tests/balancing", "tests/methods/gradients"]),
    "distributed": ("distributed.py", ["tests/balancing", "tests/method"]),
    "training": ("training", ["tests/training", "tests/bench", "tests/method"]),
    "runs": ("runs", ["tests/runs", "tests/bench"]),
    "bench": ("bench", ["tests/bench", "tests/training/test_kill.py"]),
    "study": ("study", ["tests/study", "tests/runs", "tests/bench"]),
}
"""Room -> its place in the package, and the tests that ought to notice."""

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


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
    """Makes change number ``wanted``, and counts all that could be made; text in strings is left alone."""

    def __init__(self, wanted: int = -1):
        self.wanted, self.count, self.found = wanted, 0, []

    def offer(self, node: ast.AST, changed: ast.AST) -> ast.AST:
        """Returns the changed node if it is the wanted one."""
        self.found.append((node.lineno, ast.unparse(node), ast.unparse(changed)))
        self.count += 1
        return ast.copy_location(changed, node) if self.count - 1 == self.wanted else node

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

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.args.defaults = [self.visit(value) for value in node.args.defaults]
        node.args.kw_defaults = [value and self.visit(value) for value in node.args.kw_defaults]
        node.body = [self.visit(part) for part in node.body]  # Not what types it takes and returns.
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
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


def caught(mutant: Mutant, limit: float) -> str:
    """Returns ``"caught"``, ``"survived"``, or ``"hung"`` (which counts as caught)."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("src", "tests", "experiments", "data_modules", "docs", "benchmarks"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy(ROOT / part, folder)
        path = Path(folder) / mutant.file
        tree = Mutate(mutant.number).visit(ast.parse(path.read_text()))
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
        tests = [test for test in ROOMS[mutant.room][1] if (ROOT / test).exists()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(Path(folder) / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return "survived" if process.wait(limit) == 0 else "caught"
        except subprocess.TimeoutExpired:
            return "hung"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()


def main() -> None:
    """Runs a sample of mutants and prints the share that the tests notice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", choices=ROOMS, action="append", help="rooms (default: all)")
    parser.add_argument("--count", type=int, default=60, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds until a mutant counts as hung")
    parser.add_argument("--out", type=Path, default=Path("results/mutants.jsonl"))
    parser.add_argument("--list-survivors", action="store_true")
    options = parser.parse_args()
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if not options.list_survivors:
        rooms = options.room or list(ROOMS)
        draw = random.Random(options.seed)
        queues = [draw.sample(every, len(every)) for every in (list(mutants(room)) for room in rooms)]
        turns = [queue[i] for i in range(options.count) for queue in queues if i < len(queue)][: options.count]
        done = {(row["file"], row["number"], row["before"]) for row in known}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for mutant in turns:
            if (mutant.file, mutant.number, mutant.before) in done:
                continue
            since = time.monotonic()
            row = {
                **asdict(mutant),
                "outcome": caught(mutant, options.limit),
                "seconds": round(time.monotonic() - since),
            }
            known.append(row)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['outcome']:9} {row['file']}:{row['line']}  {row['before']}  ->  {row['after']}", flush=True)
    for row in known if options.list_survivors else ():
        if row["outcome"] == "survived":
            print(f"{row['file']}:{row['line']}  {row['before']}  ->  {row['after']}")
    noticed = sum(row["outcome"] != "survived" for row in known)
    print(f"{noticed} of {len(known)} mutants noticed" + (f" ({100 * noticed / len(known):.0f} %)" if known else ""))


if __name__ == "__main__":
    main()
