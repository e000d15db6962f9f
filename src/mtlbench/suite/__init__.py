"""Suites, which say what is compared: reads, checks and overrides ``experiments/*.yaml``. Needs no torch."""

from mtlbench.suite.files import available, folders, locate
from mtlbench.suite.reader import Reading, changed_section, load, options_of, read
from mtlbench.suite.schema import (
    DataSection,
    ModelSection,
    OptimiserSection,
    SearchSection,
    Suite,
    TaskSection,
    TrainerSection,
    takes_images,
)

__all__ = [
    "DataSection", "ModelSection", "OptimiserSection", "Reading", "SearchSection", "Suite", "TaskSection",
    "TrainerSection", "available", "changed_section", "folders", "load", "locate", "options_of", "read",
    "takes_images",
]  # fmt: skip
