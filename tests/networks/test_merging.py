"""Merging: goldens of task arithmetic and TIES, agreement with a loop over entries, and what networks share."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.networks.merging import shared_values, task_arithmetic, ties
from tests.support.architectures import TASKS, dense
from tests.support.balancers import rows

CHANGES = rows((3.0, -1.0, 0.5, 2.0), (-2.0, -2.0, 0.1, 1.0))


def test_goldens():
    assert_close(task_arithmetic(CHANGES, 0.3), rows(0.3, -0.9, 0.18, 0.9))
    assert_close(ties(CHANGES, 0.5, 1.0), rows(3.0, -2.0, 0.0, 2.0))
    assert_close(ties(CHANGES, 0.5, 0.5), rows(1.5, -1.0, 0.0, 1.0))
    for merge in (lambda one: task_arithmetic(one, 1.0), lambda one: ties(one, 1.0, 1.0)):
        assert_close(merge(CHANGES[:1]), CHANGES[0]), "one network is restored"


@pytest.mark.parametrize("keep", [0.1, 0.4, 1.0])
def test_ties_entry_by_entry(keep):
    changes = torch.randn(3, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = [{int(i) for i in row.abs().argsort(descending=True)[: round(40 * keep)]} for row in changes]
    wanted = []
    for p in range(40):
        left = [float(row[p]) for row, known in zip(changes, kept, strict=True) if p in known]
        agreeing = [value for value in left if value * sum(left) > 0]
        wanted.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    assert_close(ties(changes, keep, 1.0), torch.tensor(wanted).double())


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_what_networks_share_is_all_but_the_heads(kind):
    network = dense(kind)
    found = shared_values(network, list(TASKS), trained=True)
    heads = {name for name, _ in network.named_parameters() if name.startswith("heads.")}
    assert found.keys() == {name for name, _ in network.named_parameters()} - heads
    buffers = shared_values(network, list(TASKS), trained=False)
    assert all(b.is_floating_point() and not name.startswith("heads.") for name, b in buffers.items())
    assert any(name.endswith("running_var") for name in buffers) == (kind == "cnn")
