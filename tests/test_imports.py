"""Imports go one way: lower parts never know higher ones, and what only looks starts without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "mtlbench"
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
HEAVY = {"torch", "lightning", "torchvision", "timm", "torchmetrics", "torchjd", "wandb", "datasets"}
LIGHT = (
    "__init__", "suite", "plan", "store", "errors", "study", "registry", "cli", "bench", "executors/", "report/",
    "grouping/", "commands/look", "commands/request", "commands/bench", "commands/progress", "commands/single",
)  # fmt: skip
LOWER = {
    "balancing/": ("method", "methods", "run", "suite", "store", "report", "study", "bench", "networks", "commands"),
    "networks/": ("method", "methods", "run", "suite", "store", "report", "study", "bench", "data", "commands"),
    "metrics/": ("method", "methods", "run", "suite", "store", "report", "study", "bench", "data", "commands"),
    "methods/": ("run", "suite", "store", "report", "study", "bench", "commands", "executors"),
    "report/": ("method", "methods", "run", "study", "bench", "data", "commands", "executors", "suite"),
    "grouping/": ("method", "methods", "run", "suite", "store", "report", "study", "bench", "commands", "executors"),
    "executors/": ("bench", "study", "commands", "report", "suite"),
    "method": ("run", "suite", "store", "report", "study", "bench", "commands", "executors"),
    "run": ("bench", "study", "suite", "commands", "report", "executors"),
    "store": ("run", "method", "suite", "study", "bench", "commands", "report"),
    "suite": ("run", "method", "store", "study", "bench", "commands", "report"),
}


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what runs when a module is imported: not functions, not ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from at_module_level(child)


def imports(path: Path, *, everywhere: bool = False) -> set[str]:
    """Returns the dotted names that a file imports."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else at_module_level(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def within(names: set[str], part: str) -> set[str]:
    return {name for name in names if name == part or name.startswith(part + ".")}


def files(*parts: str) -> dict[str, Path]:
    """Returns modules by name; a name that ends in a slash stands for a whole package."""
    folders = tuple(part for part in parts if part.endswith("/"))
    chosen = {name: path for name, path in FILES.items() if name in parts or (folders and name.startswith(folders))}
    assert chosen
    return chosen


@pytest.mark.parametrize("name", sorted(files(*LIGHT)))
def test_light_parts_import_nothing_heavy(name: str) -> None:
    assert {found.partition(".")[0] for found in imports(FILES[name])} & HEAVY == set()


@pytest.mark.parametrize("part", sorted(LOWER))
def test_lower_never_imports_higher(part: str) -> None:
    for name, path in files(part).items():
        known = imports(path)
        assert [higher for higher in LOWER[part] if within(known, f"mtlbench.{higher}")] == [], name


def test_the_package_never_imports_data_modules() -> None:
    assert [name for name, path in FILES.items() if within(imports(path, everywhere=True), "data_modules")] == []


def test_one_method_never_imports_another() -> None:
    assert [n for n, p in files("methods/").items() if within(imports(p, everywhere=True), "mtlbench.methods")] == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("wandb", {"tracking"}), ("yaml", {"suite", "commands/request"})],
)
def test_one_place_knows_a_library(library: str, allowed: set[str]) -> None:
    assert {name for name, path in FILES.items() if within(imports(path, everywhere=True), library)} <= allowed


def test_one_place_builds_a_trainer() -> None:
    assert [name for name, path in FILES.items() if "Trainer(" in path.read_text()] == ["run"]


NO_TORCH = """\
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("torch", "lightning", "timm"):
            raise ImportError(f"{name} is heavy")
sys.meta_path.insert(0, Refuse())
from mtlbench.cli import main
sys.exit(main(sys.argv[1:]))
"""
COMMANDS = ("bench", "run", "status", "report", "predict", "extract", "video", "methods", "suites", "check", "data")


@pytest.mark.parametrize("words", ["--help", *(f"{name} --help" for name in COMMANDS), "suites", "methods"])
def test_starts_without_torch(words: str) -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *words.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_every_command_is_listed() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH, "--help"], capture_output=True, text=True, cwd=ROOT)
    listed = [line.split()[0] for line in done.stdout.splitlines() if re.match(" {4}[a-z]", line)]
    assert sorted(listed) == sorted(COMMANDS)
