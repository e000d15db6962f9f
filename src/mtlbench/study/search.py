"""Equal tuning: gives every row of a table the same number of trials, and chooses one of them by validation.

A search is a part of a plan. Its trials are ordinary runs in the store, on seeds that no table uses, so that a search
that was stopped replays to the same proposals and repeats nothing. Optuna proposes. Needs no torch.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from mtlbench import registry
from mtlbench.errors import MethodError, MtlbenchError, SuiteError
from mtlbench.metrics.relative import delta_m
from mtlbench.runs.plan import Case, Ending, MethodPlan, Plan, Result, Trials
from mtlbench.runs.spec import RunSpec
from mtlbench.study.search_space import DECADE, Space, space_of
from mtlbench.suite import SearchSection, Suite
from mtlbench.suite.search import METRICS, NONE

RUNG = 3
"""Successive halving trains all trials for 1 / RUNG of the steps, and 1 / RUNG of them in full."""

STARTUP = 4
"""Trials before Optuna's TPE sampler looks at scores. Too few searches would reach its own default, 10."""

Key = TypeVar("Key", bound=Hashable)
Served = dict[str, Result]
"""Result of the run that serves a task, by task."""


@dataclass
class Trial:
    """One configuration of a row.

    Attributes:
        number: Place in the search; 0 has the values that the suite and the method declare.
        values: What it changes, by name.
        spec: Its run, for any seed.
        score: Mean over tasks and seeds of the relative gain over the reference on validation, in per cent.
        failed: Why it has no score, ``""`` otherwise.
        steps: Steps that it was trained for.
        runs: All of its runs.
    """

    number: int
    values: dict[str, Any]
    spec: RunSpec
    score: float | None = None
    failed: str = ""
    steps: int = 0
    runs: list[str] = field(default_factory=list)

    def written(self) -> dict[str, Any]:
        """Returns the trial as plain values."""
        keys = ("number", "values", "score", "failed", "steps", "runs")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class Search:
    """The search of a study.

    Attributes:
        section: Section ``search`` of the suite.
        reference: Run of the method whose defaults the metric compares with, for any seed.
        scored: Tasks that enter the metric: those that enter Δm.
        given: Hyper-parameters that the search leaves alone, by label, see `space_of`.
    """

    section: SearchSection
    reference: RunSpec
    scored: tuple[str, ...]
    given: Mapping[str, Collection[str]]

    def case(self, spec: RunSpec) -> Case:
        """Returns the case of one row and seed: the search of the row, then the chosen configuration on this seed.

        Args:
            spec: The row's run with this seed, as the suite declares it.
        """
        space = space_of(spec, self.section.over, self.given.get(spec.label, ()))
        return Case(spec, plan=partial(self._plan, spec, space))

    def described(self) -> dict[str, Any]:
        """Returns what the report shows: the settings, and all of them in words."""
        section, method = self.section, METRICS[self.section.metric]
        space = [f"{key} log-uniform within a factor of {DECADE:g}" for key in section.over if key != "method"]
        space += ["each method's own SEARCH"] if "method" in section.over else []
        halved = f", all for 1/{RUNG} of the steps and the best 1/{RUNG} in full" if section.halving else ""
        text = (
            f"{section.trials} trials per row{halved}, over {', '.join(space)}, and weights per task of fixed; trial 0 "
            f"has the declared values. Chosen by the mean relative gain over {method} at its defaults, on validation, "
            f"with seeds {', '.join(map(str, section.seeds))}. Proposed by Optuna (TPE) in batches of {section.batch}"
        )
        return {"text": text, "reference": method, **asdict(section), "over": list(section.over)}

    def _plan(self, spec: RunSpec, space: Space, method_plan: MethodPlan) -> Plan:
        chosen, record = yield from self._choose(replace(spec, seed=0), space, method_plan)
        ending = Ending.of((yield from method_plan(replace(chosen, seed=spec.seed))))
        return Ending(ending.serving, {**ending.record, "search": record})

    def _choose(
        self, spec: RunSpec, space: Space, method_plan: MethodPlan
    ) -> Generator[Trials, list[Result], tuple[RunSpec, dict[str, Any]]]:
        """Runs all trials of a row; returns the chosen configuration and the record of the search."""
        section, shelf = self.section, dict[str, Result]()
        first = 1 / RUNG if section.halving else 1.0
        proposals, trials = _Proposals(spec, space), list[Trial]()
        while len(trials) < section.trials:
            values = proposals.ask(min(section.batch, section.trials - len(trials)))
            new = [Trial(len(trials) + i, v, space.applied(spec, v, i + len(trials))) for i, v in enumerate(values)]
            yield from self._rate(new, first, shelf, method_plan)
            proposals.tell(new)
            trials += new
        final = trials
        if section.halving:  # The declared values stay in, so that no choice is worse than they are on validation.
            ranked = sorted(trials, key=lambda trial: -math.inf if trial.score is None else trial.score, reverse=True)
            kept = sorted({0, *(t.number for t in ranked[: math.ceil(len(trials) / RUNG)] if t.score is not None)})
            final = [Trial(n, trials[n].values, trials[n].spec) for n in kept]
            yield from self._rate(final, 1.0, shelf, method_plan)
            trials = [*trials, *final]
        rated = [trial for trial in final if trial.score is not None]
        if not rated:
            raise MethodError(
                f"A search needs a trial with a score. All {len(final)} trials of {spec.label} failed; the first one: "
                f"{final[0].failed}"
            )
        best = max(rated, key=lambda trial: trial.score or 0.0)
        record = {"trials": [t.written() for t in trials], "chosen": best.number, "values": best.values}
        return best.spec, record

    def _rate(
        self, trials: Sequence[Trial], share: float, shelf: dict[str, Result], method_plan: MethodPlan
    ) -> Generator[Trials, list[Result], None]:
        """Trains trials beside each other for a share of their steps, and gives each its score."""
        seeds = self.section.seeds
        specs = {(-1, seed): _shortened(self.reference, share, seed) for seed in seeds}
        specs |= {(trial.number, seed): _shortened(trial.spec, share, seed) for trial in trials for seed in seeds}
        runs: dict[tuple[int, int], list[str]] = {}
        ended = yield from _together({key: method_plan(spec) for key, spec in specs.items()}, shelf, runs)
        base = {seed: self._validation(ended[-1, seed]) for seed in seeds}
        for seed, scores in base.items():
            self._check_reference(seed, scores)
        for trial in trials:
            trial.steps = specs[trial.number, seeds[0]].trainer["steps"]
            trial.runs = list(dict.fromkeys(run for seed in seeds for run in runs.get((trial.number, seed), ())))
            found = [self._validation(ended[trial.number, seed]) for seed in seeds]
            trial.failed = next((scores for scores in found if isinstance(scores, str)), "")
            if not trial.failed:
                gains = [self._gain(scores, base[seed]) for seed, scores in zip(seeds, found, strict=True)]
                trial.score = math.fsum(gains) / len(gains)

    def _validation(self, served: Served | str) -> dict[str, float] | str:
        """Returns the validation score of every task in the metric, or why there is none."""
        if isinstance(served, str):
            return served
        found = {}
        for task in self.scored:
            scores = (served[task].get("validation") or {}).get(task) or {}
            value = scores.get(self._protocol(task)["id"])
            if value is None or not math.isfinite(value):
                return f"no finite validation score of {task}"
            found[task] = float(value)
        return found

    def _gain(self, ours: Any, base: Any) -> float:
        return delta_m(ours, base, {task: self._protocol(task)["higher_is_better"] for task in self.scored})

    def _protocol(self, task: str) -> Mapping[str, Any]:
        return self.reference.tasks[task]["protocols"][0]

    def _check_reference(self, seed: int, scores: dict[str, float] | str) -> None:
        name = self.reference.label
        if isinstance(scores, str):
            raise MethodError(
                f"The metric of a search, {self.section.metric}, needs {name} at its defaults. Its run "
                f"with seed {seed} failed: {scores}"
            )
        if zero := [task for task, value in scores.items() if value == 0]:
            raise MethodError(
                f"The metric of a search, {self.section.metric}, divides by the validation score of {name}, which is 0 "
                f"for {', '.join(zero)} with seed {seed}. Train for more steps, or choose another search.metric."
            )


