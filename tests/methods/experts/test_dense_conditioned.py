"""The dense control that runs once per task."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.methods.experts.dense_conditioned import DenseConditioned
from mtlbench.networks.dense import build_dense
from mtlbench.networks.flops import forward_flops
from tests.support.expert_methods import TASKS, build, images


def test_a_task_changes_features_by_its_vector_alone():
    method = build(DenseConditioned).eval()
    vectors = [method.network.encoder.embeddings[task].vector for task in TASKS]
    assert not method.network.layers and not method.network.routers
    before = method(images())
    with torch.no_grad():
        vectors[0] += 1.0
    after = method(images())
    changed = [not torch.equal(before[task], after[task]) for task in TASKS]
    assert changed == [True, False, False]


def test_with_equal_vectors_tasks_have_equal_features():
    method = build(DenseConditioned).eval()
    with torch.no_grad():
        for task in TASKS:
            method.network.encoder.embeddings[task].vector.fill_(0.1)
    found, _ = method.network.encoder.finish(method.network.encoder.begin(images())[0], list(TASKS))
    for features in found:
        first, *others = features.chunk(len(TASKS))
        assert all(torch.allclose(first, other, atol=1e-5) for other in others)


def test_size_and_cost_are_those_of_uniform_once_per_task():
    network = build(DenseConditioned).network
    dense = build_dense(TASKS, network_model())
    width = network.encoder.model.embed_dim
    sizes = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (network, dense)]
    assert sizes[0] - sizes[1] == len(TASKS) * width
    alone = [[forward_flops(net, images()[:1], [task]) for task in TASKS] for net in (network, dense)]
    assert alone[0] == alone[1]
    embed = 2 * network.encoder.model.patch_embed.num_patches * network.encoder.model.patch_embed.proj.weight.numel()
    assert forward_flops(network, images()[:1], list(TASKS)) == sum(alone[0]) - (len(TASKS) - 1) * embed


def network_model():
    return build(DenseConditioned).spec.model


def test_tasks_one_by_one_are_as_together():
    network = build(DenseConditioned).network.eval()
    together = network(images(), list(TASKS)).predictions
    network.separate = True
    apart = network(images(), list(TASKS)).predictions
    for task in TASKS:
        torch.testing.assert_close(together[task], apart[task])


def test_nothing_is_said_of_experts():
    method = build(DenseConditioned)
    outputs = method.network(images(), list(TASKS))
    assert method.regularisation(outputs, {"image": images()}) == {} and method.diagnostics() == {}
    assert "experts" not in method.summary()


def test_it_needs_vectors():
    with pytest.raises(MethodError, match="must be > 0"):
        build(DenseConditioned, task_tokens=0.0)
