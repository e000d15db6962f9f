"""Evolution of paths: which children a task gets, and which of them is kept. Trains nothing itself."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtlbench import registry
from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks.paths import ADAPTER, HEAD
from mtlbench.runs.plan import Ending, Plan, Result
from mtlbench.runs.spec import RunSpec
from mtlbench.seeding import seed_of

RANGES: Mapping[str, tuple[Any, ...]] = {
    "lr": (0.2, 0.5, 1.0, 2.0, 5.0),
    "weight_decay": (0.1, 0.3, 1.0, 3.0, 10.0),
    "warmup": (0.0, 0.02, 0.05, 0.1, 0.2),
    "schedule": ("constant", "poly", "cosine"),
    "mutation": (0.02, 0.05, 0.1, 0.2, 0.4),
}
"""Hyper-parameters that mutate: rate and decay are factors of the suite's values, warm-up is a share of the steps."""

DRAWS = 20
"""How often a child that would repeat a run is redrawn."""


@dataclass(frozen=True)
class Genes:
    """What distinguishes a child from its parent.

    Attributes:
        trained: Components that it copies from its parent and trains; all others are shared as they are.
        adapters: Stages with an adapter, inherited ones included.
        hyper: Its hyper-parameters, see `RANGES`.
    """

    trained: tuple[str, ...]
    adapters: tuple[int, ...]
    hyper: Mapping[str, Any]


@dataclass(frozen=True)
class Path:
    """A path of components, and the run that created it by training some of them.

    Attributes:
        run: The run; None for the initial weights.
        genes: See `Genes`.
        owners: The run that trained a component last, by component; "" for the initial weights.
        sizes: Parameters of the components.
        value: Validation score, with its sign turned where lower is better.
    """

    run: RunSpec | None
    genes: Genes
    owners: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    value: float = -math.inf

    @property
    def parts(self) -> dict[tuple[str, str], int]:
        """Parameters of the components by owner and name; a component that two paths share has the same key in both."""
        return {(owner, name): self.sizes[name] for name, owner in self.owners.items()}


def penalised(value: float, share: float, base: float) -> float:
    """Returns a score that falls with the parameters that a path needs.

    Args:
        value: Quality; higher is better.
        share: Parameters that are accounted to the path, as a share of a whole network.
        base: Factor on the quality for a share of 1, in (0, 1].

    Example:
        >>> round(penalised(0.8, 0.5, 0.95), 4)
        0.7797
        >>> round(penalised(-0.8, 0.5, 0.95), 4)  # An error of 0.8.
        -0.8208
    """
    # A negative quality is the negative of an error, which the penalty must increase.
    return value * base**share if value >= 0 else value / base**share


def accounted(path: Path, others: Sequence[Path]) -> float:
    """Returns the parameters of a path, each divided by the number of paths that use it.

    Args:
        path: The path.
        others: The paths of other tasks.
    """
    return sum(size / (1 + sum(part in other.parts for other in others)) for part, size in path.parts.items())


def chosen_parent(rng: random.Random, ranked: Sequence[Path], seeds: list[Path], children: Mapping[int, int]) -> Path:
    """Returns the parent of the next child.

    The task's own paths are offered first, the best one first, then those of other tasks in turn. A path is accepted
    with probability 0.5 ^ (its children for this task so far); if none is, one is drawn uniformly.

    Args:
        rng: Source of draws.
        ranked: The task's own paths, best first.
        seeds: Paths of other tasks; a path that was offered moves to the end.
        children: Number of children for this task by ``id`` of the path.
    """
    for path in ranked:
        if rng.random() < 0.5 ** children.get(id(path), 0):
            return path
    for _ in range(len(seeds)):
        path = seeds.pop(0)
        seeds.append(path)
        if rng.random() < 0.5 ** children.get(id(path), 0):
            return path
    return rng.choice([*ranked, *seeds])


def neighbour(rng: random.Random, ordered: Sequence[Any], value: Any) -> Any:
    """Returns one of the two values next to a value, or the only one at an end."""
    at = ordered.index(value)
    return ordered[rng.choice([i for i in (at - 1, at + 1) if 0 <= i < len(ordered)])]


