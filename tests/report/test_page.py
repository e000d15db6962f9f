"""The page in a browser: tables sort and filter, figures draw and answer, nothing is cut, and no request leaves it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from mtlbench.report import load, text, write
from mtlbench.report.views.runs import commands
from tests.support.browser import CHROMIUM, Page, browser
from tests.support.fake_study import plan, write_study

WIDTHS = (400, 900, 1400, 2200)

LABELS = ["single_task", "uniform", "pcgrad", "famo", "mod_squad_pcgrad", "gradnorm"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("page") / "scenes", LABELS)
    write(folder)
    return folder


class Parsed(HTMLParser):
    """What a screen reader sees: headings, tables, links, and the text of every element with a value."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.values: list[str] = []
        self.tables: list[dict[str, int]] = []
        self.external: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        self._inside = tag
        self.ids += [found["id"]] if "id" in found else []
        self.values += [found["data-value"]] if "data-value" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.external += [v for v in (found.get("src"), found.get("href")) if v and not v.startswith(("#", "data:"))]
        if tag == "table":
            self.tables.append({"caption": 0, "th": 0})
        if self.tables and tag in self.tables[-1]:
            self.tables[-1][tag] += 1

    def handle_data(self, data: str) -> None:
        if self._inside in ("h1", "h2") and data.strip():
            self.headings.append(data.strip())
            self._inside = ""


@pytest.fixture(scope="module")
def parsed(folder: Path) -> Parsed:
    return Parsed((folder / "report.html").read_text())


def test_the_verdict_comes_first_and_every_part_can_be_reached(parsed: Parsed) -> None:
    assert parsed.headings[:3] == ["scenes", "Verdict", "Leaderboard"]
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.ids)
    for part in ("heat", "differences", "examples", "problems", "runs", "repeat"):
        assert f"#{part}" in parsed.links
    assert not parsed.external, "the page is complete in itself"
    assert all(table["th"] for table in parsed.tables)


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(plan(["single_task", "uniform"], ["semseg", "depth"], [0])))
    write(tmp_path)
    text = (tmp_path / "report.html").read_text()
    found = Parsed(text).headings
    assert found == ["scenes", "Verdict", "Leaderboard", "Without a result: 3 unfinished", "Runs", "Repeat and cite"]
    assert "<figure" not in text and 'id="library"' not in text, "no library without a figure"


def test_numbers_of_page_and_csv_agree_to_the_last_digit(folder: Path, parsed: Parsed) -> None:
    lines = list(csv.DictReader((folder / "leaderboard.csv").open()))
    means = {line["mean"] for line in lines if not line["seed"] and line["quantity"] != "search_seconds"}
    shown = set(parsed.values)
    scores = {line["mean"] for line in lines if not line["seed"] and "@" in line["protocol"]}
    assert len(scores) > 40 and scores <= shown
    assert {float(mean) for mean in means} <= {float(value) for value in shown}


def test_a_page_of_one_hundred_runs_is_smaller_than_five_megabytes(folder: Path) -> None:
    # The fake study has 33 runs with every figure and 3 images. The library alone takes 2 MB.
    assert (folder / "report.html").stat().st_size < 3.5e6


def test_how_to_repeat_names_code_changes_and_overrides() -> None:
    study = plan(["uniform"], ["semseg"], [0])
    assert commands(study).splitlines() == [
        "git checkout abc1234  # with uncommitted changes, which are not recorded",
        "mtlbench bench scenes model.encoder=resnet18",
        "mtlbench report scenes",
    ]
    study |= {"commit": "", "overrides": ["methods=[uniform, a b]; rm -r"]}
    assert commands(study).splitlines()[:2] == [
        "pip install mtlbench==0.1.0",
        "mtlbench bench scenes 'methods=[uniform, a b]; rm -r'",
    ]


