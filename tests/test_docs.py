"""The code of the tutorial and of the plain loop runs as it stands; the site has every page and picture it names."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.command_line import mtlbench

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TREE = [
    path for top in ("src", "data_modules", "experiments", "tests") for path in (ROOT / top, *(ROOT / top).rglob("*"))
]
MADE = {"results/", "partner.py"}
"""What the docs name that a user makes."""
SHORT = ("trainer.steps=3", "trainer.batch_size=8", "model.encoder_options.embed_dim=16", "model.decoder_channels=8")


def files_of(page: str) -> dict[str, str]:
    """Returns the titled code blocks of a page by file name."""
    text = (DOCS / page).read_text()
    return dict(re.findall(r'```(?:python|yaml) title="([^"]+)"\n(.*?)```', text, re.DOTALL))


def script(folder: Path, code: str) -> str:
    """Runs Python code in a folder and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """Returns an environment in which a script finds this very package."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the tutorial and its pictures, 120 of them."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, code in files_of("tutorial.md").items():
        (folder / name).write_text(code)
    drawing = files_of("tutorial.md")["draw.py"]
    fewer = drawing.replace("range(1200)", "range(120)").replace("index >= 900", "index >= 80")
    assert fewer != drawing
    script(folder, fewer.replace("index >= 1050", "index >= 100"))
    return folder


@pytest.mark.parametrize("target", ["arrows:Arrows", "small_cnn:SmallCNN"])
def test_what_the_tutorial_defines_passes_the_contract_tests(project: Path, target: str) -> None:
    answer = mtlbench(project, "check", target)
    assert answer.code == 0 and "4 of 4 checks passed" in answer.text, answer.text


def test_the_tutorial_ends_with_a_leaderboard(project: Path) -> None:
    words = ("--methods", "single_task uniform small_cnn:SmallCNN", "--jobs", "1")
    answer = mtlbench(project, "bench", "arrows.yaml", *words, *SHORT)
    assert answer.code == 0 and "heading [deg] ↓" in answer.text and "SmallCNN" in answer.text, answer.text
    use = next(block for block in blocks("tutorial.md") if "load_run" in block)
    assert "predicted" in script(project, use)


def test_a_suite_of_the_tutorial_takes_an_own_network_with_a_balancer(project: Path) -> None:
    (methods,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL)
    suite = (project / "arrows.yaml").read_text()
    own = re.sub(r"^methods: .*\n", methods, suite, flags=re.MULTILINE).replace("name: arrows", "name: own")
    assert own != suite and "balancer: pcgrad" in own
    (project / "own.yaml").write_text(own)
    answer = mtlbench(project, "bench", "own.yaml", "--dry")
    assert answer.code == 0, answer.text


def blocks(page: str) -> list[str]:
    """Returns the Python blocks of a page without a title."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def printed(code: str) -> str:
    """Runs Python code in this process, which has imported torch already, and returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as text, torch.random.fork_rng():
        exec(compile(code, "loop.py", "exec"), {})
    return text.getvalue()


def test_the_plain_loop_learns() -> None:
    code = files_of("loop.md")["loop.py"]
    first = printed(code.replace("range(200)", "range(1)"))
    last = printed(code)
    before, after = ([float(x) for x in re.findall(r"\d+\.\d+", text)] for text in (first, last))
    assert len(after) == 2 and all(b < a / 4 for a, b in zip(before, after, strict=True))


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = re.findall(r"[\w/-]+\.md", json.dumps(nav))
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=str)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "page", [DOCS / "where.md", DOCS / "design.md", DOCS / "adding.md"], ids=lambda page: page.name
)
def test_places_that_the_docs_name_exist(page: Path) -> None:
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|\.jinja)|(?:[a-z_]+/)+)`", page.read_text())
    # Tables name files below the folder that their row is about, so the end of a path is what must exist.
    places = [f"/{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in TREE]
    lost = [name for name in named if name not in MADE and not any(place.endswith(f"/{name}") for place in places)]
    assert lost == []


def test_every_benchmark_has_a_row_on_the_page_of_performance() -> None:
    rows = set(re.findall(r"`(\w+\.py)`", (DOCS / "performance.md").read_text()))
    assert rows == {path.name for path in (ROOT / "benchmarks").glob("*.py")}
