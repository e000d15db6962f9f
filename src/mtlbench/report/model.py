"""Plain records of the leaderboard, shared by every view (terminal, Markdown, CSV, LaTeX, HTML, W&B)."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from mtlbench.report.groups import Grouping
from mtlbench.report.statistics import Difference, Estimate
from mtlbench.report.transfer import Transfer
from mtlbench.report.tuning import Tuning


@dataclass(frozen=True)
class Column:
    """One metric of one task.

    Attributes:
        task: Task.
        protocol: Id and version of the metric, ``name@version``.
        higher_is_better: Direction.
        unit: Unit, ``""`` for a share.
        primary: Whether it is the metric of its task in the table.
        in_delta_m: Whether it enters Δm.
        best: The best value that can be reached.
    """

    task: str
    protocol: str
    higher_is_better: bool
    unit: str = ""
    primary: bool = True
    in_delta_m: bool = True
    best: float = 1.0

    @property
    def key(self) -> tuple[str, str]:
        """Key of this column's scores."""
        return self.task, self.protocol

    @property
    def arrow(self) -> str:
        """Arrow that points in the better direction."""
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True)
class PairedTime:
    """Seconds per step relative to a reference, measured by ``mtlbench cost``.

    Attributes:
        ratio: Geometric mean over pairs.
        low, high: Its 95 % interval; ``None`` for one pair.
        pairs: Number of pairs.
        reference: Row that is 1.
    """

    ratio: float
    low: float | None
    high: float | None
    pairs: int
    reference: str


@dataclass(frozen=True)
class Cost:
    """Costs of one seed of a row, averaged over seeds.

    Attributes:
        values: Values by key of `mtlbench.report.columns.COSTS`; ``None`` if unknown.
        runs: Number of runs that serve the tasks.
        devices: Where it was measured, for example ``"cpu"``.
        paired: Time relative to the reference, ``None`` if it was not measured.
    """

    values: dict[str, float | None]
    runs: int
    devices: str
    paired: PairedTime | None = None


@dataclass(frozen=True)
class Row:
    """One row of the leaderboard: a label of the suite.

    Attributes:
        label: Name in the table.
        method: Method behind it.
        seeds: Seeds with every cell present.
        planned: Seeds that the suite asks for.
        cells: Score per (task, protocol), over the seeds that have it.
        deltas: Δm per seed; empty where it is blank.
        delta: Its summary, ``None`` where it is blank.
        gains: Relative gain over single-task per task, in per cent, higher is better, paired by seed.
        cost: Costs, ``None`` while no run of the row is done.
        hint: Why Δm or the rank is blank, ``""`` otherwise.
        rank: Place by mean Δm; ties within noise share one.
        scores: Score per (task, protocol) and seed.
        margin: Δm minus that of the row which the leaderboard is read against, paired by seed; ``None`` for that row.
        floor: Whether it predicts without the image. Such a row is neither ranked nor compared.
        at_floor: (task, protocol) of the scores that are not better than the floor.
        gaps: Share of the gap between the floor and the best value that is closed, per task, in per cent.
        gap: Mean over the tasks that enter Δm, ``None`` where it is blank.
        unfounded: Whether Δm refers to a baseline that is not better than the floor in some task.
    """

    label: str
    method: str
    seeds: tuple[int, ...]
    planned: tuple[int, ...]
    cells: dict[tuple[str, str], Estimate]
    deltas: dict[int, float] = field(default_factory=dict)
    delta: Estimate | None = None
    gains: dict[str, Difference] = field(default_factory=dict)
    cost: Cost | None = None
    hint: str = ""
    rank: int | None = None
    scores: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    margin: Difference | None = None
    floor: bool = False
    at_floor: frozenset[tuple[str, str]] = frozenset()
    gaps: dict[str, Estimate] = field(default_factory=dict)
    gap: Estimate | None = None
    unfounded: bool = False


@dataclass(frozen=True)
class Resolution:
    """Which differences in Δm a study can show.

    Attributes:
        reference: Row whose paired differences were used.
        std: Standard deviation of a paired difference, pooled over rows, in points of Δm.
        n: Number of seeds.
        detectable: Smallest true difference that becomes significant with a probability of 80 %.
        seeds: Number of seeds that would show one point; ``None`` above 100.
    """

    reference: str
    std: float
    n: int
    detectable: float
    seeds: int | None


@dataclass(frozen=True)
class Comparison:
    """Δm of one row minus Δm of a reference row, paired by seed.

    Attributes:
        label: Row.
        reference: Row it is compared with.
        difference: Difference in points of Δm.
        p_holm: p-value, corrected over all comparisons with this reference; ``None`` for one seed.
        named: Whether this is the pre-registered comparison. Its p-value is corrected for the number of looks alone.
        unfounded: Whether the row that it refers to is not better than the floor.
    """

    label: str
    reference: str
    difference: Difference
    p_holm: float | None
    named: bool = False
    unfounded: bool = False