@dataclass
class Evolution:
    """The introduction of one task after another.

    Attributes:
        spec: The run that the suite names.
        order: Tasks in the order of their introduction.
        layout: Components of a path without adapters, and the number of stages that an adapter can follow.
        children: Children per generation.
        generations: Generations per task.
        share: Share of the suite's steps that a child is trained for.
        base: See `penalised`.
        width: Width of adapters.
        root: The initial weights.
        best: The path of every task so far.
    """

    spec: RunSpec
    order: Sequence[str]
    layout: tuple[Sequence[str], int]
    children: int
    generations: int
    share: float
    base: float
    width: int
    root: Path
    best: dict[str, Path] = field(default_factory=dict)
    _lineage: list[dict[str, Any]] = field(default_factory=list)
    _growth: list[dict[str, Any]] = field(default_factory=list)
    _note: str = ""

    @classmethod
    def of(cls, spec: RunSpec, layout: Callable[[], tuple[Sequence[str], int]], **arguments: Any) -> Evolution:
        """Returns the evolution that a suite's entry describes.

        Args:
            spec: The run that the suite names.
            layout: Returns the field of that name.
            arguments: The method's hyper-parameters.

        Raises:
            MethodError: If the order is no order of the tasks, or a balancer was named.
        """
        order = _checked_order(arguments["order"], list(spec.tasks))
        if spec.method.get("balancer"):
            rule = spec.method["balancer"]["name"]
            raise MethodError(f"mu2net trains one task at a time, so there is nothing to balance. Drop {rule}.")
        names, stages = layout()
        optimiser = spec.optimiser
        hyper = {
            "lr": 1.0,
            "weight_decay": 1.0,
            "warmup": optimiser["warmup"] / spec.trainer["steps"],
            "schedule": optimiser["schedule"],
            "mutation": arguments["mutation"],
        }
        root = Path(None, Genes(tuple(names), (), hyper), dict.fromkeys(names, ""))
        keys = ("children", "generations", "share", "base", "width")
        return cls(spec, order, (names, stages), root=root, **{key: arguments[key] for key in keys})

    def plan(self) -> Plan:
        """Yields the generations of every task; returns the path that serves each task, and the lineage."""
        for task in self.order:
            yield from self._introduce(task)
            stored = {part: size for path in self.best.values() for part, size in path.parts.items()}
            self._growth.append({"task": task, "parameters": sum(stored.values())})
        serving = {task: path.run.run_id for task, path in self.best.items() if path.run}
        for entry in self._lineage:
            entry["kept"] = serving[entry["task"]] == entry["run"]
        whole = sum(size for name, size in self._any().sizes.items() if not name.startswith(ADAPTER))
        record = {"kind": "evolution", "lineage": self._lineage, "growth": self._growth, "whole": whole}
        return Ending(serving, {**record, "note": self._note})

    def _any(self) -> Path:
        return next(iter(self.best.values()))

    def _introduce(self, task: str) -> Generator[list[RunSpec], list[Result], None]:
        """Trains the generations of one task and keeps its best path."""
        others, rng = list(self.best.values()), random.Random(seed_of("mu2net", self.spec.seed, task))
        seeds = rng.sample(others, len(others)) or [self.root]
        population: list[Path] = []
        counts: dict[int, int] = {}
        known: set[str] = set()
        for generation in range(self.generations):
            ranked = sorted(population, key=lambda path: self._score(path, others), reverse=True)
            drafts = list(self._drafts(rng, task, ranked, seeds, counts, known))
            if not drafts:
                break
            results = yield [run for _, _, run in drafts]
            for (parent, genes, run), result in zip(drafts, results, strict=True):
                path = self._grown(task, parent, genes, run, result)
                population.append(path)
                self._lineage.append(self._entry(task, generation, parent, path, self._score(path, others)))
        self.best[task] = max(population, key=lambda path: self._score(path, others))

    def _drafts(
        self,
        rng: random.Random,
        task: str,
        ranked: Sequence[Path],
        seeds: list[Path],
        counts: dict[int, int],
        known: set[str],
    ) -> Iterator[tuple[Path, Genes, RunSpec]]:
        """Yields the children of a generation: parent, genes and run. A child that repeats a run is drawn again."""
        for _ in range(self.children):
            for _ in range(DRAWS):
                parent = chosen_parent(rng, ranked, seeds, counts)
                genes = self.mutated(rng, parent)
                run = self.child(task, parent, genes)
                if run.run_id not in known:
                    known.add(run.run_id)
                    counts[id(parent)] = counts.get(id(parent), 0) + 1
                    yield parent, genes, run
                    break

    def mutated(self, rng: random.Random, parent: Path) -> Genes:
        """Returns the genes of a child: each component is copied and each hyper-parameter moved with probability μ.

        Random initial weights are of no use as they are, so all of them are copied.
        """
        hyper, (_, stages) = parent.genes.hyper, self.layout
        rate = hyper["mutation"]
        blank = parent.run is None and self.spec.model.get("weights") == "random"
        trained = [name for name in parent.owners if name != HEAD and (rng.random() < rate or blank)]
        new = [s for s in range(stages) if s not in parent.genes.adapters and rng.random() < rate]
        moved = {
            key: neighbour(rng, self._range(key), value) if rng.random() < rate else value
            for key, value in hyper.items()
        }
        adapters = tuple(sorted((*parent.genes.adapters, *new)))
        return Genes((*trained, *(f"{ADAPTER}{stage}" for stage in new)), adapters, moved)

    def _range(self, key: str) -> Sequence[Any]:
        """Returns the values of a hyper-parameter in order, with the declared one among them."""
        declared = self.root.genes.hyper[key]
        return RANGES[key] if declared in RANGES[key] else sorted({*RANGES[key], declared})

    def child(self, task: str, parent: Path, genes: Genes) -> RunSpec:
        """Returns the run that trains a child."""
        spec, hyper = self.spec, genes.hyper
        steps = max(1, round(self.share * spec.trainer["steps"]))
        optimiser = {
            **spec.optimiser,
            **{key: spec.optimiser[key] * hyper[key] for key in ("lr", "weight_decay")},
            "warmup": round(hyper["warmup"] * steps),
            "schedule": hyper["schedule"],
        }
        own = {"trained": list(genes.trained), "adapters": list(genes.adapters), "width": self.width}
        run = replace(
            spec.with_tasks(task),
            method=registry.record(spec.method["path"], **own),
            optimiser=optimiser,
            trainer={**spec.trainer, "steps": steps, "evaluate_every": min(spec.trainer["evaluate_every"], steps)},
        )
        return run.with_sources(parent=parent.run) if parent.run else run

    def _grown(self, task: str, parent: Path, genes: Genes, run: RunSpec, result: Result) -> Path:
        """Returns the path of a child that was trained."""
        sizes = result["summary"]["components"]
        owners = {n: run.run_id if n in genes.trained or n == HEAD else parent.owners[n] for n in sizes}
        scores = result["validation"]
        if not scores:
            scores, self._note = result["scores"], "The data has no further split: chosen by the reported scores."
        metric = run.tasks[task]["protocols"][0]
        value = scores[task].get(metric["id"])
        known = value is not None and math.isfinite(value)
        return Path(
            run, genes, owners, sizes, (1 if metric["higher_is_better"] else -1) * value if known else -math.inf
        )

    def _score(self, path: Path, others: Sequence[Path]) -> float:
        whole = sum(size for name, size in path.sizes.items() if not name.startswith(ADAPTER))
        return penalised(path.value, accounted(path, others) / whole, self.base)

    def _entry(self, task: str, generation: int, parent: Path, path: Path, score: float) -> dict[str, Any]:
        """Returns a line of the lineage as plain values; a value that is not finite is None."""
        return {
            "run": path.run.run_id if path.run else "",
            "parent": parent.run.run_id if parent.run else "",
            "task": task,
            "generation": generation,
            "trained": list(path.genes.trained),
            "adapters": list(path.genes.adapters),
            "hyper": dict(path.genes.hyper),
            "value": path.value if math.isfinite(path.value) else None,
            "score": score if math.isfinite(score) else None,
        }


def _checked_order(order: Any, tasks: Sequence[str]) -> list[str]:
    """Returns the order of the tasks; that of the suite if none is given."""
    for name in order:
        if name not in tasks:
            raise MethodError("mu2net: order: " + unknown_name("task", str(name), tasks))
    if order and sorted(order) != sorted(tasks):
        raise MethodError(
            f"mu2net: order names every task once, or is empty for the order of the suite. Found {', '.join(order)} "
            f"of {', '.join(tasks)}."
        )
    return list(order or tasks)
