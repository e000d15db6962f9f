"""Papers of methods as BibTeX.

A method, a scenario and a rule of task mixing name their papers once: by the addresses in the first paragraph of the
class's docstring. ``references.bib`` holds authors and titles by the same addresses. Shipped code is read without
importing it; what a study in a results folder names is never imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mtlbench import registry
from mtlbench.report.reader import ReportInput, read_specs
from mtlbench.study import scenarios

Specs = Mapping[str, Mapping[str, Any]]

_LINK = re.compile(
    r"https://arxiv\.org/abs/(\d+\.\d+)|arXiv:(\d+\.\d+)|https://doi\.org/([^\s),;]+)|(https?://[^\s),;]+)"
)
_FIELD = re.compile(r"^  (eprint|doi|url) = \{(.+)\},$", re.MULTILINE)


@cache
def entries() -> dict[str, tuple[str, str]]:
    """Returns key and text of every entry of ``references.bib`` by arXiv number, DOI or address."""
    found: dict[str, tuple[str, str]] = {}
    for text in re.findall(r"^@.+?^\}$", _BIB.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        key = text[text.index("{") + 1 : text.index(",")]
        found |= {place: (key, text) for _, place in _FIELD.findall(text)}
    return found


def papers(method: str) -> tuple[str, ...]:
    """Returns arXiv numbers, DOIs and addresses of the papers of a shipped method; none for methods of your own.

    Args:
        method: Name of the method.
    """
    path = registry.file_of(method)
    return _papers_in(path) if path else ()


def scenario_papers(kind: str) -> tuple[str, ...]:
    """Returns arXiv numbers, DOIs and addresses of the papers of a kind of scenario; none if there is no such kind."""
    known = kind in scenarios.shipped()
    return _papers_in(Path(scenarios.__file__).with_name(f"{kind}.py")) if known else ()


def mixing_papers(rule: str) -> tuple[str, ...]:
    """Returns arXiv numbers, DOIs and addresses of the papers of a rule of task mixing; none for an unknown rule."""
    return _papers_in(Path(registry.__file__).parent / "data" / "mixing.py", rule.capitalize())


def _papers_in(path: Path, only: str = "") -> tuple[str, ...]:
    """Returns the papers that the classes of a file, or one of them, name in first paragraphs of docstrings."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and only in ("", node.name)]
    heads = [(ast.get_docstring(node) or "").partition("\n\n")[0] for node in classes]
    return tuple(dict.fromkeys(next(filter(None, link)) for head in heads for link in _LINK.findall(head)))


def references_of(study: ReportInput) -> dict[str, list[str]]:
    """Returns the keys of the papers of every method that a study uses, balancers included, by name."""
    return {name: _keys(name) for name in _methods(study)}


def bibtex(study: ReportInput, specs: Specs | None = None) -> str:
    """Returns the papers of a study's methods, scenario and rules of task mixing as BibTeX; see `cited`.

    Args:
        study: The study.
        specs: ``spec.json`` per run id, if they have been read already.
    """
    specs = read_specs(study) if specs is None else specs
    kind = str((study.plan.get("scenario") or {}).get("kind", ""))
    more = {f"scenario {kind}": scenario_papers(kind)}
    more |= {f"mixing by {rule}": mixing_papers(rule) for spec in specs.values() if (rule := _mixing(spec))}
    return cited(_methods(study, specs), {name: _keys_of(found) for name, found in more.items() if found})


def _mixing(spec: Mapping[str, Any]) -> str:
    """Returns the name of the rule by which a run mixes streams, or ``""``."""
    given = ((spec.get("data") or {}).get("options") or {}).get("mixing")
    return str(given.get("rule", "")) if isinstance(given, Mapping) else str(given or "")


def cited(methods: Iterable[str], more: Mapping[str, list[str]] | None = None) -> str:
    """Returns the papers of methods as BibTeX, after comments that say which method is from which paper.

    Args:
        methods: Names of methods.
        more: What else is from a paper: keys of entries by name.
    """
    used = {name: _keys(name) for name in methods} | dict(more or {})
    texts = dict(entries().values())
    comments = [f"% {_inert(name)}: {', '.join(keys) or _no_paper(name)}" for name, keys in used.items()]
    keys = sorted({key for each in used.values() for key in each})
    return "\n\n".join(["\n".join(comments), *(texts[key] for key in keys)]) + "\n"


_BIB = Path(__file__).with_name("references.bib")


def _keys(method: str) -> list[str]:
    return _keys_of(papers(method))


def _keys_of(found: Iterable[str]) -> list[str]:
    known = entries()
    return [known[paper][0] for paper in found if paper in known]


def _methods(study: ReportInput, specs: Specs | None = None) -> list[str]:
    """Returns the names of methods in the order of the rows, those that plans trained and balancers last."""
    rows = [entry["method"] for entry in study.plan["rows"]]
    found = read_specs(study) if specs is None else specs
    return list(dict.fromkeys([*rows, *(name for spec in found.values() for name in methods_of(spec))]))


def methods_of(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields the names of the method and of the balancer of a run's specification."""
    method = spec["method"]
    balancer = method.get("balancer")
    for part in (method, balancer if isinstance(balancer, dict) else {}):
        if isinstance(part.get("name"), str):
            yield part["name"]


def _no_paper(name: str) -> str:
    shipped = registry.file_of(name) is not None
    return "no paper" if shipped else "a method of your own; add its paper here"


def _inert(name: str) -> str:
    """Returns a name on one line without ``@``, which would begin an entry even in a comment."""
    return " ".join(name.replace("@", " ").split())
