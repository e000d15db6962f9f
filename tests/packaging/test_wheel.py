"""What an installation holds: one name, and everything that the commands need."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def test_the_wheel_installs_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        tops = {name.partition("/")[0] for name in file.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mtlbench"}


def test_the_wheel_holds_what_the_source_tree_holds(wheel: Path) -> None:
    """Every tracked file of the package, the data modules and the suites, and nothing else."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src", "data_modules", "experiments"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("Git lists the files that the wheel must hold, and this folder is no checkout.")
    wanted = {
        name.removeprefix("src/") if name.startswith("src/") else f"mtlbench/{name}"
        for name in listed.stdout.splitlines()
        if name != "src/mtlbench/data_modules/__init__.py" and (ROOT / name).is_file()
    }
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        # In the source tree this file points to the top-level folder, which no wheel has.
        shipped = file.read("mtlbench/data_modules/__init__.py").decode()
    assert found == wanted
    assert shipped == (ROOT / "data_modules" / "__init__.py").read_text()
    for name in (
        "py.typed",
        "report/views/report.html.jinja",
        "report/views/page.css",
        "report/views/page.js",
        "report/published/pascal.csv",
        "experiments/digits.yaml",
    ):
        assert f"mtlbench/{name}" in found


def test_an_unpacked_wheel_finds_suites_and_data_modules(wheel: Path, tmp_path: Path) -> None:
    """In a folder with a ``data_modules/`` and an ``experiments/`` of the user's own, which hide nothing."""
    site, project = tmp_path / "site", tmp_path / "project"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    (project / "data_modules").mkdir(parents=True)
    (project / "experiments").mkdir()
    (project / "data_modules" / "mine.py").write_text(
        "from mtlbench.data_modules.digits import Digits\n\n\nclass Mine(Digits):\n    pass\n"
    )
    (project / "experiments" / "mine.yaml").write_text("title: My own\n")
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import mtlbench\n"
        "from mtlbench import registry, suite\n"
        "print(mtlbench.__file__)\n"
        "print(*suite.available())\n"
        "print(registry.load('data_modules.mine:Mine').__mro__[1].__module__)\n"
        "print(registry.load('data_modules.digits:Digits').__module__)\n"
        "from mtlbench.data_modules.miniatures import MINIATURES\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, suites, *modules = done.stdout.splitlines()
    assert Path(place).is_relative_to(site)
    assert {"mine", "digits", "scenes"} <= set(suites.split())
    assert modules == ["mtlbench.data_modules.digits"] * 2


def test_versions_agree() -> None:
    from mtlbench import __version__

    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited and cited[1] == __version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
