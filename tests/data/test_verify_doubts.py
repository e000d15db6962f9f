"""`verify` warns where allowed values look like another encoding over a whole split."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mtlbench.data import MTLDataModule, Samples
from mtlbench.data.verify import verify
from mtlbench.tasks import Edges, Saliency, SemanticSegmentation, Task


class Given(MTLDataModule):
    """Two samples whose targets hold the given rows."""

    def __init__(self, task: Task, rows: list[Any]):
        super().__init__(None, tasks={"t": task})
        self.rows = rows

    def samples(self, split: str) -> Samples:
        targets = [torch.tensor(row) for row in self.rows]
        return [  # type: ignore[return-value]
            {"image": torch.zeros(3, *t.shape[-2:], dtype=torch.uint8), "targets": {"t": t}, "id": str(i)}
            for i, t in enumerate(targets)
        ]


CLASSES = SemanticSegmentation("t", classes=4)


@pytest.mark.parametrize(
    ("task", "rows", "doubt"),
    [
        (CLASSES, [[[0, 1]], [[2, 255]]], "class 3, the last, never occurs"),
        (CLASSES, [[[3, 1]], [[2, 255]]], "class 0, the first, never occurs"),
        (CLASSES, [[[0, 1]], [[2, 3]]], None),
        (CLASSES, [[[255, 255]]], None),
        (SemanticSegmentation("t", classes=2), [[[0, 0]]], None),
        (Saliency("t"), [[[[0.0, 0.0]]], [[[0.0, 255.0]]]], "every labelled pixel is 0.*0/255"),
        (Saliency("t"), [[[[1.0, 1.0, 0.0]]]], None),
        (Edges("t"), [[[[1.0, 1.0, 0.0]]]], "67% of the pixels are edges.*inverted"),
        (Edges("t"), [[[[1.0, 0.0, 0.0]]]], None),
    ],
)
def test_doubts(task: Task, rows: list[Any], doubt: str | None) -> None:
    found = verify(Given(task, rows), "train")
    assert not found.faults
    if doubt is None:
        assert not found.doubts
    else:
        assert len(found.doubts) == 1 and re.search(doubt, found.doubts[0])
