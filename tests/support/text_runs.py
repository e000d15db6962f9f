"""A finished run of `task_moe` on a small file of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mtlbench import registry
from mtlbench.runs.store import RunFolder
from mtlbench.tasks.inputs import TOKENS
from mtlbench.testing.toy import toy_spec
from mtlbench.training.run import train

TARGETS = {"mood": {"kind": "classification", "classes": ["bad", "good"]}, "stars": {"kind": "regression"}}
TOKENWISE = {"tags": {"kind": "token_labels", "classes": ["O", "N"], "outside": "O"}, "where": {"kind": "span"}}
"""Targets besides: the number in a text."""


def trained_on_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, targets: dict[str, Any] = TARGETS, **arguments: Any
) -> Path:
    """Trains on 40 texts for two steps and returns the run's folder.

    Args:
        folder: Where data and results are written.
        monkeypatch: Switches off the cache.
        targets: Targets of the texts.
        **arguments: Arguments of the method.
    """
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    words = ["fine day", "bad", "so so and so", "good good"]
    rows = {"text": [f"{words[i % 4]} {i}" for i in range(40)], "mood": [("bad", "good")[i % 2] for i in range(40)],
            "stars": [i % 5 for i in range(40)], "where": range(40),
            "tags": [f"{'O ' * len(words[i % 4].split())}N" for i in range(40)]}  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    options = {"file": "rows.csv", "targets": targets, "vocabulary": 20, "length": 9}
    known = registry.load("data_modules.text:Text").tasks_of(options)
    spec = toy_spec("task_moe", steps=2, inputs=TOKENS, arguments={"top_k": 2, **arguments}, tasks=[])
    spec = replace(
        spec,
        data={"module": "data_modules.text:Text", "options": options},
        tasks={name: task.describe() for name, task in known.items()},
        trainer={**spec.trainer, "precision": "32-true", "evaluate_every": 0},
        local={**spec.local, "root": str(folder)},
    )
    run = RunFolder(folder / "results" / "check", spec.run_id)
    assert run.claim(spec) and train(spec, run)
    return run.path
