"""Protocols: fewer labels, an unseen task, an unrelated one. What they change, what they keep, what they refuse."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench import suite as suites
from mtlbench.data import Samples
from mtlbench.data_modules.digits import Digits
from mtlbench.errors import MethodError, StoreError
from mtlbench.runs.plan import Plan, one_run
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.study import resolve as studies
from mtlbench.study import scenarios
from mtlbench.training import run, warm_start
from mtlbench.training.build import build_with_network
from mtlbench.training.load import load_run
from tests.support.command_line import mtlbench, write_suite

SUITE = """\
name: mine
version: 1
data:
  module: tests.study.test_scenarios:Three
  options: {train: 40, val: 12}
tasks: {left: {}, right: {}, ink: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [20, 24]
  decoder_channels: 8
trainer: {steps: 3, batch_size: 4, log_every: 1, examples: 0}
floor: false
methods: [uniform, {name: task_moe, experts: 4}]
"""
LOW = "scenario={kind: low_resource, task: left, fractions: [0.1, 0.25, 1.0]}"
UNSEEN = "scenario={kind: unseen_task, task: left, related: [right, ink], examples: [4, 8], steps: 2}"
UNRELATED = "scenario={kind: unrelated_task, task: ink, labels: ['true', shuffled]}"


class Three(Digits):
    """Digits with three splits: related tasks may be chosen on the second, scores are of the third."""

    SPLITS = ("train", "val", "test")

    def samples(self, split: str) -> Samples:
        """Returns the first images of the validation split as test split."""
        return super().samples("val" if split == "test" else split)

    def train_dataloader(self) -> Any:
        """Leaves a word for every training that starts."""
        with Path("trainings").open("a") as file:
            file.write("+".join(self.tasks) + "\n")
        return super().train_dataloader()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    write_suite(tmp_path, "mine", SUITE)
    return tmp_path


def resolved(folder: Path, *overrides: str) -> studies.Study:
    return studies.resolve(suites.load(str(folder / "mine.yaml"), overrides), studies.Local(), list(overrides))


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


def test_a_run_on_other_tasks_is_shared_by_all_shares(mine: Path) -> None:
    cases = resolved(mine, "methods=[single_task]", LOW).cases
    runs = [{next(iter(spec.tasks)): spec.run_id for spec in next(_plan(case.begin))} for case in cases]
    assert len({r["right"] for r in runs}) == len({r["ink"] for r in runs}) == 1 and len({r["left"] for r in runs}) == 3


def test_a_model_of_its_own(mine: Path) -> None:
    wide = "{name: uniform, label: wide, model: {encoder_options: {mlp_ratio: 8}}}"
    one, other = resolved(mine, f"methods=[uniform, {wide}]").members
    assert one.run_id == resolved(mine, "methods=[uniform]").members[0].run_id
    assert other.label == "wide" and other.method == one.method
    assert other.model == {**one.model, "encoder_options": {**one.model["encoder_options"], "mlp_ratio": 8}}


# ---- plans ---------------------------------------------------------------------------------------------------------


def _plan(begin: Any) -> Plan:
    """Returns the plan of a case, where `single_task` has one run per task."""

    def of(spec: RunSpec) -> Plan:
        if spec.method["name"] != "single_task":
            return (yield from one_run(spec))
        runs = {name: spec.with_tasks(name) for name in spec.tasks}
        yield list(runs.values())
        return {name: one.run_id for name, one in runs.items()}

    return begin(of)


def _serving(plan: Plan, results: list[dict[str, Any]]) -> dict[str, str]:
    with pytest.raises(StopIteration) as end:
        plan.send(results)
    return end.value.value


def _validated(value: float | None) -> dict[str, Any]:
    return {"validation": None if value is None else {"left": {"accuracy@1": value}}}


@pytest.mark.parametrize(("values", "best"), [((0.4, 0.5), 1), ((0.6, 0.5), 0), ((float("nan"), 0.1), 1)])
def test_gates_of_the_best_related_task_on_validation(mine: Path, values: tuple[float, ...], best: int) -> None:
    few, _ = resolved(mine, "methods=[task_moe]", UNSEEN).cases
    plan = _plan(few.begin)
    (first,) = next(plan)
    assert list(first.tasks) == ["right", "ink"] and first.trainer["steps"] == 3 and "labels" not in first.data
    runs = plan.send([{"task_gates": True}])
    assert [run.start["related"] for run in runs if run.start] == ["right", "ink"]
    assert {(r.start["run"], r.start["hash"]) for r in runs if r.start} == {(first.run_id, first.hash)}
    assert all(list(r.tasks) == ["left"] and r.data["labels"] == {"left": {"count": 4}} for r in runs)
    assert _serving(plan, [_validated(value) for value in values]) == {"left": runs[best].run_id}


def test_without_gates_there_is_one_start(mine: Path) -> None:
    case = resolved(mine, "methods=[uniform]", UNSEEN).cases[0]
    plan = _plan(case.begin)
    next(plan)
    (second,) = plan.send([{"task_gates": False}])
    assert second.start and second.start["related"] is None
    assert _serving(plan, [_validated(None)]) == {"left": second.run_id}


def test_single_tasks_start_from_the_run_of_a_related_task(mine: Path) -> None:
    case = resolved(mine, "methods=[single_task]", UNSEEN).cases[0]
    plan = _plan(case.begin)
    first = next(plan)
    runs = plan.send([{"task_gates": False}] * 2)
    assert [run.start["run"] for run in runs if run.start] == [spec.run_id for spec in first]


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
    assert [spec.start for spec in next(_plan(cases[1].begin))] == [None]
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
    assert shuffled.condition == "+ ink, shuffled labels"


# ---- starting from another run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunSpec, RunSpec]]:
    """A folder with a trained run on `right` and `ink`, its specification, and one on 4 examples of `left`."""
    root = tmp_path_factory.mktemp("first")
    write_suite(root, "mine", SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        plan = _plan(resolved(root, "methods=[{name: task_moe, experts: 4, gate: token_task}]", UNSEEN).cases[0].begin)
        (spec,) = next(plan)
        folder = RunFolder(root, spec.run_id)
        assert folder.claim(spec) and run.train(spec, folder)
        result = folder.result() or {}
        assert result["task_gates"] is True and set(result["validation"]) == {"right", "ink"}
        second, _ = plan.send([result])
        yield root, spec, second


def _method(spec: RunSpec) -> Any:
    return build_with_network(spec)[0]


def test_it_begins_with_exactly_the_weights_of_the_other_run(first: tuple[Path, RunSpec, RunSpec]) -> None:
    root, spec, second = first
    trained, fresh, method = load_run(root / spec.run_id, allow=["tests"]).method, _method(second), _method(second)
    warm_start.begin(method, second, root, _method)
    theirs, untouched, ours = (dict(m.network.named_parameters()) for m in (trained, fresh, method))
    shared = {name for name in ours if "left" not in name}
    heads = {name for name in ours if name.startswith("heads.left")}
    gates = ours.keys() - shared - heads
    assert heads and gates and shared <= theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    assert all(torch.equal(ours[name], untouched[name]) for name in heads), "a fresh head"
    assert all(torch.equal(ours[name], theirs[name.replace("left", "right")]) for name in gates)
    assert not any(torch.equal(ours[name], theirs[name.replace("left", "ink")]) for name in gates)


def test_inherited_gates_route_as_the_related_task(first: tuple[Path, RunSpec, RunSpec]) -> None:
    root, spec, second = first
    trained, method = load_run(root / spec.run_id, allow=["tests"]).method, _method(second).eval()
    warm_start.begin(method, second, root, _method)
    image = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    new, related, other = (
        m.network(image, [task]).statistics["experts"]
        for m, task in ((method, "left"), (trained, "right"), (trained, "ink"))
    )
    assert new.keys() == related.keys() and new
    assert all(torch.equal(new[name].probability, related[name].probability) for name in new)
    assert not any(torch.equal(new[name].probability, other[name].probability) for name in new)


@pytest.mark.parametrize("freeze", [False, True])
def test_it_trains_from_there(first: tuple[Path, RunSpec, RunSpec], freeze: bool, tmp_path: Path) -> None:
    root, spec, second = first
    second = replace(second, start={**(second.start or {}), "freeze": freeze})
    folder = RunFolder(root, second.run_id)
    assert folder.claim(second) and run.train(second, folder)
    result = folder.result() or {}
    assert set(result["validation"]) == set(result["scores"]) == {"left"}
    begun, ended = _method(second), load_run(folder.path, allow=["tests"]).method
    warm_start.begin(begun, second, root, _method)
    moved = {
        n for n, p in begun.network.named_parameters() if not torch.equal(p, dict(ended.network.named_parameters())[n])
    }
    routers = {n for n in dict(begun.network.named_parameters()) if ".router." in n}
    assert moved - routers and routers and (moved & routers == set()) == freeze
    (row,) = [
        json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines() if '"loss/left"' in line
    ][:1]
    assert "loss/right" not in row


def test_what_does_not_fit_is_refused(first: tuple[Path, RunSpec, RunSpec]) -> None:
    root, _, second = first
    begin = partial(warm_start.begin, build=_method)
    for changes, message in (({"run": "absent"}, "absent: todo"), ({"hash": "0"}, "another run of that name")):
        other = replace(second, start={**(second.start or {}), **changes})
        with pytest.raises(StoreError, match=message):
            begin(_method(other), other, root)
    wide = replace(second, model={**second.model, "decoder_channels": 16})
    with pytest.raises(MethodError, match=r"the same network in both runs.*neck"):
        begin(_method(wide), wide, root)


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
    assert (mine / "trainings").read_text().split() == ["right+ink", "left", "left"]
    assert mtlbench(mine, "run", *words, "scenario.examples=[4, 8]").code == 0
    assert (mine / "trainings").read_text().split() == ["right+ink", *["left"] * 4]
    assert mtlbench(mine, "run", *words, "scenario.examples=[4, 8]").code == 0
    assert len((mine / "trainings").read_text().split()) == 5, "all done"
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
        ("kind: unseen_task, task: left, related: [right], lr: -1", ["lr must be above 0"]),
        ("kind: unseen_task, task: left, related: [right], scratch: [unifrom]", ["'unifrom'", "mean 'uniform'"]),
        ("kind: unseen_task, task: left, related: [right], freeze_routers: 3", ["must be true or false"]),
        ("kind: unrelated_task, task: ink, labels: [shufled]", ["'shufled'", "Did you mean 'shuffled'"]),
    ],
)  # fmt: skip
def test_mistakes_are_told(mine: Path, scenario: str, facts: list[str]) -> None:
    answer = mtlbench(mine, "bench", "mine.yaml", f"scenario={{{scenario}}}", "--dry")
    assert answer.code == 2 and all(fact in answer.text for fact in facts), answer.text


def test_several_related_tasks_need_a_split_to_choose_on(mine: Path) -> None:
    answer = mtlbench(mine, "bench", "mine.yaml", UNSEEN, "data.module=data_modules.digits:Digits", "--dry")
    assert answer.code == 2 and "chosen on the validation split, which this data reports" in answer.text


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
    assert set(scenarios.shipped()) == {"low_resource", "unrelated_task", "unseen_task"}
    assert all(scenarios.shipped().values())


def test_the_old_key_is_refused_with_the_new_one(mine: Path) -> None:
    answer = mtlbench(mine, "bench", "mine.yaml", "study.kind=low_resource", "--dry")
    assert answer.code == 2 and "study was renamed to scenario. Write scenario.kind instead." in answer.text
