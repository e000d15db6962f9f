"""Numbers that go to a device without a wait, and the index of the active tasks."""

from __future__ import annotations

import torch

from mtlbench.balancing import Context
from mtlbench.distributed import sent


def test_numbers_take_type_and_device_of_another_tensor():
    like = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(sent([0.1, 2], like), torch.tensor([0.1, 2.0], dtype=torch.float64))
    assert (
        sent([[1, 0]], like, torch.int64).tolist() == [[1, 0]] and sent([True], torch.tensor(False)).dtype == torch.bool
    )
    there = sent([1.0], torch.zeros(1, device="meta"))
    assert there.device.type == "meta"


def test_all_tasks_need_no_index_and_some_are_read_and_written_in_order():
    def context(*active):
        return Context(
            active, torch.ones(len(active)), 0, 0, torch.Generator(), lambda change, tasks=None: torch.ones(1)
        )

    values = torch.tensor([1.0, 2.0, 3.0])
    assert context(0, 1, 2).index(values) == slice(None)
    some = context(2, 0).index(values)
    assert values[some].tolist() == [3.0, 1.0]
    values[some] += torch.tensor([10.0, 20.0])
    assert values.tolist() == [21.0, 2.0, 13.0]
