"""Task mixing: how often each of several streams is drawn. A draw depends on seed and step alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from mtlbench.errors import DivergedError, SuiteError, unknown_name
from mtlbench.seeding import seed_of

History = Sequence[Sequence[Any]]
"""What a rule's `Mixing.follows` names, of each stream at each measurement so far."""


@dataclass(frozen=True)
class Mixing(ABC):
    """A rule for the probabilities of S streams."""

    follows: ClassVar[str] = ""
    """``"scores"``: validation scores from 0 to 1 = perfect; ``"gradients"``: see `Gradient`; ``"heads"``: see
    `Active`; or nothing."""

    @abstractmethod
    def probabilities(self, sizes: Sequence[int], progress: float, history: History = ()) -> np.ndarray:
        """Returns (S,) probabilities that sum to 1.

        Args:
            sizes: Training samples of each stream, > 0.
            progress: Share of the run that is over, 0..1.
            history: What the rule follows, S entries for each evaluation so far.
        """


@dataclass(frozen=True)
class Uniform(Mixing):
    """Every stream equally often."""

    def probabilities(self, sizes: Sequence[int], progress: float, history: History = ()) -> np.ndarray:
        """Returns 1 / S for every stream."""
        return np.full(len(sizes), 1 / len(sizes))


@dataclass(frozen=True)
class Temperature(Mixing):
    """p_i ∝ n_i^(1/τ): proportional to the sizes n_i for τ = 1, and closer to uniform the higher τ is.

    Attributes:
        temperature: τ at the start, >= 1.
        end: τ at the end, which is reached linearly; 0 for the same.
    """

    temperature: float = 2.0
    end: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.temperature, self.end or 1.0):
            if not 1 <= value < float("inf"):
                raise SuiteError(f"A temperature of mixing is at least 1 and finite. Found {value}. 1 is proportional.")

    def probabilities(self, sizes: Sequence[int], progress: float, history: History = ()) -> np.ndarray:
        """Returns n_i^(1/τ), divided by their sum."""
        now = self.temperature + progress * ((self.end or self.temperature) - self.temperature)
        weights = np.asarray(sizes, dtype=np.float64) ** (1 / now)
        return weights / weights.sum()


@dataclass(frozen=True)
class Proportional(Temperature):
    """Every sample equally often: p_i ∝ n_i."""

    temperature: float = 1.0


@dataclass(frozen=True)
class Score(Mixing):
    """Streams with a low validation score more often (the weighted sampling of MultiRavens, arXiv:2109.07578).

    q_i ∝ max(1 − score_i, ε)^τ, and each evaluation moves p to β p + (1 − β) ((1 − γ) q + γ / S), from a uniform start.
    The paper does not state its rule; this one and its defaults are a choice of mtlbench.

    Attributes:
        power: τ >= 0.
        uniform: γ, 0..1.
        least: ε > 0, so that a solved stream is still drawn.
        smooth: β, 0 <= β < 1.
    """

    follows: ClassVar[str] = "scores"
    power: float = 1.0
    uniform: float = 0.1
    least: float = 0.05
    smooth: float = 0.5

    def __post_init__(self) -> None:
        ranges = 0 <= self.power < float("inf"), 0 <= self.uniform <= 1, 0 < self.least <= 1, 0 <= self.smooth < 1
        if not all(ranges):
            raise SuiteError(
                "Mixing by score has power >= 0, uniform in 0..1, least above 0 and at most 1, and 0 <= smooth < 1. "
                f"Found power={self.power}, uniform={self.uniform}, least={self.least}, smooth={self.smooth}."
            )

    def probabilities(self, sizes: Sequence[int], progress: float, history: History = ()) -> np.ndarray:
        """Returns p after all evaluations so far."""
        p = even = np.full(len(sizes), 1 / len(sizes))
        for scores in history:
            weights = np.maximum(1 - np.asarray(scores, dtype=np.float64), self.least) ** self.power
            mixed = (1 - self.uniform) * weights / weights.sum() + self.uniform * even
            p = self.smooth * p + (1 - self.smooth) * mixed
        return p


