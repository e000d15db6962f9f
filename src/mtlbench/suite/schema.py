"""Schema of a suite file: its sections, keys, defaults and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

FORMAT = 1

YOUNGER = ("upsampling", "encoder_rate")
"""Keys that came after runs had been stored. They are part of a run's identity only where they are not the default."""


@dataclass(frozen=True)
class Range:
    """Range of a number of a suite, or of every number of a list.

    Attributes:
        low, high: Bounds, both inclusive; infinity is never allowed.
        above: Whether ``low`` itself is excluded.
    """

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high and value < math.inf

    def __str__(self) -> str:
        low = f"above {self.low:,g}" if self.above else f"at least {self.low:,g}"
        return f"{low} and finite" if self.high == math.inf else f"{low} and at most {self.high:,.0f}"


COUNT = Range(1, 10**9)
PERIOD = Range(0, 10**9)


def ranged(default: Any, allowed: Range) -> Any:
    """Returns a field with a default and the values that it may have."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"range": allowed})
    return field(default=default, metadata={"range": allowed})


@dataclass
class DataSection:
    """Where data comes from: class, folder (``DATA=``), options of the class."""

    module: str = MISSING
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskSection:
    """Changes to a task of the data module: its loss scale, and whether it may be absent."""

    scale: float | None = ranged(None, Range(0, above=True))
    optional: bool = False


def takes_images(encoder: str) -> bool:
    """Returns whether ``model.encoder`` names an encoder of images: one of timm's, with or without its family."""
    family, colon, _ = encoder.rpartition(":")
    return not colon or family == "timm"


@dataclass
class ModelSection:
    """The network: any timm encoder, pretrained weights (``timm``, ``mtlbench:<name>``, a file, or null), decoder.

    ``encoder``: timm's name, or ``family:name`` for other inputs than images, for example ``mlp:residual``.
    ``image_size``: height and width of images; other families have none.
    ``upsampling``: how dense predictions get to the size of the image, ``bilinear`` or ``learned``.
    """

    encoder: str = "resnet18"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    decoder_channels: int = ranged(64, Range(1, 65536))
    image_size: list[int] = ranged([], Range(1, 16384))
    upsampling: str = "bilinear"


@dataclass
class OptimiserSection:
    """Optimiser and schedule; rates per optimiser step.

    ``encoder_rate``: learning rate of the encoder as a share of ``lr``, for pretrained weights. Experts keep ``lr``.
    """

    name: str = "adamw"
    lr: float = ranged(1e-3, Range(0, above=True))
    weight_decay: float = ranged(1e-4, Range(0))
    momentum: float = ranged(0.9, Range(0, 1))
    schedule: str = "cosine"
    warmup: int = ranged(0, PERIOD)
    power: float = ranged(0.9, Range(0))
    encoder_rate: float = ranged(1.0, Range(0))


@dataclass
class BudgetSection:
    """What rows have in common: ``steps``, or the ``flops`` or ``seconds`` of training of a reference row.

    ``of``: label or method whose training for ``trainer.steps`` is the budget of every row.
    """

    unit: str = "steps"
    of: str = "uniform"


@dataclass
class TrainerSection:
    """Length, effective batch over all devices, precision, clipping (0 = off) and periods in steps (0 = never).

    ``budget``: whether rows are compared at equal steps or at equal training compute.
    ``surgery``: how gradient rules keep them, ``auto``, ``plain`` or ``light`` (see docs/balancers.md).
    ``compile``: backend of torch.compile for the network, for example ``inductor``; empty for none.
    ``gradient_checkpointing``: whether the encoder's activations are recomputed in the backward pass, to save memory.
    ``strategy``: what several devices of a run hold, copies of the network (``ddp``) or shards of it (``fsdp``).
    """

    steps: int = ranged(MISSING, COUNT)
    batch_size: int = ranged(8, Range(1, 10**6))
    accumulate: int = ranged(1, Range(1, 10**6))
    precision: str = "32-true"
    clip: float = ranged(0.0, Range(0))
    evaluate_every: int = ranged(0, PERIOD)
    checkpoint_every: int = ranged(50, PERIOD)
    log_every: int = ranged(10, PERIOD)
    diagnose_every: int = ranged(25, PERIOD)
    workers: int = ranged(0, Range(0, 1024))
    examples: int = ranged(4, Range(0, 10**4))
    surgery: str = "auto"
    compile: str = ""
    gradient_checkpointing: bool = False
    strategy: str = "ddp"
    budget: BudgetSection = field(default_factory=BudgetSection)


@dataclass
class SearchSection:
    """Equal tuning of every row: trials per row, what they change, and how one of them is chosen.

    ``trials``: per row; 0 for no search. ``over``: what the trials change. ``metric``: mean relative gain on the
    validation split over a reference at its defaults. ``seeds``: seeds of the trials, which no table uses. ``batch``:
    trials that are proposed at once, before any of them has a score. ``halving``: train all trials for a third of the
    steps, and only the best third of them in full.
    """

    trials: int = ranged(0, Range(0, 10**5))
    over: list[str] = field(default_factory=lambda: ["method", "lr", "weight_decay"])
    metric: str = "gain_over_uniform"
    seeds: list[int] = field(default_factory=lambda: [100], metadata={"range": Range(0, 2**32 - 1)})
    batch: int = ranged(4, COUNT)
    halving: bool = False


@dataclass
class Suite:
    """A suite file. Unknown keys are faults."""

    name: str = MISSING
    version: int = ranged(MISSING, PERIOD)
    title: str = ""
    format: int = FORMAT
    data: DataSection = field(default_factory=DataSection)
    tasks: dict[str, TaskSection] = field(default_factory=dict)
    model: ModelSection = field(default_factory=ModelSection)
    optimiser: OptimiserSection = field(default_factory=OptimiserSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    methods: list[Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"range": Range(0, 2**32 - 1)})
    baseline: str = "single_task"
    # Whether the study has a row of what can be predicted without the image. It changes no other run.
    floor: bool = True
    selection: str = "last"
    protocol: str = "delta_m@1"
    # Two labels of methods: the pre-registered comparison. The store keeps when it was named.
    named: list[str] = field(default_factory=list)
    # Further seeds for the named comparison alone, hidden in every report until all of their runs are done.
    confirm: list[int] = field(default_factory=list, metadata={"range": Range(0, 2**32 - 1)})
    # What varies besides method and seed: ``kind``, a file of `mtlbench.study.scenarios`, and its options.
    scenario: dict[str, Any] = field(default_factory=dict)
    # Equal tuning; ``none`` (or no trials) for none.
    search: SearchSection = field(default_factory=SearchSection)


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


_types_of = cache(get_type_hints)  # Evaluating a section's annotations takes longer than reading one of its values.


def type_of(section: Any, key: str) -> str | None:
    """Returns the type of a key in plain words; None if the schema does not define it.

    Args:
        section: The dataclass of a section.
        key: A key of it.
    """
    kind = _types_of(section).get(key) if isinstance(section, type) and is_dataclass(section) else None
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    if type(None) in get_args(kind):
        kind = choices[0]
    return _NAMES.get(get_origin(kind) or kind)
