"""Protocols: fewer labels, an unseen task, an unrelated one. What they change, what they keep, what they refuse."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtlbench.runs.plan import Ending, Plan
from mtlbench.runs.spec import RunSpec
from mtlbench.study import scenarios
from tests.support.command_line import mtlbench, write_suite
from tests.support.scenario_suite import LOW, SUITE, UNRELATED, UNSEEN, data_of, plan_of, resolved, scored


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    write_suite(tmp_path, "mine", SUITE)
    return tmp_path


# ---- identity ------------------------------------------------------------------------------------------------------


def test_identity_is_what_it_was_where_nothing_is_set(mine: Path) -> None:
    plain, low = resolved(mine, "methods=[uniform]").members[0], resolved(mine, "methods=[uniform]", LOW)
    keys = ("suite", "seed", "method", "tasks", "data", "model", "optimiser", "trainer")
    record = {key: getattr(plain, key) for key in keys}
    assert plain.hash == hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    assert sorted(plain.data) == ["fingerprint", "module", "options", "version"]
    by_condition = {case.condition: case.spec for case in low.cases}
    assert list(by_condition) == ["10 %", "25 %", "100 %"]
    assert by_condition["100 %"].run_id == plain.run_id, "all labels: nothing changes"
    assert len({spec.hash for spec in by_condition.values()}) == 3
    begun = replace(plain, start={"run": "a", "hash": "b", "related": None, "freeze": False})
    assert begun.hash != plain.hash and RunSpec.from_json(begun.to_json()) == begun


def test_single_task_has_the_same_labels_and_trains_no_other_task(mine: Path) -> None:
    study = resolved(mine, "methods=[uniform, single_task]", LOW)
    by_label = {label: [c for c in study.cases if c.spec.label == label] for label in ("uniform", "single_task")}
    for together, apart in zip(*by_label.values(), strict=True):
        (alone,) = next(plan_of(apart.begin))
        assert list(alone.tasks) == ["left"] and len(together.spec.tasks) == 3
        assert alone.data.get("labels") == together.spec.data.get("labels") and apart.condition == together.condition
        kept = [_labels_of(spec) for spec in (alone, together.spec)]
        assert kept[0] == kept[1] and len(kept[0]) == round(40 * float(apart.condition.split()[0]) / 100)


def _labels_of(spec: RunSpec) -> set[str]:
    """Returns the images that keep their label of `left`."""
    samples = data_of(spec).training_samples()
    return {s["id"] for s in (samples[i] for i in range(len(samples))) if "left" in s["targets"]}


def test_a_model_of_its_own(mine: Path) -> None:
    wide = "{name: uniform, label: wide, model: {encoder_options: {mlp_ratio: 8}}}"
    one, other = resolved(mine, f"methods=[uniform, {wide}]").members
    assert one.run_id == resolved(mine, "methods=[uniform]").members[0].run_id
    assert other.label == "wide" and other.method == one.method
    assert other.model == {**one.model, "encoder_options": {**one.model["encoder_options"], "mlp_ratio": 8}}


# ---- plans ---------------------------------------------------------------------------------------------------------


def _ended(plan: Plan, results: list[dict[str, Any]]) -> Ending:
    with pytest.raises(StopIteration) as end:
        plan.send(results)
    return Ending.of(end.value.value)


@pytest.mark.parametrize(
    ("values", "best"),
    [((0.4, 0.5, 0.5, 0.5), 1), ((0.9, 0.3, 0.5, 0.6), 0), ((0.5, 0.5, 0.25, 0.75), 0),
     ((float("nan"), 0.9, 0.1, 0.0), 1), ((0.9, None, 0.1, 0.0), 1)],
)  # fmt: skip
def test_gates_of_the_related_task_that_is_best_on_the_examples_themselves(
    mine: Path, values: tuple[float | None, ...], best: int
) -> None:
    few, _ = resolved(mine, "methods=[task_moe]", UNSEEN).cases
    plan = plan_of(few.begin)
    (first,) = next(plan)
    assert list(first.tasks) == ["right", "ink"] and first.trainer["steps"] == 3 and "labels" not in first.data
    parts = plan.send([{"task_gates": True}])
    assert [run.start["related"] for run in parts if run.start] == ["right", "right", "ink", "ink"]
    assert [r.data["labels"] for r in parts] == [{"left": {"count": 4, "fold": [fold, 2]}} for fold in (0, 1)] * 2
    (final,) = plan.send(scored(*values))
    assert final.start and final.start["related"] == ("right", "ink")[best]
    assert final.data["labels"] == {"left": {"count": 4}}, "the chosen one is trained on all examples"
    assert {(r.start["run"], r.start["hash"]) for r in (*parts, final) if r.start} == {(first.run_id, first.hash)}
    assert all(list(r.tasks) == ["left"] and r.trainer["steps"] == 2 for r in (*parts, final))
    ending = _ended(plan, [{}])
    assert ending.serving == {"left": final.run_id}
    assert (ending.record["best"], [one["related"] for one in ending.record["tried"]]) == (best, ["right", "ink"])


def test_lower_is_better_where_the_metric_says_so(mine: Path) -> None:
    unseen = "scenario={kind: unseen_task, task: ink, related: [left, right], examples: [4], steps: 2}"
    plan = plan_of(resolved(mine, "methods=[uniform]", unseen).cases[0].begin)
    next(plan)
    protocol = plan.send([{}])[0].tasks["ink"]["protocols"][0]
    assert not protocol["higher_is_better"]
    (final,) = plan.send([{"scores": {"ink": {protocol["id"]: value}}} for value in (0.9, 0.9, 0.1, 0.2)])
    assert final.start and final.start["draw"] == 1


def test_every_method_tries_as_many_second_runs_on_the_same_labels(mine: Path) -> None:
    """What a related task cannot change, another draw of the head does; and the choice is a function of the folds."""
    methods = "methods=[uniform, {name: task_moe, experts: 4}, single_task]"
    seen = []
    for case in resolved(mine, methods, UNSEEN, "scenario.steps=[2, 1]", "scenario.folds=9").cases[::2]:
        plan = plan_of(case.begin)
        first = next(plan)
        gates = case.spec.label == "task_moe"
        parts = plan.send([{"task_gates": gates}] * len(first))
        assert len({run.run_id for run in parts}) == len(parts) == 2 * 2 * 4, "leave-one-out of 4 examples"
        starts = [run.start or {} for run in parts[::4]]
        assert [start["related"] for start in starts] == ["right" if gates else None, "ink" if gates else None] * 2
        assert [start.get("draw", 0) for start in starts] == [0, 1, 0, 1]
        sources = [spec.run_id for spec in first] if case.spec.label == "single_task" else [first[0].run_id] * 2
        assert [start["run"] for start in starts] == sources * 2
        (final,) = plan.send(scored(*[0.1] * 12, *[0.8] * 4))
        assert (final.trainer["steps"], (final.start or {})["draw"]) == (1, 1)
        seen.append([(run.trainer["steps"], run.data["labels"]) for run in (*parts, final)])
    assert seen[0] == seen[1] == seen[2]


def test_one_candidate_needs_no_choice(mine: Path) -> None:
    one = "scenario={kind: unseen_task, task: left, related: [ink], examples: [1], steps: 2}"
    plan = plan_of(resolved(mine, "methods=[task_moe]", one).cases[0].begin)
    next(plan)
    (final,) = plan.send([{"task_gates": True}])
    assert final.start and final.start["related"] == "ink" and "draw" not in final.start
    assert _ended(plan, [{}]).serving == {"left": final.run_id}


def test_no_step_is_chosen_by_the_validation_split(mine: Path) -> None:
    """Where the suite keeps the best step, the first run does, on the tasks whose labels it has; others end last."""
    best = ("selection=best", "trainer.evaluate_every=1", "scenario.scratch=[uniform]")
    cases = resolved(mine, "methods=[uniform]", UNSEEN, *best).cases
    plan = plan_of(cases[0].begin)
    (first,) = next(plan)
    parts = plan.send([{}])
    (final,) = plan.send(scored(0.1, 0.1, 0.2, 0.2))
    assert first.trainer["selection"] == "best"
    assert {run.trainer["selection"] for run in (*parts, final, cases[1].spec)} == {"last"}
    assert {run.trainer["evaluate_every"] for run in parts} == {0} != {final.trainer["evaluate_every"]}


def test_the_second_run_has_a_schedule_and_arguments_of_its_own(mine: Path) -> None:
    more = ["scenario.scratch=[uniform]", "scenario.arguments={balance: 0.0}", "scenario.lr=0.01", "optimiser.warmup=3"]
    cases = resolved(mine, UNSEEN, *more).cases
    assert [(case.spec.label, case.condition) for case in cases] == [
        (label, f"{count} examples")
        for labels in (("uniform", "uniform from scratch"), ("task_moe",))
        for count in (4, 8)
        for label in labels
    ]
    uniform, scratch, moe = cases[0].spec, cases[1].spec, cases[-1].spec
    assert (uniform.trainer["steps"], uniform.optimiser["lr"], uniform.optimiser["warmup"]) == (2, 0.01, 2)
    assert (scratch.trainer["steps"], scratch.optimiser["lr"], scratch.optimiser["warmup"]) == (3, 0.001, 3)
    assert moe.method["arguments"]["balance"] == 0.0 and "balance" not in uniform.method["arguments"]
    assert [spec.start for spec in next(plan_of(cases[1].begin))] == [None]
    chosen = resolved(mine, UNSEEN, *more, "methods=[task_moe]").cases
    assert {case.spec.label for case in chosen} == {"task_moe"}, "uniform was not chosen this time"


def test_an_unrelated_task_is_left_out_added_and_shuffled(mine: Path) -> None:
    without, true, shuffled = resolved(mine, "methods=[uniform]", UNRELATED).cases
    assert [list(case.spec.tasks) for case in (without, true, shuffled)] == [
        ["left", "right"],
        *[["left", "right", "ink"]] * 2,
    ]
    assert true.spec.run_id == resolved(mine, "methods=[uniform]").members[0].run_id
    assert shuffled.spec.data["labels"] == {"ink": {"shuffled": True}}
    assert [case.condition for case in (without, true, shuffled)] == ["without ink", "+ ink", "+ ink, shuffled labels"]


def test_the_unrelated_task_may_be_another_one(mine: Path) -> None:
    study = resolved(mine, "methods=[uniform]", UNRELATED, "scenario.unrelated=right")
    assert [(list(case.spec.tasks), case.spec.data.get("labels")) for case in study.cases] == [
        (["left"], None), (["left", "ink"], None), (["left", "right"], {"right": {"shuffled": True}}),
    ]  # fmt: skip
    about = study.record["scenario"]
    assert (about["base"], about["ignored"]) == ("without ink and right", ["ink", "right"])
    assert about["columns"] == ["+ ink", "+ right, shuffled labels"] == [case.condition for case in study.cases][1:]


# ---- the whole way, and what is refused ----------------------------------------------------------------------------


def test_a_study_goes_on_where_it_was_and_repeats_nothing(mine: Path) -> None:
    words = (
        "mine.yaml",
        "--method",
        "task_moe",
        "trainer.steps=1",
        UNSEEN,
        "scenario.examples=[4]",
        "scenario.steps=1",
    )
    assert mtlbench(mine, "run", *words).code == 0
    assert (mine / "trainings").read_text().split() == ["right+ink", *["left"] * 5]
    assert mtlbench(mine, "run", *words, "scenario.examples=[4, 8]").code == 0
    assert (mine / "trainings").read_text().split() == ["right+ink", *["left"] * 10]
    assert mtlbench(mine, "run", *words, "scenario.examples=[4, 8]").code == 0
    assert len((mine / "trainings").read_text().split()) == 11, "all done"
    shown = mtlbench(mine, "report", "mine.yaml")
    assert shown.code == 0 and "4 examples" in shown.text and "left accuracy@1" in shown.text
    page = (mine / "results" / "mine" / "report.html").read_text()
    assert "Methods by conditions" in page and "8 examples" in page


@pytest.mark.parametrize(
    ("scenario", "facts"),
    [
        ("kind: low_resorce, task: left", ["'low_resorce'", "Did you mean 'low_resource'"]),
        ("task: left", ["kind of scenario", "low_resource"]),
        ("kind: low_resource", ["needs the option 'task'"]),
        ("kind: low_resource, task: lefd", ["scenario", "Unknown task 'lefd'", "'left'"]),
        ("kind: low_resource, task: left, fraction: [1]", ["Unknown option 'fraction'", "'fractions'"]),
        ("kind: low_resource, task: left, fractions: [0.0]", ["fractions must be a list of shares in (0, 1]", "[0.0]"]),
        ("kind: low_resource, task: left, fractions: [1.5]", ["shares in (0, 1]", "[1.5]"]),
        ("kind: low_resource, task: left, fractions: [.nan]", ["scenario.fractions", "finite", "nan"]),
        ("kind: low_resource, task: left, fractions: 0.1", ["must be a list", "0.1"]),
        ("kind: low_resource, task: left, fractions: [0.1, 0.1]", ["must be distinct"]),
        ("kind: unseen_task, task: left", ["needs the option 'related'"]),
        ("kind: unseen_task, task: left, related: [left]", ["Unknown task 'left'", "ink, right"]),
        ("kind: unseen_task, task: left, related: [right], examples: [0]", ["whole numbers of at least 1", "[0]"]),
        ("kind: unseen_task, task: left, related: [right], examples: [41]", ["41 of 40 training images"]),
        ("kind: unseen_task, task: left, related: [right], steps: 0", ["steps must be a whole number", "found 0"]),
        ("kind: unseen_task, task: left, related: [right], steps: [5, 0]", ["steps must be a list of whole", "[5, 0]"]),
        ("kind: unseen_task, task: left, related: [right], folds: 1", ["folds must be", "at least 2; found 1"]),
        ("kind: unseen_task, task: left, related: [right, ink], examples: [1, 4]", ["at least 2 of them", "Found 1."]),
        ("kind: unseen_task, task: left, related: [right], lr: -1", ["lr must be above 0"]),
        ("kind: unseen_task, task: left, related: [right], scratch: [unifrom]", ["'unifrom'", "mean 'uniform'"]),
        ("kind: unseen_task, task: left, related: [right], freeze_routers: 3", ["must be true or false"]),
        ("kind: unrelated_task, task: ink, unrelated: inc", ["Unknown task 'inc'", "Did you mean 'ink'"]),
        ("kind: unrelated_task, task: ink, unrelated: [left]", ["unrelated must name a task", "['left']"]),
        ("kind: unrelated_task, task: ink, labels: [shuffled]", ["Unknown option 'labels'", "task, unrelated"]),
    ],
)  # fmt: skip
def test_mistakes_are_told(mine: Path, scenario: str, facts: list[str]) -> None:
    answer = mtlbench(mine, "bench", "mine.yaml", f"scenario={{{scenario}}}", "--dry")
    assert answer.code == 2 and all(fact in answer.text for fact in facts), answer.text


def test_several_related_tasks_need_no_split_to_choose_on(mine: Path) -> None:
    answer = mtlbench(mine, "bench", "mine.yaml", UNSEEN, "data.module=data_modules.digits:Digits", "--dry")
    assert answer.code == 0, answer.text


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        ("{encodr: resnet18}", ["Unknown key of a method's model 'encodr'", "'encoder'"]),
        ("{encoder: resnet81}", ["resnet81", "'resnet18'"]),
        ("wide", ["maps keys of the suite's model section"]),
        ("{encoder_options: {img_size: 64}}", ["must not hold options that mtlbench sets itself. Found img_size"]),
    ],
)
def test_mistakes_in_a_methods_model_are_told(mine: Path, model: str, facts: list[str]) -> None:
    answer = mtlbench(mine, "bench", "mine.yaml", f"methods=[{{name: uniform, model: {model}}}]", "--dry")
    assert answer.code == 2 and all(fact in answer.text for fact in facts), answer.text


def test_every_protocol_is_found_and_says_what_it_does() -> None:
    others = {"data_option", "incremental", "transfer"}
    assert set(scenarios.shipped()) == {"low_resource", "unrelated_task", "unseen_task"} | others
    assert all(scenarios.shipped().values())


def test_the_old_key_is_refused_with_the_new_one(mine: Path) -> None:
    answer = mtlbench(mine, "bench", "mine.yaml", "study.kind=low_resource", "--dry")
    assert answer.code == 2 and "study was renamed to scenario. Write scenario.kind instead." in answer.text