@dataclass(frozen=True)
class Gradient(Mixing):
    """Streams with a large gradient and little noise more often (after PiKE, https://arxiv.org/abs/2502.06244, 2025).

    Each evaluation multiplies w_i by exp(ζ₁ ‖∇L_i‖² − ζ₂ σ_i²), from equal w, and p = (1 − γ) w / Σ w + γ / S. L_i is
    the loss of stream i, and σ_i² the variance of the gradient of one of its samples, both over shared parameters. Of
    the paper, only the abstract could be verified: the rule, its estimates, and the defaults are a choice of mtlbench.

    Attributes:
        size: ζ₁ >= 0.
        noise: ζ₂ >= 0.
        uniform: γ, 0..1, so that every stream is still drawn.
    """

    follows: ClassVar[str] = "gradients"
    size: float = 0.1
    noise: float = 0.05
    uniform: float = 0.1

    def __post_init__(self) -> None:
        if not (0 <= self.size < float("inf") and 0 <= self.noise < float("inf") and 0 <= self.uniform <= 1):
            raise SuiteError(
                "Mixing by gradient has size >= 0, noise >= 0, and uniform in 0..1. Found "
                f"size={self.size}, noise={self.noise}, uniform={self.uniform}."
            )

    def probabilities(self, sizes: Sequence[int], progress: float, history: History = ()) -> np.ndarray:
        """Returns p after all evaluations so far; entries of ``history`` are (‖∇L_i‖², σ_i²)."""
        found = np.asarray(history, dtype=np.float64).reshape(-1, len(sizes), 2).sum(0)
        exponents = self.size * found[:, 0] - self.noise * found[:, 1]
        weights = np.exp(exponents - exponents.max())
        return (1 - self.uniform) * weights / weights.sum() + self.uniform / len(sizes)


@dataclass(frozen=True)
class Active(Mixing):
    """Streams whose tasks explain a target task more often (active multi-task learning, arXiv:2202.00911).

    The columns of W are linear heads w_m of the source tasks, and w_T is that of the target. ν = W⁺ w_T is the smallest
    combination of source heads that gives w_T, or comes closest. With r_i = Σ ν_m² over the tasks of stream i,
    p_i = (1 − 1/S) ((1 − γ) r_i / Σ r + γ / (S − 1)). The stream of the target keeps its 1/S, so that it is drawn as
    often as under uniform mixing. Rounds grow by the factor β. The first one is uniform; ν is measured between rounds.

    The paper trains heads on all samples drawn so far, and the target apart. Here all streams are trained together, and
    w_m are ridge regressions on pooled features, see `mtlbench.training.linear_heads`; they exist for any kind of task.

    Attributes:
        target: The target task; the other tasks of its stream are neither target nor source.
        uniform: γ, 0..1, so that every source is still drawn.
        rounds: Number of rounds, 1..1000.
        growth: β >= 1.
        samples: Training samples of each stream on which a head is measured, a whole number >= 2.
    """

    follows: ClassVar[str] = "heads"
    target: str = ""
    uniform: float = 0.1
    rounds: int = 4
    growth: float = 2.0
    samples: int = 128

    def __post_init__(self) -> None:
        whole = isinstance(self.rounds, int) and isinstance(self.samples, int)
        ranges = 0 <= self.uniform <= 1, 1 <= self.rounds <= 1000, 1 <= self.growth < float("inf"), self.samples >= 2
        if not (whole and all(ranges)):
            raise SuiteError(
                "Mixing by active has uniform in 0..1, growth >= 1, whole rounds in 1..1000, and whole samples >= 2. "
                f"Found uniform={self.uniform}, growth={self.growth}, rounds={self.rounds}, samples={self.samples}."
            )

    def check(self, streams: Mapping[str, Collection[str]]) -> None:
        """Checks that there are a target and sources.

        Args:
            streams: Tasks by stream.

        Raises:
            SuiteError: No stream has the target, or no other stream has a task.
        """
        tasks = [task for found in streams.values() for task in found]
        if self.target not in tasks:
            raise SuiteError("target of mixing by active: " + unknown_name("task of the streams", self.target, tasks))
        if not any(found for found in streams.values() if self.target not in found):
            raise SuiteError(
                f"Mixing by active draws source tasks for its target, from streams without it. {self.target} is in the "
                "only stream with tasks. Give it a stream of its own with `tasks`."
            )

    def finished(self, progress: float) -> int:
        """Returns how many rounds are over, of those after which heads are measured: all but the last.

        Args:
            progress: Share of the run that is over, 0..1.
        """
        lengths = np.power(float(self.growth), np.arange(1.0 - self.rounds, 1.0))  # The last one is 1.
        ends = np.cumsum(lengths)
        return int((ends[:-1] / ends[-1] <= progress + 1e-9).sum())

    def explained(self, owner: Mapping[str, str], heads: Mapping[str, Sequence[float]]) -> list[float | None]:
        """Returns the r of every stream, in order; None for that of the target.

        Args:
            owner: Stream by task.
            heads: Head by task.
        """
        aim = owner[self.target]
        sources = [task for task in owner if owner[task] != aim]
        squares = relevance([heads[task] for task in sources], heads[self.target]) ** 2
        found = dict.fromkeys(owner.values(), 0.0)
        for task, value in zip(sources, squares, strict=True):
            found[owner[task]] += float(value)
        return [None if name == aim else value for name, value in found.items()]

    def probabilities(self, sizes: Sequence[int], progress: float, history: History = ()) -> np.ndarray:
        """Returns p after the last round that is over; entries of ``history`` are those of `explained`."""
        count = len(sizes)
        found = np.full(count, 1 / count)
        if not history:
            return found
        sources = [index for index, value in enumerate(history[-1]) if value is not None]
        weights = np.array([history[-1][index] for index in sources], dtype=np.float64)
        shares = weights / weights.sum() if weights.sum() > 0 else np.full(len(sources), 1 / len(sources))
        found[sources] = (1 - 1 / count) * ((1 - self.uniform) * shares + self.uniform / len(sources))
        return found