class _Proposals:
    """Optuna's TPE sampler, asked for several trials at once; the same questions get the same answers.

    Its seed depends on the suite, the method and all that decides their runs, but not on the number of trials: a
    longer search begins with the trials of a shorter one.
    """

    def __init__(self, spec: RunSpec, space: Space):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = int(spec.hash[:8], 16)
        with warnings.catch_warnings():  # Optuna 4 calls constant_liar experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # With constant_liar, the trials of a batch keep apart from each other.
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space = space
        self._asked: list[Any] = []
        self._study.enqueue_trial(space.declared)

    def ask(self, count: int) -> list[dict[str, Any]]:
        """Returns the values of the next trials."""
        self._asked = [self._study.ask(self._space.distributions()) for _ in range(count)]
        return [self._space.values(trial.params) for trial in self._asked]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes the scores of the trials that were asked for last."""
        from optuna.trial import TrialState

        for asked, trial in zip(self._asked, trials, strict=True):
            if trial.score is None:
                self._study.tell(asked, state=TrialState.FAIL)
            else:
                self._study.tell(asked, trial.score)


def search_of(
    suite: Suite,
    specs: Sequence[RunSpec],
    shared: Mapping[str, Any],
    tasks: Mapping[str, Any],
    given: Mapping[str, Collection[str]],
) -> Search | None:
    """Returns the search of a study; None if its suite has none.

    Args:
        suite: The suite.
        specs: Its runs; that of the reference is among them if the suite has this method with its own model.
        shared: The fields of a run that depend on neither method nor seed, with the suite's model.
        tasks: Tasks by name.
        given: Hyper-parameters that the search leaves alone, by label.

    Raises:
        SuiteError: If no task enters the metric.
    """
    section = suite.search
    if section.trials < 1:
        return None
    scored = tuple(name for name, task in tasks.items() if task.in_delta_m)
    if not scored:
        raise SuiteError(f"The metric of a search needs a task that enters Δm; none of {', '.join(tasks)} does. {NONE}")
    name = METRICS[section.metric]
    fresh = RunSpec(suite.name, name, 0, registry.record(name), **shared)
    # A budget may give the row other steps than the suite's.
    row = next((spec for spec in specs if spec.method == fresh.method and spec.model == fresh.model), fresh)
    return Search(section, row, scored, given)


def check(splits: Sequence[str], module: str) -> None:
    """Refuses a search that could not choose: without a validation split, or without Optuna.

    Raises:
        SuiteError: With what to do.
    """
    if splits[-1] == "val":
        raise SuiteError(
            f"A search chooses on the validation split and reports another. {module} has the splits "
            f"{', '.join(splits)}, and reports val. Use data with a test split, as "
            f"data_modules.digits:HeldOutDigits has beside Digits. {NONE}"
        )
    if importlib.util.find_spec("optuna") is None:
        raise SuiteError(
            "A search needs Optuna, which is not installed. Install it with: pip install 'mtlbench[tuning]' "
            "(in a clone: pip install -e '.[tuning]'), or write search: none."
        )


def _shortened(spec: RunSpec, share: float, seed: int) -> RunSpec:
    """Returns a run with a share of its steps; its warmup shortens with them."""
    trainer, optimiser = dict(spec.trainer), dict(spec.optimiser)
    if share < 1:
        steps = math.ceil(trainer["steps"] * share)
        optimiser["warmup"] = round(optimiser["warmup"] * steps / trainer["steps"])
        trainer |= {"steps": steps, "evaluate_every": min(trainer["evaluate_every"], steps)}
    return replace(spec, trainer=trainer, optimiser=optimiser, seed=seed)


def _together(
    plans: Mapping[Key, Plan], shelf: dict[str, Result], runs: dict[Key, list[str]]
) -> Generator[Trials, list[Result], dict[Key, Served | str]]:
    """Follows several plans side by side, and returns what each of them ended with: results by task, or a reason.

    Args:
        plans: Plans that have not begun.
        shelf: Results by run id, of earlier runs and, afterwards, of these; no run is asked for twice.
        runs: Takes the runs of every plan.
    """
    ended: dict[Key, Served | str] = {}
    waiting: dict[Key, list[RunSpec]] = {}

    def advance(key: Key, send: Callable[[], list[RunSpec]], *, begun: bool) -> None:
        waiting.pop(key, None)
        try:
            waiting[key] = send()
            runs.setdefault(key, []).extend(run.run_id for run in waiting[key])
        except StopIteration as end:
            ended[key] = {task: shelf[run] for task, run in Ending.of(end.value).serving.items()}
        except MtlbenchError as error:
            if not begun and not shelf:  # Nothing was trained yet, so the suite is at fault.
                raise
            ended[key] = str(error)

    for key, plan in plans.items():
        advance(key, partial(next, plan), begun=False)
    while waiting:
        new = {run.run_id: run for asked in waiting.values() for run in asked if run.run_id not in shelf}
        if new:
            results = yield Trials(new.values())
            shelf |= dict(zip(new, results, strict=True))
        for key, asked in list(waiting.items()):
            found = [shelf[run.run_id] for run in asked]
            errors = [result["error"] or {} for result in found if "error" in result]
            if errors:
                plans[key].close()
                del waiting[key]
                ended[key] = f"{errors[0].get('type', 'Error')}: {errors[0].get('message', '')}"
            else:
                advance(key, partial(plans[key].send, found), begun=True)
    return ended
