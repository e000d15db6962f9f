"""The choice of groups on tables: equal to brute force, exact on ties, quick on 13 tasks; tables of quality."""

from __future__ import annotations

import math
import time
from itertools import combinations, permutations

import numpy as np
import pytest

from mtlbench.errors import MethodError
from mtlbench.grouping import best_cover, from_pairs, random_partition, relative_gains, subsets

LOSSES = {"a": [0.1], "b": [0.2], "c": [0.3], "ab": [0.09, 0.22], "bc": [0.18, 0.27], "abc": [0.12, 0.21, 0.26]}
PAIRS = {("a", "b"): 0.1, ("b", "a"): 0.2, ("a", "c"): 0.3, ("c", "a"): 0.4, ("b", "c"): 0.5, ("c", "b"): 0.6}


def negated(losses):
    return {tuple(group): {task: -v for task, v in zip(group, row, strict=True)} for group, row in losses.items()}


def drawn(rng, tasks, *, values=None, share=1.0):
    """Returns a table of random values on random groups; all tasks alone are among them."""
    draw = rng.normal if values is None else lambda: rng.choice(values)
    kept = [group for group in subsets(tasks) if len(group) == 1 or rng.random() < share]
    return {group: {task: float(draw()) for task in group} for group in kept}


def brute_force(tasks, table, budget, single_cost=1.0):
    """Returns the best (total, cost, networks) over all choices of groups, each looked at."""
    best = None
    for count in range(1, len(tasks) + 1):
        for chosen in combinations(table, count):
            cost = sum(single_cost if len(group) == 1 else 1.0 for group in chosen)
            served = [[table[g][t] for g in chosen if t in g and math.isfinite(table[g][t])] for t in tasks]
            if cost <= budget + 1e-9 and all(served):
                found = (-sum(max(values) for values in served), cost, count)
                best = min(best or found, found)
    return best


def value(tasks, cover, table, single_cost=1.0):
    """Returns (total, cost, networks) of an answer after checking that each task is served by its best group."""
    for task in tasks:
        qualities = [table[group].get(task, -math.inf) for group in cover.groups]
        assert qualities[cover.serves[task]] == max(qualities)
    assert set(cover.serves.values()) == set(range(len(cover.groups))), "no network serves nobody"
    cost = sum(single_cost if len(group) == 1 else 1.0 for group in cover.groups)
    return -sum(table[cover.groups[i]][task] for task, i in cover.serves.items()), cost, len(cover.groups)


# ---- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "groups", "total"), [(1, ["abc"], 0.59), (1.5, ["a", "bc"], 0.55), (2, ["ab", "bc"], 0.54)]
)
def test_golden(budget, groups, total):
    found = best_cover("abc", negated(LOSSES), budget, single_cost=0.5)
    assert found.groups == tuple(tuple(group) for group in groups)
    assert found.total == pytest.approx(-total)


def test_golden_who_serves_whom():
    assert best_cover("abc", negated(LOSSES), 2, single_cost=0.5).serves == {"a": 0, "b": 1, "c": 1}


@pytest.mark.parametrize("seed", range(30))
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    tasks = "abcd"[: rng.integers(2, 5)]
    table = drawn(rng, tasks, share=rng.choice([0.4, 1.0]))
    for budget, single_cost in ((1, 0.25), (1, 0.5), (1.5, 0.5), (2, 1.0), (2.25, 0.75), (3, 1.0), (4, 1.0)):
        expected = brute_force(tasks, table, budget, single_cost)
        if expected is None:
            with pytest.raises(MethodError, match="cost"):
                best_cover(tasks, table, budget, single_cost)
            continue
        found = best_cover(tasks, table, budget, single_cost)
        assert value(tasks, found, table, single_cost) == pytest.approx(expected)
        assert found.total == pytest.approx(-expected[0])


