"""ASE LoRA-MoE: joint gates by hand, the pretrained start, what is trained, losses, extraction, and arguments."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.errors import MethodError
from mtlbench.methods.experts.ase_lora_moe import ASELoRAMoE
from mtlbench.networks.experts import mutual_information
from mtlbench.networks.experts.extraction import extract, kept_experts
from mtlbench.networks.experts.low_rank import LowRankExperts
from mtlbench.networks.experts.routing import JointRouter, Routing
from tests.support.architectures import dense, made
from tests.support.expert_methods import TASKS, build, images, losses


def router(logits, top_k, shared):
    found = JointRouter(1, len(logits) - shared, top_k, "agnostic", ["a"], shared=shared)
    found.token.weight = torch.nn.Parameter(torch.tensor(logits)[:, None])
    return found(torch.ones(1, 1), ["a"])


def test_gates_by_hand():
    found = router([2.0, 1.0, 0.0, -1.0, 0.5], 2, 1)
    assert_close(found.gates, torch.tensor([[0.628532, 0.231224, 0.140244]]), atol=1e-6, rtol=0)
    assert found.chosen.tolist() == [[0, 1, 4]]
    low = router([2.0, 1.0, 0.0, -1.0, -9.0, 9.0], 1, 2)
    assert low.chosen.tolist() == [[0, 4, 5]], "shared experts are used whatever their logits are"


def test_experts_are_the_formula():
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.Linear(12, 6))
    experts = LowRankExperts(mlp, 6, 2, 5)
    torch.nn.init.normal_(experts.up)
    tokens, gates = torch.randn(2, 3, 6), torch.rand(6, 2)
    chosen = torch.tensor([[0, 4], [1, 4], [2, 3], [0, 1], [3, 4], [2, 0]])
    found = experts(tokens, Routing(torch.zeros(6, 5), gates, chosen, 1)).flatten(0, 1)
    for n, token in enumerate(tokens.flatten(0, 1)):
        parts = [g * (token @ experts.down[i] @ experts.up[i]) for g, i in zip(gates[n], chosen[n], strict=True)]
        assert_close(found[n], mlp(token) + parts[0] + parts[1])
    assert not any(p.requires_grad for p in mlp.parameters())


def test_it_starts_as_the_pretrained_encoder():
    method, plain = made("ase_lora_moe").eval(), dense().eval()
    plain.load_state_dict({k: v for k, v in method.network.state_dict().items() if k.startswith("heads")}, strict=False)
    wanted = plain(images(), list(TASKS)).predictions
    found = method.network(images(), list(TASKS)).predictions
    for task in TASKS:
        assert_close(found[task], wanted[task], atol=1e-5, rtol=1e-5)


def test_only_experts_routers_neck_and_heads_are_trained():
    method = build(ASELoRAMoE)
    trained = {name for name, p in method.network.named_parameters() if p.requires_grad}
    assert all(any(part in name for part in ("down", "up", "router", "neck", "heads")) for name in trained)
    assert sum("experts.down" in name for name in trained) == 4
    assert method.network.layers["block0.mlp"].experts.down.shape == (17, 32, 4)
    fine = build(ASELoRAMoE, fine=2).network.layers["block0.mlp"]
    assert fine.experts.down.shape == (34, 32, 2) and fine.router.top_k == 8


def test_the_loss_is_the_mutual_information():
    method = build(ASELoRAMoE, experts=4, top_k=2, mutual_information=0.5)
    found, layers = losses(method)
    wanted = sum(mutual_information(s.probability) for s in layers.values())
    assert_close(found["mutual_information"], -0.5 * wanted)


def test_extraction_keeps_shared_experts_and_the_predictions():
    method = build(ASELoRAMoE, experts=6, top_k=2, shared=2)
    for layer in method.network.layers.values():
        torch.nn.init.normal_(layer.experts.up)
    losses(method)  # fills the running tables
    method.eval()
    for task in TASKS:
        kept = kept_experts(method.network, list(TASKS), task, 0.0)
        assert all(experts[-2:] == [6, 7] for experts in kept.values())
        alone = extract(method.network, task, kept)
        found, wanted = (n(images(), [task]).predictions[task] for n in (alone, method.network))
        assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_arguments_out_of_range():
    wrong = ({"shared": 0}, {"rank": 3, "fine": 2}, {"rank": 0}, {"top_k": 17}, {"top_k": 0}, {"fine": 0})
    for arguments in wrong:
        with pytest.raises(MethodError, match="ase_lora_moe: "):
            build(ASELoRAMoE, **arguments)