def relevance(heads: Sequence[Sequence[float]], target: Sequence[float]) -> np.ndarray:
    """Returns ν (M,), the coefficients of least norm with which heads give the target's head, or come closest to it.

    Args:
        heads: M heads of F numbers each, M >= 1.
        target: F numbers.

    Raises:
        SuiteError: A head has another length than the target's.
        DivergedError: A number is not finite.
    """
    sizes = {len(target), *map(len, heads)}
    if len(sizes) > 1:
        raise SuiteError(
            f"Heads are combined to one of the target's length, {len(target)}. Found lengths {sorted(sizes)}. Measure "
            "all heads on one representation."
        )
    columns, wanted = np.asarray(heads, dtype=np.float64).T, np.asarray(target, dtype=np.float64)
    if not (np.isfinite(columns).all() and np.isfinite(wanted).all()):
        raise DivergedError(
            "The heads of tasks are finite. Found NaN or infinity: the training diverged. Lower the lr."
        )
    return np.linalg.lstsq(columns, wanted, rcond=1e-6)[0]


RULES: Mapping[str, type[Mixing]] = {
    "uniform": Uniform,
    "proportional": Proportional,
    "temperature": Temperature,
    "score": Score,
    "gradient": Gradient,
    "active": Active,
}
"""Rules by the name that a suite gives them."""


def read_mixing(given: Any) -> Mixing:
    """Returns the rule that a suite names.

    Args:
        given: A name of `RULES`, or a mapping with ``rule`` and its options.

    Raises:
        SuiteError: The rule or an option is unknown or out of range.
    """
    options = {"rule": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = options.pop("rule", None)
    if name not in RULES:
        raise SuiteError(unknown_name("rule of mixing", str(name), RULES))
    known = {} if name == "proportional" else {field.name: field for field in fields(RULES[name])}
    for key, value in options.items():
        if key not in known:
            raise SuiteError(unknown_name(f"option of mixing by {name}", str(key), known))
        text = known[key].type == "str"
        if isinstance(value, bool) or not isinstance(value, str if text else int | float):
            raise SuiteError(f"{key} of mixing by {name} is {'text' if text else 'a number'}. Found {value!r}.")
    return RULES[name](**options)


def draw(probabilities: np.ndarray, seed: int, step: int, count: int) -> list[int]:
    """Returns the streams that a step draws: ``count`` indices, the same on every rank."""
    generator = np.random.default_rng(seed_of("mixing", seed, step))
    return [int(index) for index in generator.choice(len(probabilities), size=count, p=probabilities)]