def test_the_page_holds_the_bibtex_that_the_command_prints(folder: Path) -> None:
    printed = text(*load(folder), "bibtex")
    assert printed.count("@") == 4, "two rows have no paper: single_task, and a method of the user's own"
    assert f'<pre class="copy" tabindex="0">{escape(printed)}</pre>' in (folder / "report.html").read_text()


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if not CHROMIUM:
        pytest.skip("No Chromium on this machine: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.open(folder / "report.html", 1400)
        yield page


COLUMN = """
const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
const column = name => heads.findIndex(head => head.textContent.startsWith(name));
const rows = () => [...table.tBodies[0].rows].filter(row => !row.hidden);
const read = name => rows().map(row => row.cells[column(name)].textContent);
"""


def test_a_click_on_a_heading_sorts_and_a_second_one_reverses(page: Page) -> None:
    script = f"{COLUMN} const head = heads[column('depth')]; head.firstChild.click();"
    found = page.run(f"{script} return [head.getAttribute('aria-sort'), read('depth')];")
    numbers = [float(text.split()[0]) for text in found[1]]
    assert found[0] == "ascending" and numbers == sorted(numbers), "a lower error is better and comes first"
    found = page.run(f"{script} return [head.getAttribute('aria-sort'), read('depth')];")
    assert found[0] == "descending" and [float(t.split()[0]) for t in found[1]] == numbers[::-1]
    found = page.run(f"{COLUMN} heads[column('Δm')].firstChild.click(); return [read('method'), read('Δm')];")
    assert found[0][0] == "mod_squad_pcgrad" and found[1][-1] == "–", "the best is first, blanks are last"
    found = page.run(f"{COLUMN} heads[column('Δm')].firstChild.click(); return read('Δm');")
    assert found[-1] == "–", "also in the other direction"
    assert page.run(f"{COLUMN} return heads.filter(head => head.hasAttribute('aria-sort')).length;") == 1


def test_a_filter_keeps_rows_with_all_words(page: Page) -> None:
    script = f"""{COLUMN} const input = document.querySelector("input[type=search]");
    const type = text => {{ input.value = text; input.dispatchEvent(new Event("input")); return read("method"); }};
    const found = [type("GRAD"), type("grad mod"), document.querySelector("output").textContent, type("")];
    return found;"""
    some, one, text, every = page.run(script)
    assert set(some) == {"mod_squad_pcgrad", "pcgrad", "gradnorm"} and one == ["mod_squad_pcgrad"]
    assert text == "1 of 6 rows" and len(every) == len(LABELS)


DRAWN = """
const wait = async test => { for (let i = 0; i < 600 && !test(); i++) await new Promise(r => setTimeout(r, 25)); };
const figure = async title => {
  const head = [...document.querySelectorAll("h2")].find(head => head.textContent === title);
  const found = head.nextElementSibling;
  found.scrollIntoView();
  await wait(() => found.dataset.state === "drawn");
  return found;
};
const change = (element, value) => {
  element.value = value; element.dispatchEvent(new Event("input")); element.dispatchEvent(new Event("change"));
};
"""


def test_curves_have_a_legend_a_scale_and_smoothing(page: Page) -> None:
    script = f"""{DRAWN} const box = await figure("Training loss"), area = box.querySelector(".area");
    const visible = () => area.data.filter(trace => trace.name && trace.visible === true).length;
    const before = visible(), raw = [...area.data[1].y];
    const toggle = area.querySelector(".legendtoggle");
    for (const kind of ["mousedown", "mouseup"]) toggle.dispatchEvent(new MouseEvent(kind, {{bubbles: true}}));
    await wait(() => visible() < before);
    const after = visible();
    change(box.querySelector("select"), "1");
    await wait(() => area.layout.yaxis.type === "log");
    change(box.querySelector("input"), "0.9");
    await wait(() => area.data[1].y[5] !== raw[5]);
    return {{before, after, log: area.layout.yaxis2.type, raw, smooth: [...area.data[1].y]}};"""
    found = page.run(script)
    assert found["after"] < found["before"] and found["log"] == "log"
    raw, smooth = found["raw"], found["smooth"]
    assert smooth[0] == pytest.approx(raw[0]) and len(smooth) == len(raw)
    assert smooth[1] == pytest.approx((0.9 * 0.1 * raw[0] + 0.1 * raw[1]) / (1 - 0.9**2))


def test_a_button_copies_the_bibtex(page: Page) -> None:
    script = """const box = [...document.querySelectorAll("pre.copy")].find(box => box.textContent.includes("@inproc"));
    const tools = box.previousElementSibling, written = [];
    const wait = async () => { for (let i = 0; i < 200 && !tools.textContent.includes("."); i++)
      await new Promise(r => setTimeout(r, 10)); };
    const answer = async give => {
      Object.defineProperty(navigator, "clipboard", { value: give, configurable: true });
      tools.querySelector("output").textContent = "";
      tools.querySelector("button").click();
      await wait();
      return tools.querySelector("output").textContent;
    };
    const allowed = await answer({ writeText: async text => { written.push(text); } });
    document.execCommand = () => false;
    const denied = await answer(undefined), selected = String(getSelection());
    getSelection().removeAllRanges();
    return { allowed, denied, text: box.textContent, written, selected };"""
    found = page.run(script)
    assert found["allowed"] == "Copied." and found["written"] == [found["text"]]
    assert found["denied"].startswith("Selected.") and found["selected"].strip() == found["text"].strip()


def test_another_cost_moves_the_points_and_names_never_overlap(page: Page) -> None:
    script = f"""{DRAWN} const box = await figure("Δm against cost"), area = box.querySelector(".area");
    const boxes = () => [...area.querySelectorAll(".annotation-text-g text")].map(text => {{
      const b = text.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }});
    await wait(() => boxes().length > 3);
    const first = [...area.data[1].x], names = boxes(), select = box.querySelector("select");
    const other = [...select.options].findIndex(option => option.text.includes("memory"));
    change(select, String(other));
    await wait(() => area.layout.xaxis.title.text.includes("memory") && boxes().length > 3);
    return {{first, second: [...area.data[1].x], names, others: boxes(), texts: [...area.data[1].text]}};"""
    found = page.run(script)
    assert found["first"] != found["second"] and len(found["texts"]) == 5
    for names in (found["names"], found["others"]):
        assert len(names) > 3
        for i, (left, top, right, bottom) in enumerate(names):
            assert all(right <= o[0] or o[2] <= left or bottom <= o[1] or o[3] <= top for o in names[i + 1 :])


def test_nothing_is_cut_at_any_width(page: Page) -> None:
    for width in WIDTHS:
        page.resize(width)
        found = page.run(
            """await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
            const wide = document.documentElement.scrollWidth - window.innerWidth;
            const box = document.querySelector(".scroll"), pin = box.querySelector("tbody .pin");
            box.scrollLeft = 1e6;
            const gap = pin.getBoundingClientRect().left - box.getBoundingClientRect().left;
            box.scrollLeft = 0;
            return [wide, gap];"""
        )
        assert found[0] <= 0, f"the page scrolls sideways at {width}"
        assert 0 <= found[1] <= 60, f"the names leave the view at {width}"
    page.resize(1400)


def test_dark_and_print_change_the_page(page: Page) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor;"
    light = page.run(colour)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run(colour) != light
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run(colour) == light, "paper is white"
    hidden = "return getComputedStyle(document.querySelector('.tools')).display;"
    assert page.run(hidden) == "none"
    page.call("Emulation.setEmulatedMedia", media="", features=[])


def test_figures_are_scaled_to_the_paper_and_back(page: Page) -> None:
    page.call("Emulation.setEmulatedMedia", media="print")
    script = f"""{DRAWN} const box = await figure("Training loss"), svg = box.querySelector(".main-svg");
    document.body.style.maxWidth = "700px";
    const wide = () => [box.clientWidth, svg.getBoundingClientRect().width, svg.getAttribute("viewBox")];
    dispatchEvent(new Event("beforeprint"));
    const paper = wide(), tall = svg.parentElement.clientHeight;
    dispatchEvent(new Event("afterprint"));
    document.body.style.maxWidth = "";
    return [paper, tall, wide()[2], svg.getAttribute("width")];"""
    (box, drawn, view), tall, after, width = page.run(script)
    page.call("Emulation.setEmulatedMedia", media="")
    assert drawn == pytest.approx(box, abs=1) and box <= 700 < float(width)
    assert view.startswith(f"0 0 {width} ") and tall > 100 and after is None


def test_a_matrix_has_room_for_its_numbers(page: Page) -> None:
    page.resize(400)
    script = f"""{DRAWN} const box = await figure("Gradient cosine between tasks, mean over training");
    await new Promise(resolve => setTimeout(resolve, 400));
    const texts = [...box.querySelector(".heatmaplayer .hm").querySelectorAll("text")];
    const place = text => text.getBoundingClientRect();
    return texts.map(text => [text.textContent, place(text).left, place(text).right, place(text).top]);"""
    found = page.run(script)
    page.resize(1400)
    assert len(found) == 36
    for number, left, right, top in found:
        beside = [other for other in found if abs(other[3] - top) < 2 and other[1] > left]
        assert all(right + 6 < other[1] for other in beside), f"{number} runs into its neighbour"


def test_commands_in_notes_are_set_as_code(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "<code>mtlbench cost</code> measures" in page and "equal tuning (<code>--trials</code>)" in page
    assert "`" not in re.sub(r"(?s)<script.*?</script>", "", page)


def test_an_accessibility_check_finds_nothing(page: Page) -> None:
    page.run((resources.files("axe_core_python") / "axe.min.js").read_text() + "; return null;")
    # A figure is one image with a description; its thousands of elements would only take time.
    script = """document.querySelectorAll("details").forEach(box => { box.open = true; });
    document.querySelectorAll(".area").forEach(area => area.replaceChildren());
    const found = await window.axe.run(document, { resultTypes: ["violations"], ...MORE });
    return found.violations.map(v => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map(n => n.html).join(" ")}`);"""
    assert page.run(script.replace("MORE", "{}")) == []
    page.run(
        "for (const a of ['alt', 'title']) document.querySelector('.gallery img').removeAttribute(a); return null;"
    )
    found = page.run(script.replace("MORE", "{ runOnly: ['image-alt'] }"))
    assert [text.split(":")[0] for text in found] == ["image-alt"], "the check finds a fault where there is one"


def test_no_request_leaves_the_page_and_no_error_is_logged(page: Page, folder: Path) -> None:
    assert page.requests[0] == (folder / "report.html").resolve().as_uri()
    assert all(request.startswith("data:image/") for request in page.requests[1:])
    assert not page.faults
