"""Chained probabilities: products by hand, their extremes, who owns which head, and chains that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.methods.architectures.esmm import ESMM
from mtlbench.networks.chained import _as_scores
from mtlbench.tasks import Classification, Regression, Task
from mtlbench.testing.contracts import check_network

EVENTS = ("view", "click", "purchase")
TASKS: dict[str, Task] = {name: Classification(name, classes=2) for name in EVENTS} | {"price": Regression("price")}


def method(**arguments: Any) -> ESMM:
    found = ESMM(MethodSpec(TASKS, {"encoder": "mlp:plain", "inputs": {"features": 5}}), **arguments)
    found.configure_model()
    return found


def test_probabilities_are_products_of_the_heads() -> None:
    network = method().network
    x = torch.randn(6, 5)
    own = torch.stack([network.heads[name](network.shared_map(x)).softmax(1)[:, 1] for name in EVENTS])
    predictions = network(x, list(TASKS)).predictions
    for count, name in enumerate(EVENTS, 1):
        torch.testing.assert_close(predictions[name].softmax(1)[:, 1], own[:count].prod(0))
    assert list(network(x, ["purchase", "price"]).predictions) == ["purchase", "price"]
    torch.testing.assert_close(network(x, ["purchase"]).predictions["purchase"], predictions["purchase"])


def test_a_later_event_trains_the_heads_before_it() -> None:
    network = method().network
    loss = TASKS["purchase"].loss(
        network(torch.randn(6, 5), ["purchase"]).predictions["purchase"], torch.ones(6).long()
    )
    reached = torch.autograd.grad(loss, list(network.heads["view"].parameters()))
    assert all(gradient.abs().max() > 0 for gradient in reached)
    assert network.task_parameters("view") == [] and network.task_parameters("purchase")
    assert check_network(network, TASKS, torch.randn(4, 5)) is None


def test_extreme_probabilities_keep_finite_losses_and_gradients() -> None:
    logs = torch.tensor([-200.0, -1e-3, 0.0], requires_grad=True)
    scores = _as_scores(logs)
    torch.testing.assert_close(scores.softmax(1)[:, 1], torch.exp(logs))
    for label in (0, 1):
        loss = torch.nn.functional.cross_entropy(scores, torch.full((3,), label))
        (gradient,) = torch.autograd.grad(loss, logs, retain_graph=True)
        assert loss.isfinite() and gradient.isfinite().all()


def test_a_chain_that_is_given_is_kept() -> None:
    assert method(chain=["click", "purchase"]).network.chain == ["click", "purchase"]
    assert method().chain == list(EVENTS)


@pytest.mark.parametrize(("chain", "message"), [
    (["click", "purchas"], "'purchas'.*purchase"), (["click", "price"], "price is none"),
    (["click", "click"], "stands once"),
])  # fmt: skip
def test_chains_that_are_refused(chain: list[str], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method(chain=chain)
