"""Equal tuning: one budget for every row, a choice on validation alone, and a search that survives being killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench import registry
from mtlbench import suite as suites
from mtlbench.errors import MtlbenchError, SuiteError
from mtlbench.registry import PerTask
from mtlbench.report import load, write
from mtlbench.runs.spec import RunSpec
from mtlbench.study import search
from mtlbench.study.resolve import Local, resolve
from mtlbench.study.search_space import Space, space_of
from tests.support.command_line import mtlbench
from tests.support.searched import BEST_LR, DATA, distance, rows_of, searched, study_of, trials_of

DIGITS = suites.load("digits", [])
STEPS, WARMUP, EVALUATED = DIGITS.trainer.steps, DIGITS.optimiser.warmup, DIGITS.trainer.evaluate_every
SHORT = round(STEPS / 3)


@pytest.fixture(autouse=True, scope="module")
def untrained() -> Iterator[None]:
    """Runs of this file are never trained, so that nothing is there to be checked, and no bench waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlbench.bench.scheduler.check_run", lambda spec: None)
        patch.setattr("mtlbench.bench.scheduler.time.sleep", lambda seconds: None)
        yield


@pytest.fixture(scope="module")
def whole(untrained: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Gives the results of a search that nothing interrupted, which tests only read, and its executor."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, searched(folder, study_of(), by_rate)


def by_rate(spec: RunSpec) -> float:
    return 0.3 - 0.1 * distance(spec)


def trained(executor: Any) -> set[str]:
    return {spec.run_id for spec in executor.started}


def test_every_row_has_as_many_trials_and_the_best_one_is_chosen(whole: tuple[Path, Any]) -> None:
    folder, _ = whole
    labels = ("single_task", "uniform", "dwa", "tuned_weights")
    assert {row["label"] for row in (r for label in labels for r in rows_of(folder, label))} == set(labels)
    for label in labels:
        first, second = rows_of(folder, label)
        assert first["trials"] == second["trials"] and first["record"]["search"] == second["record"]["search"]
        found = trials_of(folder, label)
        assert [trial["number"] for trial in found] == list(range(6)) and not any(t["failed"] for t in found)
        best = min(found, key=lambda trial: abs(distance_of(trial["values"]["lr"])))
        assert rows_of(folder, label)[0]["record"]["search"]["chosen"] == best["number"]
        assert best["score"] == max(trial["score"] for trial in found)


def distance_of(rate: float) -> float:
    import math

    return math.log10(rate / BEST_LR)


def test_the_chosen_values_train_the_seeds_of_the_table(whole: tuple[Path, Any]) -> None:
    folder, executor = whole
    for label in ("single_task", "dwa"):
        for row in rows_of(folder, label):
            values = row["record"]["search"]["values"]
            served = [spec for spec in executor.started if spec.run_id in row["serving"].values()]
            assert len(served) == len(set(row["serving"].values())), "the runs of one configuration, for all tasks"
            for spec in served:
                assert spec.seed == row["seed"] and spec.optimiser["lr"] == values["lr"]
                assert spec.optimiser["weight_decay"] == values["weight_decay"]
            if label == "dwa":
                assert served[0].method["arguments"]["temperature"] == values["dwa.temperature"]
    assert {spec.seed for spec in executor.started} == {0, 1, 100}
    assert [len(row["runs"]) for row in rows_of(folder, "floor")] == [1, 1], "the floor has nothing to tune"


def test_trial_0_has_the_declared_values(whole: tuple[Path, Any]) -> None:
    folder, executor = whole
    asked = [DATA, "methods=[dwa, uniform]", "seeds=[100]", "floor=false"]
    for spec in resolve(suites.load("digits", asked), Local(), []).members:
        (run,) = trials_of(folder, spec.label)[0]["runs"]
        assert run == spec.run_id and run in trained(executor)
    assert trials_of(folder, "dwa")[0]["values"] == {"lr": 0.004, "weight_decay": 0.01, "dwa.temperature": 2.0}
    assert trials_of(folder, "uniform")[0]["score"] == 0


@pytest.mark.parametrize("limit", [1, 9, 30])
def test_a_search_that_was_killed_repeats_nothing(whole: tuple[Path, Any], tmp_path: Path, limit: int) -> None:
    folder, executor = whole
    first = searched(tmp_path, study_of(), by_rate, limit=limit)
    assert len(first.started) == limit
    lost = {run for run in trained(first) if not (tmp_path / run / "result.json").exists()}
    second = searched(tmp_path, study_of(), by_rate)
    assert trained(first) | trained(second) == trained(executor)
    assert trained(first) & trained(second) == lost
    for label in ("single_task", "dwa", "tuned_weights"):
        assert rows_of(tmp_path, label) == rows_of(folder, label)


def test_a_longer_search_begins_with_the_trials_of_a_shorter_one(tmp_path: Path) -> None:
    searched(tmp_path, study_of("search.trials=4"), by_rate)
    short = trials_of(tmp_path, "dwa")
    searched(tmp_path, study_of("search.trials=8"), by_rate)
    assert trials_of(tmp_path, "dwa")[:4] == short
    values = [tuple(trial["values"].values()) for trial in trials_of(tmp_path, "dwa")]
    assert len(set(values)) == 8


def test_no_test_score_is_read_by_the_choice(whole: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = whole
    searched(tmp_path / "tested", study_of(), by_rate, test=lambda spec: 10 * distance(spec))
    for label in ("single_task", "dwa", "tuned_weights"):
        found, other = (rows_of(place, label) for place in (folder, tmp_path / "tested"))
        assert [row["record"] for row in found] == [row["record"] for row in other]
    searched(tmp_path / "other", study_of(), lambda spec: -by_rate(spec))
    assert rows_of(tmp_path / "other", "dwa")[0]["record"] != rows_of(folder, "dwa")[0]["record"]


def test_the_score_is_the_mean_gain_over_the_reference_with_the_same_seed(tmp_path: Path) -> None:
    """Uniform scores 1.2 at seed 100 and 0.8 at seed 101; dwa always a tenth more than that, in either direction."""

    def score(spec: RunSpec) -> float:
        base = 0.2 if spec.seed == 100 else -0.2
        if spec.method["name"] == "dwa":
            base += 0.1
        return base

    study = study_of(
        "search.seeds=[100, 101]", "search.trials=2", "tasks={left: {}, ink: {}}", methods="[uniform, dwa]"
    )
    searched(tmp_path, study, score)
    up, down = [], []
    for base in (0.2, -0.2):
        up.append(100 * 0.1 / (1 + base))
        down.append(100 * 0.1 / (1 - base))
    protocols = {task: about["protocols"][0] for task, about in study.record["tasks"].items() if about["in_delta_m"]}
    per_seed = [
        sum(up[seed] if p["higher_is_better"] else down[seed] for p in protocols.values()) / len(protocols)
        for seed in (0, 1)
    ]
    assert trials_of(tmp_path, "dwa")[0]["score"] == pytest.approx(sum(per_seed) / 2)
    assert trials_of(tmp_path, "uniform")[1]["score"] == pytest.approx(0)


def test_single_task_is_a_reference_too(tmp_path: Path) -> None:
    searched(tmp_path, study_of("search.metric=gain_over_single_task", methods="[single_task, uniform]"), by_rate)
    assert trials_of(tmp_path, "single_task")[0]["score"] == 0
    first = trials_of(tmp_path, "single_task")[1]
    assert len(first["runs"]) == 5, "one learning rate for the runs of all tasks"


def test_failed_trials_are_told_and_end_no_row(tmp_path: Path) -> None:
    high = 0.004
    executor = searched(tmp_path, study_of(), by_rate, fails=lambda spec: spec.optimiser["lr"] > high)
    found = trials_of(tmp_path, "dwa")
    failed = [trial for trial in found if trial["failed"]]
    assert failed and all(t["values"]["lr"] > high and t["score"] is None for t in failed)
    assert {t["failed"] for t in failed} == {"DivergedError: the loss became NaN"}
    (row, _) = rows_of(tmp_path, "dwa")
    assert row["serving"] and row["record"]["search"]["values"]["lr"] <= high
    again = searched(tmp_path, study_of(), by_rate)
    assert not again.started, "a failed trial is an outcome, which is not tried again"
    board = load(tmp_path)[1]
    assert not board.problems and all(row.delta for row in board.rows)  # type: ignore[union-attr]
    mended = searched(tmp_path, study_of(), by_rate, retry=True)
    assert trained(mended) & {run for trial in failed for run in trial["runs"]}
    assert not any(trial["failed"] for trial in trials_of(tmp_path, "dwa"))
    assert trained(executor)


def test_a_search_without_any_score_ends_its_row_alone(tmp_path: Path) -> None:
    searched(tmp_path, study_of(), by_rate, fails=lambda spec: spec.method["name"] == "dwa")
    (row, _) = rows_of(tmp_path, "dwa")
    assert not row["serving"] and "All 6 trials of dwa failed; the first one: DivergedError" in row["error"]
    assert rows_of(tmp_path, "tuned_weights")[0]["serving"]


@pytest.mark.parametrize(
    ("score", "words"), [(lambda spec: -1.0, "divides by the validation score of uniform, which is 0 for left")]
)
def test_a_reference_of_zero_is_refused(tmp_path: Path, score: Any, words: str) -> None:
    searched(tmp_path, study_of(methods="[uniform]"), score)
    assert words in rows_of(tmp_path, "uniform")[0]["error"]


def test_the_reference_must_not_fail(tmp_path: Path) -> None:
    searched(tmp_path, study_of(methods="[dwa]"), by_rate, fails=lambda spec: spec.method["name"] == "uniform")
    assert "needs uniform at its defaults. Its run with seed 100 failed" in rows_of(tmp_path, "dwa")[0]["error"]


def test_halving_trains_all_trials_for_a_third_and_a_third_of_them_in_full(tmp_path: Path) -> None:
    executor = searched(tmp_path, study_of("search.halving=true", "search.trials=9", methods="[uniform]"), by_rate)
    found = trials_of(tmp_path, "uniform")
    short, full = [t for t in found if t["steps"] == SHORT], [t for t in found if t["steps"] == STEPS]
    assert len(short) == 9 and len(full) in (3, 4) and full[0]["number"] == 0
    best = sorted(short, key=lambda trial: -trial["score"])[:3]
    assert {t["number"] for t in full} == {0, *(t["number"] for t in best)}
    runs = [spec for spec in executor.started if spec.trainer["steps"] == SHORT]
    shortened = {(s.optimiser["warmup"], s.trainer["evaluate_every"]) for s in runs}
    assert shortened == {(WARMUP // 3, min(EVALUATED, SHORT))}
    assert rows_of(tmp_path, "uniform")[0]["record"]["search"]["chosen"] == best[0]["number"]


def test_trials_of_a_batch_do_not_depend_on_each_other(tmp_path: Path) -> None:
    """All of a batch are asked for before any result, whatever the number of runs at once."""
    executor = searched(tmp_path, study_of("search.batch=3", methods="[uniform]"), by_rate, limit=1)
    stages = rows_of(tmp_path, "uniform")[0]["stages"]
    assert len(executor.started) == 1 and len(stages) == 1 and len(stages[0]) == 3


# ---- the mandatory row ---------------------------------------------------------------------------------------------


def labels(study: Any) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in study.record["rows"] if row["label"] != "floor"))


def test_a_tuned_table_has_a_row_of_tuned_weights() -> None:
    assert labels(study_of(methods="[uniform]")) == ["uniform", "tuned_weights"]
    assert labels(study_of(methods="[uniform, {name: fixed, label: mine}]")) == ["uniform", "mine"]
    given = "[uniform, {name: fixed, label: mine, weights: [1, 2, 3, 4, 5]}]"
    assert labels(study_of(methods=given)) == ["uniform", "mine", "tuned_weights"]
    with pytest.raises(SuiteError, match="Another entry of methods has this label"):
        study_of(methods="[{name: dwa, label: tuned_weights}]")
    assert labels(resolve(suites.load("digits", ["methods=[uniform]"]), Local(), [])) == ["uniform"]


@pytest.mark.parametrize("over", ["[lr]", "[method]"])
def test_weights_are_searched_log_uniformly_and_sum_to_the_number_of_tasks(tmp_path: Path, over: str) -> None:
    executor = searched(tmp_path, study_of(f"search.over={over}", methods="[uniform]"), by_rate)
    runs = [spec for spec in executor.started if spec.label == "tuned_weights" and spec.seed == 100]
    weights = [spec.method["arguments"]["weights"] for spec in runs]
    assert weights.count(None) == 1 and len(weights) == 6, "trial 0 has weights of one"
    for found in filter(None, weights):
        assert len(found) == 5 and sum(found) == pytest.approx(5) and max(found) / min(found) < 64
    assert len({tuple(w) for w in weights if w}) == 5


# ---- the space -----------------------------------------------------------------------------------------------------


def spec_of(name: str, **arguments: Any) -> RunSpec:
    optimiser = {"lr": 0.01, "weight_decay": 0.1}
    return RunSpec("digits", name, 0, registry.record(name, **arguments), {"a": {}, "b": {}}, {}, {}, optimiser, {})


@pytest.mark.parametrize("name", registry.names())
def test_what_methods_declare_is_what_they_take(name: str) -> None:
    cls: Any = registry.find(name)
    known = registry.arguments_of(cls)
    assert set(cls.SEARCH) <= set(known)
    for key, space in cls.SEARCH.items():
        assert isinstance(space, PerTask) or isinstance(space, list) and len(space) > 1
        values = [[1.0, 2.0]] if isinstance(space, PerTask) else space
        for value in values:
            registry.check_arguments(name, cls, {key: value})
            if not hasattr(cls, "plan"):  # A balancer, which can be made at once.
                cls(**{key: value})


def test_the_space_of_a_row() -> None:
    space = space_of(spec_of("dwa"), ["lr", "method"], [])
    assert {name: str(d) for name, d in space.dimensions.items()} == {
        "lr": "log-uniform in [0.001, 0.1]",
        "dwa.temperature": "2.0 | 1.0 | 5.0",
    }
    assert space_of(spec_of("dwa"), ["method"], ["method.temperature"]) == Space({})
    assert list(space_of(spec_of("dwa"), ["weight_decay"], []).dimensions) == ["weight_decay"]
    assert list(space_of(spec_of("fixed"), ["lr"], []).dimensions) == ["lr", "fixed.weights[a]", "fixed.weights[b]"]
    own = space_of(spec_of("dwa", temperature=3.0), ["method"], [])
    assert own.dimensions["dwa.temperature"].choices == (3.0, 2.0, 1.0, 5.0) or own.dimensions[
        "dwa.temperature"
    ].choices == (3.0, 1.0, 2.0, 5.0)


def test_a_balancer_on_a_network_has_its_own_dimensions() -> None:
    spec = spec_of("mmoe")
    spec = RunSpec(**{**vars(spec), "method": {**spec.method, "balancer": registry.record("cagrad")}})
    space = space_of(spec, ["method"], [])
    assert set(space.dimensions) == {"mmoe.experts", "cagrad.c"}
    changed = space.applied(spec, {"mmoe.experts": 8, "cagrad.c": 0.8}, 1)
    assert changed.method["arguments"]["experts"] == 8 and changed.method["balancer"]["arguments"]["c"] == 0.8
    assert changed.label == spec.label and changed.method["path"] == "mmoe"
    assert space.applied(spec, {"mmoe.experts": 8, "cagrad.c": 0.8}, 0) is spec


def test_an_argument_that_the_suite_gives_is_left_alone(tmp_path: Path) -> None:
    executor = searched(tmp_path, study_of(methods="[{name: dwa, temperature: 3.0}]"), by_rate)
    assert {s.method["arguments"]["temperature"] for s in executor.started if s.label == "dwa"} == {3.0}


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search.trials=0"], "search.trials must be at least 1, found 0"),
        (["search.seeds=[7]"], "search.trials must be at least 1, found 0"),
        (["search.trials=2", "search.seeds=[1, 7]", "seeds=[0, 1]"], "Of search.seeds, 1 are also in seeds"),
        (["search.trials=2", "confirm=[100, 5]", "named=[a, b]"], "Of search.seeds, 100 are also in seeds or confirm"),
        (["search.trials=2", "search.over=[lr, momentun]"], "Unknown part of search.over 'momentun'"),
        (["search.trials=2", "search.over=[]"], "search.over must name at least one of method, lr, weight_decay"),
        (["search.trials=2", "search.metric=accuracy"], "Unknown metric of a search 'accuracy'"),
        (["search.trials=2", "search.seeds=[]"], "search.seeds must be distinct and at least one"),
        (["search.trials=2", "optimiser.weight_decay=0"], "searched on a logarithmic scale"),
        (["search.trials=2", "scenario={kind: low_resource}"], "a scenario has several conditions"),
        (["search=carefully"], "search must be none, or a mapping with trials. Found carefully"),
        (["search.trails=2"], "Did you mean 'trials'"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(SuiteError, match=words.replace("[", r"\[")):
        suites.load("digits", overrides)


@pytest.mark.parametrize("text", ["none", "'none: every method runs with its declared defaults'", "null"])
def test_no_search_can_be_written_as_before(text: str) -> None:
    assert suites.load("digits", ["search.trials=3", f"search={text}"]).search.trials == 0


def test_data_without_a_validation_split_is_refused(tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", "digits", "--trials", "2", "--dry")
    assert answer.code == 2 and "reports val. Use data with a test split" in answer.text, answer.text


def test_without_optuna_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MtlbenchError, match=r"pip install 'mtlbench\[tuning\]'"):
        study_of()


# ---- what the report shows -----------------------------------------------------------------------------------------


def test_what_the_report_shows(tmp_path: Path) -> None:
    study = study_of()
    searched(tmp_path, study, by_rate)
    board: Any = load(tmp_path)[1]
    rules = dict(board.rules)["Tuning"]
    for words in ("6 trials per row", "lr log-uniform", "over uniform", "validation", "with seeds 100", "batches of 4"):
        assert words in rules
    rows = {row.label: row.cost.values for row in board.rows}
    assert rows["dwa"]["search_seconds"] == 6 * STEPS and rows["dwa"]["train_seconds"] == STEPS
    assert rows["single_task"]["search_seconds"] == 6 * 5 * STEPS and rows["single_task"]["train_seconds"] == 5 * STEPS
    texts = {path.name: path.read_text() for path in write(tmp_path)}
    best = rows_of(tmp_path, "dwa")[0]["record"]["search"]["values"]["lr"]
    assert "## Equal tuning" in texts["leaderboard.md"] and f"lr {best:g}" in texts["leaderboard.md"]
    assert "Trials of the search by method" in texts["report.html"] and "search_seconds" in texts["leaderboard.csv"]
    assert all(trial["runs"][0] not in texts["leaderboard.csv"] for trial in trials_of(tmp_path, "dwa"))
    assert '"chosen"' in texts["tuning.json"]


def test_an_untuned_table_says_so(tmp_path: Path) -> None:
    study = resolve(suites.load("digits", [DATA, "methods=[uniform]"]), Local(), [])
    searched(tmp_path, study, by_rate)
    board: Any = load(tmp_path)[1]
    assert dict(board.rules)["Tuning"] == "none: methods ran with their declared defaults; no tuning"
    assert "Equal tuning" not in next(p for p in write(tmp_path) if p.suffix == ".md").read_text()