@pytest.mark.parametrize("seed", range(20))
def test_of_equal_totals_the_cheapest_then_the_fewest(seed):
    rng = np.random.default_rng(seed)
    table = drawn(rng, "abcd", values=[-0.1, 0.1, 0.2, 0.3])  # Sums of these differ by rounding with their order.
    for budget, single_cost in ((2, 1.0), (3, 1.0), (3, 0.5), (2, 2.0)):
        found = best_cover("abcd", table, budget, single_cost)
        expected = brute_force(
            "abcd", {g: {t: round(10 * v) for t, v in row.items()} for g, row in table.items()}, budget, single_cost
        )
        total, cost, count = value("abcd", found, table, single_cost)
        assert (round(10 * total), cost, count) == expected


def test_the_order_of_the_table_does_not_matter():
    rng = np.random.default_rng(0)
    table = drawn(rng, "abcd", values=[0.0, 1.0])
    orders = [list(table), list(reversed(table)), sorted(table, key=lambda group: group[::-1])]
    answers = [best_cover("abcd", {group: table[group] for group in order}, 2) for order in orders]
    assert answers[0] == answers[1] == answers[2]


def test_equal_everywhere_is_one_network_for_all():
    equal = {group: dict.fromkeys(group, 0.1) for group in subsets("abcd")}
    assert best_cover("abcd", equal, 3).groups == (("a", "b", "c", "d"),)


def test_then_smaller_groups_and_the_order_of_the_tasks():
    """a and b may be served by ab or abc, c by ac or bc."""
    table = {
        ("b", "c"): {"b": 0.0, "c": 1.0}, ("a", "c"): {"a": 0.0, "c": 1.0},
        ("a", "b", "c"): {"a": 1.0, "b": 1.0, "c": 0.0}, ("a", "b"): {"a": 1.0, "b": 1.0},
    }  # fmt: skip
    assert best_cover("abc", table, 2).groups == (("a", "b"), ("a", "c"))


def test_more_budget_is_never_worse():
    rng = np.random.default_rng(3)
    table = drawn(rng, "abcdef")
    totals = [best_cover("abcdef", table, budget, 0.5).total for budget in np.arange(1, 6.5, 0.5)]
    assert totals == sorted(totals) and totals[0] < totals[-1]
    assert totals[-1] == pytest.approx(sum(max(row[t] for row in table.values() if t in row) for t in "abcdef"))


def test_tasks_in_another_order_get_the_same_groups():
    table = drawn(np.random.default_rng(4), "abcd")
    expected = {frozenset(group) for group in best_cover("abcd", table, 2).groups}
    for order in permutations("abcd"):
        turned = {tuple(sorted(group, key=order.index)): row for group, row in table.items()}
        assert {frozenset(group) for group in best_cover(order, turned, 2).groups} == expected


def by_size(tasks, table, small, budget, single_cost):
    """Returns the best (total, cost) over all choices among full networks and small ones of single tasks."""
    items = [(row, 1.0) for row in table.values()] + [({t: q}, single_cost) for t, q in small.items()]
    best = None
    for count in range(1, len(tasks) + 1):
        for chosen in combinations(items, count):
            cost = sum(price for _, price in chosen)
            served = [[row[t] for row, _ in chosen if math.isfinite(row.get(t, math.nan))] for t in tasks]
            if cost <= budget + 1e-9 and all(served):
                found = (-sum(map(max, served)), cost)
                best = min(best or found, found)
    return best


@pytest.mark.parametrize("seed", range(15))
def test_small_networks_beside_full_ones_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    tasks = "abcd"[: rng.integers(2, 5)]
    table = drawn(rng, tasks)
    small = {task: table[task,][task] - rng.random() * 0.2 for task in tasks if rng.random() < 0.8}
    for budget, cost in ((0.5, 0.5), (1, 0.5), (1.5, 0.5), (2, 0.25), (2.5, 0.5), (3.5, 0.5), (4, 1.0)):
        expected = by_size(tasks, table, small, budget, cost)
        if expected is None:
            with pytest.raises(MethodError, match="cost"):
                best_cover(tasks, table, budget, cost, small)
            continue
        found = best_cover(tasks, table, budget, cost, small)
        sizes = [len(group) == 1 and group[0] in found.small for group in found.groups]
        assert sum(cost if is_small else 1 for is_small in sizes) == pytest.approx(expected[1])
        assert found.total == pytest.approx(-expected[0])
        for task, index in found.serves.items():
            assert task in found.groups[index]


