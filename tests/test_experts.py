"""Routers, dispatch and expert MLPs, against a reference that runs every expert on every token."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from timm.layers import Mlp
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.errors import MethodError
from mtlbench.networks.experts import GATES, ExpertMlp, Routing, TaskRouter, global_mean, load_balance

N, D, H, E = 24, 8, 6, 5


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def experts(count=E, width=D, hidden=H):
    made = ExpertMlp(width, hidden, count).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def route(logits, top_k):
    """The rule of the router on given logits."""
    probabilities = logits.softmax(1)
    gates, chosen = probabilities.topk(top_k, dim=1)
    return Routing(probabilities, gates / gates.sum(1, keepdim=True) if top_k > 1 else gates, chosen)


def dense_masked(mlp, tokens, routing):
    """All experts on all tokens, times a mask of gates."""
    hidden = F.gelu(torch.einsum("nd,edh->enh", tokens, mlp.weight1) + mlp.bias1[:, None])
    outputs = torch.einsum("enh,ehd->end", hidden, mlp.weight2) + mlp.bias2[:, None]
    mask = torch.zeros_like(routing.probabilities).scatter(1, routing.chosen, routing.gates)
    return torch.einsum("end,ne->nd", outputs, mask)


def scenario(name):
    """Logits and k."""
    logits = torch.randn(N, E, dtype=torch.float64)
    if name == "all_to_one":
        return logits + torch.tensor([0, 0, 50.0, 0, 0], dtype=torch.float64), 1
    if name == "empty_experts":
        return logits - torch.tensor([0, 50.0, 0, 0, 50.0], dtype=torch.float64), 2
    if name == "no_tokens":
        return logits[:0], 2
    return logits, {"random": 2, "top_1": 1, "all_experts": E}[name]


@pytest.mark.parametrize("name", ["random", "top_1", "all_to_one", "empty_experts", "no_tokens", "all_experts"])
def test_equals_the_dense_masked_reference_with_all_gradients(name):
    logits, top_k = scenario(name)
    mlp, tokens = experts(), torch.randn(len(logits), D, dtype=torch.float64)
    cotangent = torch.randn(len(logits), D, dtype=torch.float64)
    found = []
    for function in (lambda x, r: mlp(x, r), lambda x, r: dense_masked(mlp, x, r)):
        leaves = [tokens.clone().requires_grad_(), logits.clone().requires_grad_()]
        output = function(leaves[0], route(leaves[1], top_k))
        found.append([output, *torch.autograd.grad((output * cotangent).sum(), [*leaves, *mlp.parameters()])])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


def test_every_token_goes_to_k_distinct_experts():
    routing = TaskRouter(D, E, 3, "token_task", ["a"])(torch.randn(N, D), "a")
    assert all(len(set(row)) == 3 for row in routing.chosen.tolist())
    torch.testing.assert_close(routing.gates.sum(1), torch.ones(N))
    statistics = routing.statistics()
    assert (statistics["load"] * N * 3).sum().round() == N * 3
    torch.testing.assert_close(statistics["probability"].sum(), torch.ones(()))
    assert statistics["probability"].requires_grad and not statistics["load"].requires_grad


def test_an_empty_expert_gets_exactly_zero_gradient():
    logits, top_k = scenario("empty_experts")
    mlp = experts()
    mlp(torch.randn(N, D, dtype=torch.float64), route(logits, top_k)).sum().backward()
    for parameter in mlp.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[[1, 4]].any() and parameter.grad[[0, 2, 3]].any()


def test_identical_experts_with_renormalised_gates_are_one_mlp():
    mlp, tokens = experts(), torch.randn(N, D, dtype=torch.float64)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    plain = F.gelu(tokens @ mlp.weight1[0] + mlp.bias1[0]) @ mlp.weight2[0] + mlp.bias2[0]
    torch.testing.assert_close(mlp(tokens, route(torch.randn(N, E, dtype=torch.float64), 2)), plain)


def test_one_expert_is_a_plain_mlp():
    mlp, tokens = experts(count=1), torch.randn(N, D, dtype=torch.float64)
    plain = F.gelu(tokens @ mlp.weight1[0] + mlp.bias1[0]) @ mlp.weight2[0] + mlp.bias2[0]
    routing = TaskRouter(D, 1, 1, "agnostic", ["a"])(tokens, "a")
    torch.testing.assert_close(mlp(tokens, routing), plain)


def test_permuting_experts_with_their_router_rows_changes_nothing():
    mlp, tokens, order = experts(), torch.randn(N, D, dtype=torch.float64), torch.randperm(E)
    router = TaskRouter(D, E, 2, "agnostic", ["a"]).double()
    before = mlp(tokens, router(tokens, "a"))
    with torch.no_grad():
        for parameter in (*mlp.parameters(), *router.parameters()):
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(mlp(tokens, router(tokens, "a")), before)


def test_gate_gradients_do_not_vanish_for_one_expert_per_token():
    router, mlp = TaskRouter(D, E, 1, "token_task", ["a"]).double(), experts()
    tokens = torch.randn(N, D, dtype=torch.float64)
    mlp(tokens, router(tokens, "a")).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in router.parameters())


@pytest.mark.parametrize("gate", GATES)
def test_what_a_gate_depends_on(gate):
    router, tokens = TaskRouter(D, E, 2, gate, ["a", "b"]), torch.randn(N, D)
    a, b = router(tokens, "a").probabilities, router(tokens, "b").probabilities
    assert torch.equal(a, b) == (gate == "agnostic")
    assert torch.equal(a, a[:1].expand_as(a)) == (gate == "task")
    owned = {id(p) for task in ("a", "b") for module in router.owned(task) for p in module.parameters()}
    assert len(owned) == (0 if gate == "agnostic" else 2)


def test_without_a_task_embedding_the_token_gate_is_agnostic():
    aware, agnostic = TaskRouter(D, E, 2, "token_task", ["a"]), TaskRouter(D, E, 2, "agnostic", ["a"])
    torch.nn.init.zeros_(aware.embeddings["a"].vector)
    agnostic.token.load_state_dict(aware.token.state_dict())
    tokens = torch.randn(N, D)
    assert torch.equal(aware(tokens, "a").probabilities, agnostic(tokens, "a").probabilities)


def test_the_router_keeps_float32_under_autocast():
    router, tokens = TaskRouter(D, E, 2, "token_task", ["a"]), torch.randn(N, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router(tokens, "a").probabilities
        assert experts().float()(tokens, router(tokens, "a")).dtype == torch.bfloat16
    assert inside.dtype == torch.float32 and torch.equal(inside, router(tokens, "a").probabilities)


def test_top_k_of_probabilities_renormalised_is_the_softmax_of_the_top_logits():
    router, tokens = TaskRouter(D, E, 2, "agnostic", ["a"]), torch.randn(N, D)
    top = router.logits(tokens, "a").topk(2, dim=1).values.softmax(1)
    torch.testing.assert_close(router(tokens, "a").gates, top)


def test_every_expert_gets_tokens_at_the_start():
    """Unit-scale tokens, the default gate, eight experts: no expert starts dead."""
    for seed in range(5):
        torch.manual_seed(seed)
        router = TaskRouter(64, 8, 2, "token_task", list("abcd"))
        load = sum(router(torch.randn(256, 64), t).statistics()["load"] for t in "abcd")
        assert (load > 0).all()


def test_active_flops_are_those_of_the_dense_mlp_plus_the_router():
    tokens, count, top_k = torch.randn(N, 32), 4, 2
    router, mlp = TaskRouter(32, count, top_k, "agnostic", ["a"]), ExpertMlp(32, 128 // top_k, count)
    flops = []
    for run in (lambda: mlp(tokens, router(tokens, "a")), lambda: Mlp(32, 128)(tokens)):
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] + 2 * N * 32 * count


@pytest.mark.parametrize(("top_k", "gate", "message"), [(6, "task", "experts=5"), (0, "task", "1..experts")])
def test_values_outside_their_range(top_k, gate, message):
    with pytest.raises(MethodError, match=message):
        TaskRouter(D, E, top_k, gate, ["a"])
    with pytest.raises(MethodError, match="Did you mean 'token_task'"):
        TaskRouter(D, E, 1, "token-task", ["a"])


def test_load_balance_is_one_when_the_mixture_is_balanced():
    """Each task keeps to its own half of the experts: balanced over the mixture, not within a task."""
    rows = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]])
    torch.testing.assert_close(load_balance(rows, rows), torch.tensor(1.0))
    torch.testing.assert_close(load_balance(rows[:, :1], rows[:, :1]), torch.tensor(2.0))


def balance_gradient(tokens, weight):
    """Gradient of the load balance of top-2 routing, averaged over ranks as DDP averages it."""
    weight = weight.clone().requires_grad_()
    statistics = route(tokens @ weight, 2).statistics()
    load_balance(statistics["probability"].expand(1, 1, -1), statistics["load"].expand(1, 1, -1)).backward()
    return global_mean(weight.grad)


def _rank(rank, folder, tokens, weight):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    torch.save(balance_gradient(tokens.chunk(2)[rank], weight), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_gradient_of_one_process(tmp_path):
    tokens, weight = torch.randn(N, D, dtype=torch.float64), torch.randn(D, E, dtype=torch.float64)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, tmp_path, tokens, weight)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    expected = balance_gradient(tokens, weight)
    assert expected.abs().max() > 1e-3
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-10, atol=1e-14)