@dataclass(frozen=True)
class NamedPair:
    """The comparison that a suite names, and how its p-value is to be read.

    Attributes:
        label: Row.
        reference: Row it is compared with.
        confirmatory: Whether it was named before any run existed; else it is one comparison among the others.
        about: When it was named, in words.
        looks: How often results of it were shown, this time included.
        seeds: Seeds set apart for it; empty if all seeds count.
    """

    label: str
    reference: str
    confirmatory: bool
    about: str
    looks: int = 1
    seeds: tuple[int, ...] = ()

    def adjusted(self, p: float | None) -> float | None:
        """Returns a p-value corrected for the number of looks.

        Look k may spend α / 2^k, so that all looks together spend at most α. Seeds set apart are looked at once.
        """
        return p if p is None or self.seeds else min(1.0, p * 2**self.looks)


@dataclass(frozen=True)
class Problem:
    """A run without a result, listed with the reason so that no crash goes unnoticed.

    Attributes:
        label: Row that it belongs to.
        seed: Seed.
        run: Run id, ``""`` when the runs are not planned yet.
        state: ``failed``, ``running``, ``stale`` or ``todo``.
        reason: What is known about it.
    """

    label: str
    seed: int
    run: str
    state: str
    reason: str


@dataclass(frozen=True)
class PublishedRow:
    """One line of a table of a paper or repository.

    Attributes:
        recipe: How its authors prepared images and labels; comparable runs use the same.
        method: Name, as its authors call it.
        backbone: Encoder, ``""`` where the source does not say.
        source: Where the numbers stand.
        values: Score by (task, protocol) with its printed digits, in the unit of that protocol: shares in [0, 1].
    """

    recipe: str
    method: str
    backbone: str
    source: str
    values: dict[tuple[str, str], Decimal]


@dataclass(frozen=True, kw_only=True)
class Board:
    """Fields that all tables of a study share.

    Attributes:
        suite: Name of the suite.
        title: One line about it.
        rules: What was compared and how, as (name, text); printed above the table.
        notes: How to read the table; printed below it.
        footnotes: Those of the notes that explain a mark in a cell.
        problems: Runs without a result.
    """

    suite: str
    title: str
    rules: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    footnotes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs without a result, failed and unfinished."""
        states = {(p.run or f"{p.label}-{p.seed}"): p.state for p in self.problems}
        failed = sum(state == "failed" for state in states.values())
        return {"failed": failed, "unfinished": len(states) - failed}


@dataclass(frozen=True, kw_only=True)
class Leaderboard(Board):
    """The comparison of one suite.

    Attributes:
        baseline: Row that Δm refers to.
        columns: All metrics; those with ``primary`` form the table.
        rows: Ranked rows first, best first.
        comparisons: Against the best row and against ``uniform``.
        groupings: Rows whose plan searched for groups of tasks.
        tunings: Searches of equal tuning, by row.
        published: Comparable results of others.
        against: Row that the intervals of Δm refer to.
        resolution: Which differences the study can show; ``None`` with fewer than two seeds or rows.
    """

    baseline: str
    against: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    groupings: tuple[Grouping, ...] = ()
    tunings: tuple[Tuning, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    resolution: Resolution | None = None

    @property
    def primary(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return tuple(c for c in self.columns if c.primary)


@dataclass(frozen=True)
class ConditionRow:
    """One label of a study that varies conditions.

    Attributes:
        label: Name in the table.
        method: Method behind it.
        planned: Seeds that the suite asks for.
        values: The studied quantity, by condition and seed.
        scores: All scores, by condition, metric and seed.
        cost: Costs of one seed and condition, ``None`` while none is done.
        floor: Whether it predicts without the image. Such a row is not compared.
        at_floor: Conditions whose cell is not better than the floor, or refers to a score that is not.
        gaps: Share of the gap between the floor and the best value that is closed, by condition, in per cent.
    """

    label: str
    method: str
    planned: tuple[int, ...]
    values: dict[str, dict[int, float]]
    scores: dict[str, dict[tuple[str, str], dict[int, float]]]
    cost: Cost | None = None
    floor: bool = False
    at_floor: frozenset[str] = frozenset()
    gaps: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ConditionBoard(Board):
    """Methods by conditions, see `mtlbench.study.scenarios`.

    Attributes:
        quantity: What a cell holds.
        digits: Decimals of a cell.
        signed: Whether cells are shown with a sign.
        conditions: Columns of the table.
        columns: All metrics.
        rows: In the order of the suite.
        reference: Row that the others are compared with.
        comparisons: By condition; differences in ``quantity``.
        transfer: Scores and statistics of the scenario `transfer`; None for another one.
    """

    quantity: str
    digits: int
    signed: bool
    conditions: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[ConditionRow, ...]
    reference: str
    comparisons: tuple[tuple[str, Comparison], ...] = ()
    transfer: Transfer | None = None