def test_a_full_single_network_is_taken_where_it_pays():
    """The specification's losses, with full networks of one task: a .05, b .15, c .25. By hand, budget by budget."""
    small = {task: -LOSSES[task][0] for task in "abc"}
    table = negated({**LOSSES, "a": [0.05], "b": [0.15], "c": [0.25]})
    for budget, groups, owners, total in (
        (1.5, ["a", "bc"], "a", 0.1 + 0.18 + 0.27),
        (2, ["a", "bc"], "", 0.05 + 0.18 + 0.27),
        (2.5, ["a", "b", "c"], "c", 0.05 + 0.15 + 0.3),
        (3, ["a", "b", "c"], "", 0.05 + 0.15 + 0.25),
    ):
        found = best_cover("abc", table, budget, 0.5, small)
        assert found.total == pytest.approx(-total), budget
        if budget != 2.5:  # there {a, bc} costs less and has the same total
            assert found.groups == tuple(map(tuple, groups)) and found.small == frozenset(owners)
    assert best_cover("abc", table, 2, 0.5, small).total > best_cover("abc", negated(LOSSES), 2, 0.5).total


def test_what_is_not_finite_serves_nobody():
    table = {("a",): {"a": 0.0}, ("b",): {"b": 0.0}, ("a", "b"): {"a": math.inf, "b": 9.0}}
    assert best_cover("ab", table, 2).groups == (("a",), ("a", "b"))
    table["a", "b"] = {"a": math.nan, "b": -9.0}
    assert best_cover("ab", table, 2).groups == (("a",), ("b",))
    with pytest.raises(MethodError, match="cost 1"):
        best_cover("ab", table, 1)
    table["a",] = {"a": math.nan}
    with pytest.raises(MethodError, match="finite score"):
        best_cover("ab", table, 9)


@pytest.mark.parametrize("seed", range(2))
def test_two_of_2047_groups(seed):
    tasks, rng = [f"t{i}" for i in range(11)], np.random.default_rng(seed)
    table = drawn(rng, tasks)
    values = np.array([[row.get(task, -np.inf) for task in tasks] for row in table.values()])
    expected = max(np.maximum(row, values).sum(1).max() for row in values)
    assert best_cover(tasks, table, 2).total == pytest.approx(expected)


def test_five_of_8191_groups_within_seconds():
    """Tasks of one block help each other, others hurt: the blocks must be found, whatever the order of the tasks."""
    rng = np.random.default_rng(5)
    tasks = [f"t{i}" for i in range(13)]
    block = dict(zip(tasks, rng.permutation([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4]), strict=True))
    pairs = {(a, b): (1.0 if block[a] == block[b] else -1.0) for a in tasks for b in tasks}
    start = time.process_time()
    found = best_cover(tasks, from_pairs(subsets(tasks), pairs, -1e6), 5)
    assert time.process_time() - start < 15
    assert {frozenset(group) for group in found.groups} == {
        frozenset(task for task in tasks if block[task] == number) for number in range(5)
    }
    assert found.total == pytest.approx(13)


def test_too_many_tasks_are_refused():
    with pytest.raises(MethodError, match="at most 16 tasks. Found 17"):
        subsets([f"t{i}" for i in range(17)])


def test_subsets_are_all_there_small_ones_first():
    assert ["".join(group) for group in subsets("abc")] == ["a", "b", "c", "ab", "ac", "bc", "abc"]
    assert len(subsets("abcdefghijklm")) == 8191 and len(subsets("abcdef", 2)) == 21


# ---- tables --------------------------------------------------------------------------------------------------------


def test_golden_of_the_higher_order_approximation():
    found = from_pairs(subsets("abc"), PAIRS, alone=0.0)
    assert found["a", "b", "c"] == pytest.approx({"a": 0.2, "b": 0.35, "c": 0.5})
    assert found["a", "c"] == {"a": 0.3, "c": 0.4} and found["b",] == {"b": 0.0}


