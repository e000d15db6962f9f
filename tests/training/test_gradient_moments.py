"""Size and noise of a stream's gradient, against gradients of single samples."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlbench import registry
from mtlbench.data import Collate
from mtlbench.method import MethodSpec
from mtlbench.tasks.inputs import VECTORS
from mtlbench.testing.toy import TOYS
from mtlbench.training.build import build_method
from mtlbench.training.gradient_moments import gradient_moments


@pytest.fixture
def method() -> Any:
    toy, model = TOYS[VECTORS]
    found = build_method(registry.record("uniform"), MethodSpec(dict(toy.TASKS), dict(model)))
    found.configure_model()
    found.double()
    strategy, precision = SimpleNamespace(batch_to_device=lambda batch: batch), SimpleNamespace()
    precision.val_step_context = nullcontext
    found._trainer = SimpleNamespace(strategy=strategy, precision_plugin=precision)
    return found


def batches(*parts: slice, tasks: tuple[str, ...]) -> list[Any]:
    toy = TOYS[VECTORS][0](ragged=False)
    samples = [toy.samples("train")[index] for index in range(8)]
    for sample in samples:
        sample["inputs"] = sample["inputs"].double()
        sample["targets"] = {name: sample["targets"][name] for name in tasks}
    return [Collate({name: toy.TASKS[name] for name in tasks})(samples[part]) for part in parts]


def gradient(method: Any, batch: Any, tasks: tuple[str, ...]) -> Tensor:
    """Differentiates the losses of one sample with PyTorch's own backward pass."""
    shared = method.network.shared_parameters(list(method.tasks))
    predictions = method.network(batch["inputs"], list(tasks)).predictions
    losses = [method.tasks[n].scale * method.tasks[n].loss(predictions[n], batch["targets"][n]) for n in tasks]
    method.zero_grad()
    sum(losses).backward()
    found = torch.cat([p.grad.flatten().clone() for p in shared])
    method.zero_grad()
    return found


@pytest.mark.parametrize("tasks", [("kind",), ("far", "mean")])
def test_moments_are_those_of_single_samples(method: Any, tasks: tuple[str, ...]) -> None:
    method.eval()
    single = [gradient(method, one, tasks) for one in batches(*(slice(i, i + 1) for i in range(8)), tasks=tasks)]
    one, other = torch.stack(single[:4]).mean(0), torch.stack(single[4:]).mean(0)
    square, variance = gradient_moments(method, batches(slice(0, 4), slice(4, 8), tasks=tasks))
    assert square == pytest.approx(float(one @ other)) and square != 0
    assert variance == pytest.approx(4 / 2 * float((one - other).square().sum()))


def test_measuring_leaves_training_alone(method: Any) -> None:
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    draws = torch.get_rng_state()
    gradient_moments(method, batches(slice(0, 4), slice(4, 8), tasks=("kind",)))
    assert method.training and all(p.grad is None for p in method.parameters())
    assert torch.equal(draws, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_stream_without_labels_has_no_gradient(method: Any) -> None:
    halves = batches(slice(0, 4), slice(4, 8), tasks=("kind",))
    for half in halves:
        half["counts"] = {"kind": 0}
    assert gradient_moments(method, halves) == (0.0, 0.0)
