"""Imports go one way, lazy ones included: lower rooms never know higher ones, and what only looks needs no torch."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "mtlbench"
LAYERS = (
    "errors", "seeding", "distributed", "metrics", "visualise", "registry", "tasks", "runs", "suite", "tracking",
    "data", "balancing", "networks", "method", "grouping", "methods", "training", "study", "bench", "report", "api",
    "testing", "cli",
)  # fmt: skip
"""Rooms from the lowest to the highest: each may import from those on its left alone."""
LOOSE = {"__init__", "errors", "seeding", "distributed", "registry", "visualise"}
"""The only modules of the package that are in no room."""
HEAVY = {"torch", "lightning", "torchvision", "timm", "torchmetrics", "torchjd", "wandb", "datasets"}
LIGHT = ("", "errors", "registry", "suite", "runs", "tracking", "study", "bench", "report", "api", "cli")
"""What starts without torch."""
ONLY_HERE = {
    "wandb": {"tracking.wandb_client"}, "wandb_workspaces": {"tracking.workspace"}, "yaml": {"suite.nodes"},
    "optuna": {"study.search", "study.search_space"}, "pandas": {"api.frames", "api.results"},
    "ray": {"bench.executors.ray_cluster"}, "huggingface_hub": {"training.hub", "data.hub"},
    "transformers": {"networks.texts"}, "onnx": {"networks.programs"}, "datasets": {"data.hub"},
}  # fmt: skip
"""Libraries that one place knows."""


def name_of(path: Path) -> str:
    """Returns the name of a module within the package, ``""`` for the package itself."""
    name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    return "" if name == "__init__" else name.removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if "data_modules" not in path.parts[-2:]}


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what runs when a module is imported: not functions, not ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from at_module_level(child)


def imports(path: Path, *, everywhere: bool = True) -> set[str]:
    """Returns the dotted names that a file imports; with ``everywhere`` also inside functions and for types."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else at_module_level(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def arrows() -> Iterator[tuple[str, str]]:
    """Yields every import of one module of the package by another."""
    for name, path in FILES.items():
        for found in imports(path):
            own = found.removeprefix("mtlbench.")
            if found.startswith("mtlbench.") and own in FILES and own != name:
                yield name, own


def room(name: str) -> str:
    """Returns the top-level package or module of a module."""
    return name.partition(".")[0]


def test_every_room_has_its_layer() -> None:
    assert {room(name) for name in FILES} - {""} == set(LAYERS)


def test_few_modules_are_in_no_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= LOOSE and len(LOOSE) <= 6


def test_lower_never_imports_higher() -> None:
    height = {name: number for number, name in enumerate(LAYERS)}
    wrong = [
        f"{one} imports {other}"
        for one, other in arrows()
        if one and other and room(one) != room(other) and height[room(one)] < height[room(other)]
    ]
    assert wrong == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    """Within every package, files and sub-packages form no circle."""
    graphs: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one, other in arrows():
        a, b = one.split("."), other.split(".")
        common = os.path.commonprefix([a, b])
        depth = len(common)
        if depth < len(a) and depth < len(b):
            graphs[".".join(common)][a[depth]].add(b[depth])
    for place, graph in graphs.items():
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as circle:
            raise AssertionError(f"In mtlbench.{place}: {' <- '.join(circle.args[1])}") from None


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) in LIGHT))
def test_light_parts_import_nothing_heavy(name: str) -> None:
    assert {found.partition(".")[0] for found in imports(FILES[name], everywhere=False)} & HEAVY == set()


def test_the_package_imports_data_modules_by_name_alone() -> None:
    assert [name for name, path in FILES.items() if any("data_modules" in found for found in imports(path))] == []


def test_one_method_never_imports_another() -> None:
    own = [name for name in FILES if room(name) == "methods"]
    assert [(one, other) for one, other in arrows() if one in own and other in own] == []


@pytest.mark.parametrize("library", sorted(ONLY_HERE))
def test_one_place_knows_a_library(library: str) -> None:
    knowing = {name for name, path in FILES.items() if any(f.partition(".")[0] == library for f in imports(path))}
    assert knowing <= ONLY_HERE[library]


def test_one_place_builds_a_trainer() -> None:
    assert [name for name, path in FILES.items() if "Trainer(" in path.read_text()] == ["training.trainer"]


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
COMMANDS = (
    "init", "bench", "run", "status", "report", "serve", "compare", "cost", "predict", "extract", "routing", "export",
    "video", "methods", "suites", "check", "data", "dashboard", "sync",
)  # fmt: skip


@pytest.mark.parametrize("words", ["--help", *(f"{name} --help" for name in COMMANDS), "suites", "methods"])
def test_starts_without_torch(words: str) -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *words.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_every_command_is_listed() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH, "--help"], capture_output=True, text=True, cwd=ROOT)
    listed = [line.split()[0] for line in done.stdout.splitlines() if re.match(" {4}[a-z]", line)]
    assert sorted(listed) == sorted(COMMANDS)
