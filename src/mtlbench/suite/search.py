"""Checks the section ``search`` of a suite: budget, what is searched, and seeds that no table uses. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from mtlbench.errors import unknown_name

OVER = ("method", "lr", "weight_decay")
"""What a search may change: hyper-parameters that the method declares as ``SEARCH``, and two of the optimiser."""

METRICS = {"gain_over_uniform": "uniform", "gain_over_single_task": "single_task"}
"""Metrics of a search, each with the method whose defaults it compares with."""

NONE = "To train every method with its declared defaults, write search: none."


def is_none(value: Any) -> bool:
    """Whether a value of ``search`` stands for no search."""
    return value is None or isinstance(value, str) and value.strip().partition(":")[0] == "none"


def faults(suite: Any, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields the key and the fault of everything that is wrong with a suite's search.

    Args:
        suite: The suite, or its configuration.
        given: Every dotted key that was given.
    """
    search = suite.search
    if search.trials < 1:
        if search.trials == 0 and any(key.partition(".")[0] == "search" for key in given):
            yield "search.trials", f"search.trials must be at least 1, found 0. {NONE}"
        return
    unknown = [name for name in search.over if name not in OVER]
    yield from (("search.over", unknown_name("part of search.over", str(name), OVER)) for name in unknown)
    if not search.over or len(set(search.over)) != len(search.over):
        yield "search.over", f"search.over must name at least one of {', '.join(OVER)}, each once. {NONE}"
    if search.metric not in METRICS:
        yield "search.metric", unknown_name("metric of a search", search.metric, METRICS)
    seeds = list(search.seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        yield "search.seeds", f"search.seeds must be distinct and at least one, found {seeds}."
    shared = sorted(set(seeds) & {*suite.seeds, *suite.confirm})
    if shared:
        yield (
            "search.seeds",
            (
                f"A choice must not see the seeds that the table reports. Of search.seeds, "
                f"{', '.join(map(str, shared))} "
                "are also in seeds or confirm. Choose others, for example [100]."
            ),
        )
    if "weight_decay" in search.over and suite.optimiser.weight_decay == 0:
        yield (
            "search.over",
            (
                "weight_decay is searched on a logarithmic scale around the suite's value, which is 0. Give "
                "optimiser.weight_decay a value above 0, or leave weight_decay out of search.over."
            ),
        )
    if suite.scenario:
        yield (
            "search",
            (
                "A search tunes one configuration per row, and a scenario has several conditions per row. Leave one of "
                f"them out. {NONE}"
            ),
        )
