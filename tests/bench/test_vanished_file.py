"""A file of the data vanishes in the middle of an epoch: its run fails, the others finish, and a retry resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench.errors import ExitCode
from mtlbench.runs.store import RunFolder
from tests.support.command_line import mtlbench, outcome, write_suite

MODULE = """\
import os
from pathlib import Path
from mtlbench.data_modules import digits

class Digits(digits.Digits):
    def samples(self, split):
        found = super().samples(split)
        return WithFile(found) if split == "train" and list(self.tasks) == ["ink"] else found

    def fingerprint(self):
        return "with a file"

class WithFile:
    reads = 0
    file, vanish = Path("ink-13.txt").absolute(), Path("vanish").absolute()

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        WithFile.reads += 1
        if self.vanish.exists() and WithFile.reads == 64 + 20:  # in the second epoch
            os.rename(self.file, self.file.with_name("away"))
            self.vanish.unlink()
        if index == 13:
            self.file.read_text()
        return self.samples[index]
"""

SUITE = """\
name: mine
version: 1
data: {module: "vanishing:Digits", options: {train: 64, val: 16}}
tasks: {left: {}, ink: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [24, 32]
  decoder_channels: 8
trainer: {steps: 24, batch_size: 8, log_every: 1, checkpoint_every: 3, workers: WORKERS}
methods: [single_task]
floor: false
"""


def runs(folder: Path) -> dict[str, RunFolder]:
    """Returns the runs by their tasks."""
    root = folder / "results/mine"
    found = [RunFolder(root, path.parent.name) for path in root.glob("*/spec.json")]
    return {"+".join(spec.tasks): run for run in found if (spec := run.spec())}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_file(workers: int, tmp_path: Path) -> None:
    outcomes = []
    for name in ("whole", "vanishing"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vanishing.py").write_text(MODULE)
        (folder / "ink-13.txt").write_text("ink")
        words = ("bench", write_suite(folder, "mine", SUITE.replace("WORKERS", str(workers))), "--jobs", "1")
        if name == "vanishing":
            (folder / "vanish").touch()
            failed = mtlbench(folder, *words)
            assert failed.code == ExitCode.FAILED and not (folder / "vanish").exists(), failed.text
            assert {tasks: run.state() for tasks, run in runs(folder).items()} == {"ink": "failed", "left": "done"}
            error = runs(folder)["ink"].error() or {}
            assert error["type"] == "DataError" and error["message"].startswith("Files of the data must stay readable.")
            facts = ("Sample 13 of the split train", "ink-13.txt", "--retry")
            assert all(fact in error["message"] and fact in failed.text for fact in facts)
            status = " ".join(mtlbench(folder, "status", "mine").text.split())
            assert "Sample 13 of the split train" in status
            assert list(runs(folder)["ink"].path.glob("step-*.ckpt")), "it resumes from here"
            (folder / "away").rename(folder / "ink-13.txt")
            words += ("--retry",)
        answer = mtlbench(folder, *words)
        assert answer.code == 0, answer.text
        outcomes.append(outcome(runs(folder)["ink"]))
    assert outcomes[0] == outcomes[1]
    assert [row["step"] for row in outcomes[1]["rows"] if "lr" in row] == list(range(1, 25))
