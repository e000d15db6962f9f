"""Losses on routing over ranks, streams, micro-batches and absent tasks: one table, whoever holds the images."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from mtlbench.errors import MethodError
from mtlbench.networks.experts import (
    ExpertLayer,
    ExpertMlp,
    LayerStatistics,
    Routing,
    TaskRouter,
    mutual_information,
)
from mtlbench.networks.experts.routing_losses import RoutingWeights, StepStatistics, routing_losses

TASKS, E, D = ["a", "b", "c"], 5, 4
EVERY = RoutingWeights(mutual_information=1.0, load_balance=0.5, task_balance=0.3, importance=0.2, z=0.1)


def layers():
    return {name: ExpertLayer(TaskRouter(D, E, 2, "per_task", TASKS), ExpertMlp(D, 2, E), 3) for name in ("x", "y")}


def statistics(images, weight, tasks=TASKS):
    """Of two layers that route 3 tokens of every image by W_t x; images (B, 3, D), weight (2, T, D, E)."""
    found = {}
    for name, matrices in zip(("x", "y"), weight, strict=True):
        logits = torch.cat([images.flatten(0, 1) @ matrices[TASKS.index(task)] for task in tasks])
        gates, chosen = logits.softmax(1).topk(2)
        found[name] = LayerStatistics.of(Routing(logits, gates, chosen, len(tasks)), E)
    return found


def inputs(batch=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, D, dtype=torch.float64, generator=generator)
    return images, torch.randn(2, 3, D, E, dtype=torch.float64, generator=generator)


def gradient(parts, weight, weights=EVERY, counts=None, world=1):
    """Gradient of the losses on this rank's micro-batches, averaged over micro-batches and ranks as in training."""
    weight = weight.clone().requires_grad_()
    step, sparse = StepStatistics(TASKS, weights.scope), layers()
    for index, images in enumerate(parts):
        tables = step.add(statistics(images, weight), TASKS, len(images), counts or {}, index)
        (sum(routing_losses(tables, sparse, weights).values()) / len(parts)).backward()
    if world > 1:
        dist.all_reduce(weight.grad)
    return weight.grad / world, {n: torch.cat((t.probability.detach(), t.load)) for n, t in tables.layers.items()}


def on_rank(images, weight, weights, counts):
    rank = dist.get_rank()
    sizes = [5, 3]  # ragged
    return gradient([images.split(sizes)[rank]], weight, weights, counts[rank], world=2)


@pytest.mark.parametrize("prior", ["uniform", "tokens"])
@pytest.mark.parametrize("absent", [False, True])
def test_two_ranks_have_table_and_gradient_of_one_process(pool, prior, absent):
    images, weight = inputs()
    weights = RoutingWeights(1.0, 0.5, 0.3, 0.2, 0.1, prior=prior)
    # Task b has labels on one rank only, c on none.
    counts = [{"a": 1, "b": 1, "c": 0}, {"a": 1, "b": 0, "c": 0}] if absent else [{}, {}]
    expected, table = gradient([images], weight, weights, {"a": 2, "b": 1, "c": 0} if absent else None)
    assert expected.abs().max() > 1e-3
    assert bool(expected[:, 2].any()) != absent
    for found, other in pool.call(on_rank, images, weight, weights, counts):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(other["x"], table["x"])


def test_the_local_scope_is_each_rank_by_itself(pool):
    images, weight = inputs()
    weights = RoutingWeights(1.0, scope="local")
    halves = [gradient([part], weight, weights)[0] for part in images.split([5, 3])]
    for found, _ in pool.call(on_rank, images, weight, weights, [{}, {}]):
        torch.testing.assert_close(found, sum(halves) / 2)
    assert not torch.allclose(sum(halves) / 2, gradient([images], weight, weights)[0], rtol=1e-3)


def test_micro_batches_add_up_to_the_table_of_the_batch():
    images, weight = inputs()
    _, whole = gradient([images], weight)
    _, parts = gradient(images.split(2), weight)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name])


def test_gradient_of_equal_micro_batches_is_that_of_the_batch():
    images, weight = inputs(2)
    repeated, _ = gradient([images] * 4, weight)
    torch.testing.assert_close(repeated, gradient([images], weight)[0])


def test_streams_are_put_together():
    images, weight = inputs()
    step = StepStatistics(TASKS)
    assert step.add(statistics(images, weight, ["c"]), ["c"], 8, {}, 0) is None
    assert step.add(statistics(images[:2], weight, ["a"]), ["a"], 2, {}, 0) is None
    assert step.add(statistics(images[:2], weight, ["a"]), ["a"], 2, {}, 0) is None  # a step that was interrupted
    assert step.add(statistics(images, weight, ["b"]), ["b"], 8, {}, 0) is None
    tables = step.add(statistics(images, weight, ["c"]), ["c"], 8, {}, 0)
    together = statistics(images, weight)["x"].probability
    torch.testing.assert_close(tables.layers["x"].probability[1:], together[1:])
    assert tables.images.tolist() == [2, 8, 8]


def test_an_absent_task_takes_part_through_its_running_table_without_gradient():
    images, weight = inputs()
    weight.requires_grad_()
    sparse, step = layers(), StepStatistics(TASKS)
    for layer in sparse.values():  # as if trained before, far from the present table
        layer.running.update(torch.eye(5)[:3].double(), torch.eye(5)[:3].double(), torch.tensor([True] * 3))
    tables = step.add(statistics(images, weight), TASKS, 8, {"a": 1, "b": 1, "c": 0}, 0)
    (loss,) = routing_losses(tables, sparse, RoutingWeights(1.0)).values()
    rows = statistics(images, weight)
    filled = [torch.cat((rows[n].probability[:2], torch.eye(5)[2:3].double())) for n in "xy"]
    torch.testing.assert_close(loss, -sum(map(mutual_information, filled)))
    loss.backward()
    assert weight.grad[:, :2].any() and not weight.grad[:, 2].any()


def test_a_task_never_seen_does_not_count():
    images, weight = inputs()
    tables = StepStatistics(TASKS).add(statistics(images, weight), TASKS, 8, {"a": 1, "b": 1, "c": 0}, 0)
    (loss,) = routing_losses(tables, layers(), RoutingWeights(1.0)).values()
    rows = statistics(images, weight)
    torch.testing.assert_close(loss, -sum(mutual_information(rows[n].probability[:2]) for n in "xy"))


def test_running_tables():
    (layer, _) = layers().values()
    first, second = torch.full((3, E), 0.2), torch.eye(5)[:3]
    layer.running.update(first, second, torch.tensor([True, True, False]))
    assert torch.equal(layer.running.probability[:2], first[:2]) and not layer.running.probability[2].any()
    layer.running.update(second, first, torch.tensor([True, False, True]))
    torch.testing.assert_close(layer.running.probability[0], 0.95 * first[0] + 0.05 * second[0])
    assert torch.equal(layer.running.probability[1], first[1]) and torch.equal(layer.running.probability[2], second[2])


def test_coefficients_outside_their_range():
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(MethodError, match="importance"):
            RoutingWeights(importance=value)
    with pytest.raises(MethodError, match="Did you mean 'tokens'"):
        RoutingWeights(prior="token")
    with pytest.raises(MethodError, match="Did you mean 'global'"):
        RoutingWeights(scope="globl")
