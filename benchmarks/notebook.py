"""Executes the cells of docs/notebook.md, writes their outputs below them, and writes docs/notebook.ipynb.

Run it in an empty folder: ``python <clone>/benchmarks/notebook.py``. Results go to its folder ``results``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
CELL = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
OUTPUT = re.compile(r"\n<!-- output -->\n.*?<!-- end of output -->\n", re.DOTALL)
LONG, FIRST, LAST = 40, 2, 1
"""Of a text with more lines than this, the first and the last ones are shown."""


def parts(page: str) -> Iterator[tuple[str, str]]:
    """Yields ``("text", ...)`` and ``("code", ...)`` in the order of a page, without outputs."""
    for index, part in enumerate(CELL.split(OUTPUT.sub("", page))):
        yield "code" if index % 2 else "text", part


def execute(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Runs a cell and returns what it printed and the value of its last line, if that is an expression."""
    body = ast.parse(code).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    return text.getvalue(), value


def shortened(text: str) -> str:
    """Returns printed text without its middle part if it is long."""
    lines = text.splitlines()
    if len(lines) <= LONG:
        return text.strip("\n")
    return "\n".join([*lines[:FIRST], f"… {len(lines) - FIRST - LAST} more lines …", *lines[-LAST:]])


def shown(text: str, value: Any) -> str:
    """Returns an output for the page: HTML where the value has it, a word for a figure, text otherwise."""
    blocks = [f"```text\n{shortened(text)}\n```"] if text.strip() else []
    if hasattr(value, "to_plotly_json"):
        blocks.append(f"*A figure with {len(value.data)} traces; the notebook shows it.*")
    elif html := _html(value):
        blocks.append(html.replace(' border="1" class="dataframe"', ""))  # The site has a style for tables.
    elif value is not None:
        blocks.append(f"```text\n{value!r}\n```")
    return "\n<!-- output -->\n" + "\n\n".join(blocks) + "\n<!-- end of output -->\n" if blocks else ""


def outputs(text: str, value: Any, count: int) -> list[dict[str, Any]]:
    """Returns an output in the format of notebooks."""
    found: list[dict[str, Any]] = []
    if text.strip():
        found.append({"output_type": "stream", "name": "stdout", "text": shortened(text) + "\n"})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value)}
        if hasattr(value, "to_plotly_json"):
            data = {"application/vnd.plotly.v1+json": json.loads(value.to_json()), "text/plain": "Figure"}
        elif html := _html(value):
            data["text/html"] = html
        found.append({"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}})
    return found


def _html(value: Any) -> str:
    draw = getattr(value, "_repr_html_", None)
    text = draw() if draw else ""
    # Blank lines would end the block in Markdown.
    return "\n".join(
        line for line in re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL).splitlines() if line.strip()
    )


def main() -> None:
    """Executes the page and writes it and the notebook."""
    names: dict[str, Any] = {}
    page, cells, count = "", [], 0
    for kind, part in parts((DOCS / "notebook.md").read_text()):
        if kind == "text":
            page += part
            text = re.sub(r" \[Download it as a notebook\]\(.*?\)\.", "", part).strip()
            cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
            continue
        count += 1
        printed, value = execute(part, names)
        page += f"```python\n{part}```\n{shown(printed, value)}"
        made = {"source": part.rstrip("\n"), "outputs": outputs(printed, value, count), "execution_count": count}
        cells.append({"cell_type": "code", "metadata": {}, **made})
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (DOCS / "notebook.md").write_text(page)
    (DOCS / "notebook.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
