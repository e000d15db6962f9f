"""Rows at equal training compute: steps that follow from FLOPs or measured seconds, and what stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlbench import suite as suites
from mtlbench.errors import MethodError, SuiteError
from mtlbench.runs.store import read_json
from mtlbench.study import costs
from mtlbench.study import resolve as studies
from mtlbench.training import pace
from tests.support.command_line import mtlbench, write_suite

SUITE = """\
name: mine
version: 1
data:
  module: data_modules.digits:Digits
  options: {train: 40, val: 12}
tasks: {left: {}, right: {}, ink: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [24, 32]
  decoder_channels: 8
optimiser: {warmup: 10}
trainer: {steps: 40, batch_size: 4, log_every: 1, examples: 0, diagnose_every: 3}
methods: [uniform, single_task, pcgrad, kd_mtl, inter_task_affinity]
"""
FLOPS = "trainer.budget.unit=flops"
SECONDS = "trainer.budget.unit=seconds"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    write_suite(tmp_path, "mine", SUITE)
    return tmp_path


def resolved(folder: Path, *overrides: str) -> studies.Study:
    local = studies.Local(results=str(folder / "results" / "mine"))
    return studies.resolve(suites.load(str(folder / "mine.yaml"), overrides), local, list(overrides))


def steps_of(study: studies.Study) -> dict[str, int]:
    return {spec.label: spec.trainer["steps"] for spec in study.specs}


def test_equal_steps_leave_no_trace_in_the_identity(mine: Path) -> None:
    plain, said = resolved(mine), resolved(mine, "trainer.budget.unit=steps", "trainer.budget.of=pcgrad")
    assert [spec.run_id for spec in plain.specs] == [spec.run_id for spec in said.specs]
    assert "budget" not in plain.specs[0].trainer and "budget" not in plain.record
    assert set(steps_of(plain).values()) == {40}


def test_rows_of_equal_flops_train_for_as_many(mine: Path) -> None:
    """The training FLOPs of whole rows, as their runs counted them: single tasks, teachers, surgery and probes."""
    study = resolved(mine, FLOPS)
    assert steps_of(study)["uniform"] == 40 and study.record["budget"]["steps"] == steps_of(study)
    totals: dict[str, float] = {}
    for label in ("uniform", "single_task", "pcgrad", "kd_mtl", "inter_task_affinity"):
        answer = mtlbench(mine, "run", "mine.yaml", "--method", label, FLOPS)
        assert answer.code == 0, answer.text
        (row,) = (read_json(mine / "results" / "mine" / "study.json") or {})["rows"]
        found = [read_json(mine / "results" / "mine" / run / "result.json") or {} for run in row["runs"]]
        assert {result["steps"] for result in found} == {steps_of(study)[label]}
        totals[label] = sum(result["cost"]["training_flops"] for result in found)
    for label, steps in steps_of(study).items():
        step = 3 if label == "inter_task_affinity" else 1  # It measures in some steps, which cost more.
        assert totals[label] == pytest.approx(totals["uniform"], rel=0.51 * step / steps), label
    assert steps_of(study)["kd_mtl"] < steps_of(study)["single_task"] < 40


def test_what_a_row_prepares_is_paid_for(mine: Path) -> None:
    """`disparse` scores weights on as many batches as it may, each at the cost of more than a step of `uniform`."""
    few, many = (resolved(mine, f"methods=[uniform,{{name: disparse, batches: {n}}}]", FLOPS) for n in (1, 10))
    uniform, disparse = many.specs
    own, budget = pace.training_flops(disparse), pace.training_flops(uniform)
    assert own == pytest.approx(budget, abs=0.51 * pace.phase_flops(disparse)["losses"])
    assert disparse.trainer["steps"] < steps_of(few)["disparse"] - 9 < 40


def test_a_budget_that_a_preparation_exceeds_is_refused(mine: Path) -> None:
    with pytest.raises(SuiteError, match="gives every row the FLOPs of uniform.*One step of rcm takes.*fewer batches"):
        resolved(mine, "methods=[uniform,{name: rcm, label: rcm}]", "trainer.steps=1", "optimiser.warmup=0", FLOPS)


def test_a_row_that_prepares_is_counted_where_it_was_measured(mine: Path) -> None:
    words = "methods=[uniform,{name: disparse, batches: 1}]"
    counted = steps_of(resolved(mine, words, FLOPS))
    uniform, disparse = resolved(mine, words).specs
    root = mine / "results" / "mine"
    root.mkdir(parents=True)
    costs.store(root, "mine", {"disparse": entry(disparse, uniform, prepares=True)})
    assert steps_of(resolved(mine, words, FLOPS)) == counted


def test_the_reference_is_the_run_that_it_is_at_equal_steps(mine: Path) -> None:
    plain = {spec.label: spec for spec in resolved(mine, "methods=[uniform,pcgrad]").specs}
    equal = {spec.label: spec for spec in resolved(mine, "methods=[uniform,pcgrad]", FLOPS).specs}
    assert equal["uniform"].run_id == plain["uniform"].run_id and equal["pcgrad"].run_id != plain["pcgrad"].run_id
    share = equal["pcgrad"].trainer["steps"] / 40
    assert equal["pcgrad"].optimiser["warmup"] == round(10 * share) < 10
    assert {k: v for k, v in equal["pcgrad"].trainer.items() if k != "steps"} == {
        k: v for k, v in plain["pcgrad"].trainer.items() if k != "steps"
    }


def entry(spec: Any, other: Any, **changes: Any) -> dict[str, Any]:
    numbers = {"ratio": 2.0, "low": 1.9, "high": 2.1, "seconds_ratio": 2.5, "flops_ratio": 4.0, "pairs": 3}
    return {"key": costs.key_of(spec, other), "reference": "uniform", "created": "today", **numbers, **changes}


def test_seconds_are_those_that_were_measured(mine: Path) -> None:
    words = ("methods=[uniform,pcgrad]", SECONDS)
    with pytest.raises(SuiteError, match=r"Not measured yet: pcgrad\. .*mtlbench cost mine"):
        resolved(mine, *words)
    uniform, pcgrad = resolved(mine, words[0]).specs
    root = mine / "results" / "mine"
    root.mkdir(parents=True)
    local = studies.Local(results=str(root))
    keys = []
    for ratio in (2.5, 1.6):
        costs.store(root, "mine", {"pcgrad": entry(pcgrad, uniform, seconds_ratio=ratio)})
        assert steps_of(resolved(mine, *words)) == {"uniform": 40, "pcgrad": round(40 / ratio)}
        keys.append(studies.key_of(suites.load(str(mine / "mine.yaml"), words), local))
    assert keys[0] != keys[1], "a study that was recalled would show the steps of an earlier measurement"
    costs.store(root, "mine", {"pcgrad": entry(pcgrad, uniform, key="of other hyper-parameters")})
    with pytest.raises(SuiteError, match="Not measured yet: pcgrad"):
        resolved(mine, *words)


def test_measured_flops_are_used_where_they_are(mine: Path) -> None:
    uniform, pcgrad = resolved(mine, "methods=[uniform,pcgrad]").specs
    root = mine / "results" / "mine"
    root.mkdir(parents=True)
    costs.store(root, "mine", {"pcgrad": entry(pcgrad, uniform)})
    assert steps_of(resolved(mine, "methods=[uniform,pcgrad]", FLOPS))["pcgrad"] == 10


@pytest.mark.parametrize("changes", [{"ratio": "much"}, {"flops_ratio": 0}, {"low": "x"}, {"reference": None}])
def test_damaged_entries_do_not_count(mine: Path, changes: dict[str, Any]) -> None:
    uniform, pcgrad = resolved(mine, "methods=[uniform,pcgrad]").specs
    costs.store(mine, "mine", {"good": entry(pcgrad, uniform), "bad": entry(pcgrad, uniform, **changes)})
    assert list(costs.read(mine)) == ["good"]


def test_a_key_knows_what_changes_costs(mine: Path) -> None:
    def key(*words: str) -> str:
        uniform, pcgrad = resolved(mine, "methods=[uniform,pcgrad]", *words).specs[:2]
        return costs.key_of(pcgrad, uniform)

    assert key() == key("trainer.steps=7", "optimiser.lr=0.1", "seeds=[4]") != key("trainer.batch_size=8")
    other = [key(f"methods=[uniform,{{name: cagrad, c: {c}}}]") for c in (0.3, 0.4)]
    assert len({key(), *other}) == 3
    assert len({key(), key("model.decoder_channels=16"), key("data.options.train=44")}) == 3


def test_rows_whose_runs_depend_on_results_are_refused(mine: Path) -> None:
    with pytest.raises(MethodError, match="hoa: The runs of the row must be known beforehand"):
        resolved(mine, "methods=[uniform,hoa]", FLOPS)


@pytest.mark.parametrize(("word", "message"), [
    ("trainer.budget.unit=flop", "flop"), ("trainer.budget.of=uniformm", "uniform"),
    ("trainer.budget.units=flops", "units"), ("trainer.budget=flops", "trainer.budget"),
])  # fmt: skip
def test_faults_name_their_key(mine: Path, word: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        resolved(mine, word)
