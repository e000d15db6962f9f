"""Mod-Squad: experts in attention and MLPs, tasks told apart by the experts they use."""

from __future__ import annotations

import math

import torch

from mtlbench.methods.experts.mod_squad import ModSquad
from mtlbench.networks.experts import ExpertAttention, ExpertMlp, mutual_information
from tests.support.expert_methods import TASKS, build, losses, train_routers

SMALL = {"experts": 4, "top_k": 2}


def test_placement_and_sizes_are_the_paper_s():
    method = build(ModSquad)
    layers = method.network.layers
    assert list(layers) == ["block0.attention", "block1.mlp", "block2.attention", "block3.mlp"]
    attention, mlp = layers["block0.attention"], layers["block1.mlp"]
    assert isinstance(attention.experts, ExpertAttention) and isinstance(mlp.experts, ExpertMlp)
    assert (
        attention.experts.query.shape == (4, 32, 32) and attention.router.top_k == 2
    )  # 2 heads: 2 · 2 experts of 2D/H
    assert mlp.experts.weight1.shape == (16, 32, 32) and mlp.router.top_k == 4
    assert set(method.network.encoder.embeddings) == set(TASKS)


def test_the_loss_is_the_mutual_information_summed_over_layers():
    method = build(ModSquad, mutual_information=0.25, z=0.5, **SMALL)
    found, layers = losses(method)
    torch.testing.assert_close(
        found["mutual_information"], -0.25 * sum(mutual_information(s.probability) for s in layers.values())
    )
    torch.testing.assert_close(found["z"], 0.5 * sum(s.log_normaliser.mean() for s in layers.values()))


def test_tasks_come_to_use_different_experts():
    """Pulled by the loss alone, information rises to log T in every layer: no two tasks share an expert."""
    method = build(ModSquad, mutual_information=1.0, task_tokens=1.0, **SMALL)
    values = train_routers(method, steps=60, lr=0.1)
    assert -values[0] < 0.05 and -values[-1] > 0.95 * 4 * math.log(3)
    _, layers = losses(method)
    for layer in layers.values():
        assert len(set(layer.probability.argmax(1).tolist())) == 3


def test_equal_routers_stay_equal_under_the_loss_alone():
    """A saddle: only the tasks break the symmetry."""
    method = build(ModSquad, mutual_information=1.0, task_tokens=0.0, **SMALL)
    for router in method.network.routers:
        for matrix in router.matrices.values():
            matrix.load_state_dict(router.matrices["depth"].state_dict())
    found, _ = losses(method)
    found["mutual_information"].backward()
    gradients = [m.weight.grad for router in method.network.routers for m in router.matrices.values()]
    assert max(g.abs().max() for g in gradients) < 1e-7


def test_absent_tasks_do_not_follow_the_loss():
    method = build(ModSquad, mutual_information=1.0, **SMALL)
    losses(method)
    found, _ = losses(method, counts={"depth": 1, "normals": 1, "kind": 0})
    found["mutual_information"].backward()
    for router in method.network.routers:
        assert router.matrices["depth"].weight.grad.any() and not router.matrices["kind"].weight.grad.any()


def test_weight_decay_spares_the_stacked_biases_of_experts():
    method = build(ModSquad, experts=4, top_k=2)
    decays = {id(p): group.get("weight_decay") for group in method.parameter_groups() for p in group["params"]}
    names = dict(method.network.named_parameters())
    assert set(decays) == {id(p) for p in names.values() if p.requires_grad}
    biases = [p for name, p in names.items() if name.endswith(("experts.bias1", "experts.bias2"))]
    assert biases and all(p.ndim == 2 and decays[id(p)] == 0.0 for p in biases)
    weights = [p for name, p in names.items() if name.endswith(("experts.weight1", "experts.query"))]
    assert weights and all(decays[id(p)] is None for p in weights)