def test_a_task_with_itself_is_never_looked_at():
    for own in (math.nan, 1e9):
        with_own = PAIRS | {(task, task): own for task in "abc"}
        assert from_pairs(subsets("abc"), with_own, -1e6) == from_pairs(subsets("abc"), PAIRS, -1e6)


def test_alone_is_worse_than_any_company():
    hostile = {pair: -5.0 for pair in PAIRS}
    table = from_pairs(subsets("abc"), hostile, alone=-1e6)
    assert table["a",] == {"a": -1e6}
    assert all(len(group) > 1 for budget in (1, 2, 3) for group in best_cover("abc", table, budget).groups)


def description(**higher):
    return {task: {"protocols": [{"id": f"{task}@1", "higher_is_better": up}]} for task, up in higher.items()}


def scores(**values):
    return {task: {f"{task}@1": value, "other@1": 7.0} for task, value in values.items()}


def test_gains_are_signed_and_relative_to_the_task_alone():
    tasks = description(acc=True, err=False)
    found = relative_gains(
        tasks,
        {
            ("acc",): scores(acc=0.5),
            ("err",): scores(err=4.0),
            ("acc", "err"): scores(acc=0.6, err=5.0),
        },
    )
    assert found["acc", "err"] == pytest.approx({"acc": 0.2, "err": -0.25})
    assert found["acc",] == {"acc": 0} and found["err",] == {"err": 0}


def test_gains_over_zero_and_over_a_negative_score():
    tasks = description(acc=True, corr=True)
    found = relative_gains(
        tasks,
        {
            ("acc",): scores(acc=0.0),
            ("corr",): scores(corr=-0.5),
            ("acc", "corr"): scores(acc=0.1, corr=-0.25),
        },
    )
    assert found["acc", "corr"] == pytest.approx({"acc": 0.1, "corr": 0.5})


@pytest.mark.parametrize("lacking", [{}, {"b": {}}, {"b": {"b@1": None}}, scores(b=math.nan)])
def test_a_group_without_a_score_cannot_serve(lacking):
    tasks = description(a=True, b=True)
    table = relative_gains(tasks, {("a",): scores(a=1.0), ("b",): scores(b=1.0), ("a", "b"): scores(a=2.0) | lacking})
    assert table["a", "b"]["a"] == 1 and math.isnan(table["a", "b"]["b"])
    assert best_cover("ab", table, 2).groups == (("a", "b"), ("b",))


def test_no_score_alone_is_refused():
    with pytest.raises(MethodError, match="single-task run of b has nan"):
        relative_gains(description(a=True, b=True), {("a",): scores(a=1.0), ("b",): scores(b=math.nan)})


# ---- random groups -------------------------------------------------------------------------------------------------


def test_random_groups_are_a_partition_of_even_sizes():
    for count in range(1, 7):
        groups = random_partition("abcdef", count, seed=count)
        assert sorted("".join("".join(group) for group in groups)) == list("abcdef")
        sizes = [len(group) for group in groups]
        assert len(groups) == count and max(sizes) - min(sizes) <= 1
        assert groups == random_partition("abcdef", count, seed=count)
        assert all(list(group) == sorted(group) for group in groups) and groups == sorted(groups)


def test_every_pair_is_equally_likely():
    together = sum(any({"a", "e"} <= set(g) for g in random_partition("abcdef", 2, seed)) for seed in range(2000))
    assert together / 2000 == pytest.approx(2 / 5, abs=0.05)


def test_gains_over_single_tasks_of_another_size():
    tasks = description(acc=True, err=False)
    full = {("acc",): scores(acc=0.5), ("err",): scores(err=4.0)}
    found = relative_gains(tasks, {("acc",): scores(acc=0.4), ("err",): scores(err=5.0)}, full)
    assert found["acc",] == pytest.approx({"acc": -0.2}) and found["err",] == pytest.approx({"err": -0.25})
