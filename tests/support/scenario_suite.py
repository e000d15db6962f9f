"""A suite of three small tasks with a test split, and the plans of its scenarios, followed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlbench import suite as suites
from mtlbench.data import Samples
from mtlbench.data_modules.digits import Digits
from mtlbench.runs.plan import Plan, one_run
from mtlbench.runs.spec import RunSpec
from mtlbench.study import resolve as studies
from mtlbench.training.build import build_with_network

SUITE = """\
name: mine
version: 1
data:
  module: tests.support.scenario_suite:Three
  options: {train: 40, val: 12}
tasks: {left: {}, right: {}, ink: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [24, 32]
  decoder_channels: 8
trainer: {steps: 3, batch_size: 4, log_every: 1, examples: 0}
floor: false
methods: [uniform, {name: task_moe, experts: 4}]
"""
LOW = "scenario={kind: low_resource, task: left, fractions: [0.1, 0.25, 1.0]}"
UNSEEN = "scenario={kind: unseen_task, task: left, related: [right, ink], examples: [4, 8], steps: 2}"
UNRELATED = "scenario={kind: unrelated_task, task: ink}"


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


def resolved(folder: Path, *overrides: str) -> studies.Study:
    """Returns the study of ``mine.yaml`` in a folder, with changes."""
    return studies.resolve(suites.load(str(folder / "mine.yaml"), overrides), studies.Local(), list(overrides))


def plan_of(begin: Any) -> Plan:
    """Returns the plan of a case, where `single_task` has one run per task."""

    def of(spec: RunSpec) -> Plan:
        if spec.method["name"] != "single_task":
            return (yield from one_run(spec))
        runs = {name: spec.with_tasks(name) for name in spec.tasks}
        yield list(runs.values())
        return {name: one.run_id for name, one in runs.items()}

    return begin(of)


def scored(*values: float | None) -> list[dict[str, Any]]:
    """Returns results with these scores of `left`, and scores on validation that say the opposite."""
    return [
        {
            "scores": {} if value is None else {"left": {"accuracy@1": value}},
            "validation": {"left": {"accuracy@1": 1 - (value or 0)}},
        }
        for value in values
    ]


def data_of(spec: RunSpec) -> Any:
    """Returns the data module of a run, as its training gets it."""
    return build_with_network(spec)[1]
