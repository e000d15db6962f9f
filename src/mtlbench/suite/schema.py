"""What a suite file may say: its sections, keys and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

FORMAT = 1


@dataclass
class DataSection:
    """Where data comes from: class, folder (``DATA=``), options of the class."""

    module: str = MISSING
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskSection:
    """Changes to a task of the data module: its loss scale, and whether it may be absent."""

    scale: float | None = None
    optional: bool = False


@dataclass
class ModelSection:
    """The network: any timm encoder, pretrained weights (``timm``, a file, or null), decoder width."""

    encoder: str = "resnet18"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    decoder_channels: int = 64
    image_size: list[int] = MISSING


@dataclass
class OptimiserSection:
    """Optimiser and schedule; rates per optimiser step."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: int = 0
    power: float = 0.9


@dataclass
class TrainerSection:
    """Length, effective batch over all devices, precision, clipping (0 = off) and periods in steps (0 = never).

    ``surgery``: how rules on gradients keep them, ``auto``, ``plain`` or ``light`` (see docs/balancers.md).
    ``compile``: backend of torch.compile for the network, for example ``inductor``; empty for none.
    """

    steps: int = MISSING
    batch_size: int = 8
    accumulate: int = 1
    precision: str = "32-true"
    clip: float = 0.0
    evaluate_every: int = 0
    checkpoint_every: int = 50
    log_every: int = 10
    diagnose_every: int = 25
    workers: int = 0
    examples: int = 4
    surgery: str = "auto"
    compile: str = ""


@dataclass
class Suite:
    """A suite file. Unknown keys are faults."""

    name: str = MISSING
    version: int = MISSING
    title: str = ""
    format: int = FORMAT
    data: DataSection = field(default_factory=DataSection)
    tasks: dict[str, TaskSection] = field(default_factory=dict)
    model: ModelSection = field(default_factory=ModelSection)
    optimiser: OptimiserSection = field(default_factory=OptimiserSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    methods: list[Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    baseline: str = "single_task"
    selection: str = "last"
    protocol: str = "delta_m@1"
    # Two labels of methods: the one comparison named beforehand, whose p-value needs no correction.
    named: list[str] = field(default_factory=list)
    # What varies besides method and seed: ``kind``, a file of `mtlbench.study.scenarios`, and its options.
    scenario: dict[str, Any] = field(default_factory=dict)
    search: str = "none: every method runs with its declared defaults"
