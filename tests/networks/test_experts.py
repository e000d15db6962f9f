"""Routers, dispatch and expert MLPs, against a reference that runs every expert on every token."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.errors import MethodError
from mtlbench.networks.experts import GATES, ExpertAttention, ExpertMlp, LayerStatistics, Routing, TaskRouter
from mtlbench.networks.experts.mlp import two_layers
from mtlbench.networks.text_encoder import GatedMlp

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
    gates, chosen = logits.softmax(1).topk(top_k, dim=1)
    return Routing(logits, gates / gates.sum(1, keepdim=True) if top_k > 1 else gates, chosen, 1)


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
    routing = TaskRouter(D, E, 3, "token_task", ["a"])(torch.randn(N, D), ["a"])
    assert all(len(set(row)) == 3 for row in routing.chosen.tolist())
    torch.testing.assert_close(routing.gates.sum(1), torch.ones(N))
    statistics = LayerStatistics.of(routing, E)
    assert (statistics.load * N * 3).sum().round() == N * 3
    torch.testing.assert_close(statistics.probability.sum(), torch.ones(()))
    torch.testing.assert_close(statistics.importance.sum(), torch.ones(()))
    torch.testing.assert_close(statistics.log_normaliser, routing.logits.exp().sum(1).log().square().mean()[None])
    assert statistics.probability.requires_grad and not statistics.load.requires_grad


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
    routing = TaskRouter(D, 1, 1, "agnostic", ["a"])(tokens, ["a"])
    torch.testing.assert_close(mlp(tokens, routing), plain)


def test_permuting_experts_with_their_router_rows_changes_nothing():
    mlp, tokens, order = experts(), torch.randn(N, D, dtype=torch.float64), torch.randperm(E)
    router = TaskRouter(D, E, 2, "agnostic", ["a"]).double()
    before = mlp(tokens, router(tokens, ["a"]))
    with torch.no_grad():
        for parameter in (*mlp.parameters(), *router.parameters()):
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(mlp(tokens, router(tokens, ["a"])), before)


def test_gate_gradients_do_not_vanish_for_one_expert_per_token():
    router, mlp = TaskRouter(D, E, 1, "token_task", ["a"]).double(), experts()
    tokens = torch.randn(N, D, dtype=torch.float64)
    mlp(tokens, router(tokens, ["a"])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in router.parameters())


def router_of(gate, tasks=("a", "b"), **options):
    told = {task: torch.randn(3).tolist() for task in tasks}
    return TaskRouter(D, E, 2, gate, tasks, descriptions=told if gate == "description" else None, **options)


@pytest.mark.parametrize("gate", GATES)
def test_what_a_gate_depends_on(gate):
    router, tokens = router_of(gate), torch.randn(N, D)
    a, b = router(tokens, ["a"]).probabilities, router(tokens, ["b"]).probabilities
    assert torch.equal(a, b) == (gate == "agnostic")
    assert torch.equal(a, a[:1].expand_as(a)) == (gate == "task")
    owned = {id(p) for task in ("a", "b") for module in router.owned(task) for p in module.parameters()}
    assert len(owned) == (0 if gate in ("agnostic", "description") else 2)


@pytest.mark.parametrize("gate", GATES)
def test_several_tasks_at_once_are_routed_as_each_by_itself(gate):
    router, tokens = router_of(gate), torch.randn(2 * N, D)
    both = router(tokens, ["b", "a"])
    alone = [router(part, [task]) for part, task in zip(tokens.chunk(2), "ba", strict=True)]
    torch.testing.assert_close(both.logits, torch.cat([r.logits for r in alone]))
    assert torch.equal(both.chosen, torch.cat([r.chosen for r in alone]))
    statistics = LayerStatistics.of(both, E)
    for row, routing in enumerate(alone):
        one = LayerStatistics.of(routing, E)
        for name in ("probability", "load", "importance", "log_normaliser"):
            torch.testing.assert_close(getattr(statistics, name)[row], getattr(one, name)[0])


def test_a_described_task_that_was_never_trained_is_routed_by_its_description():
    known, told = TaskRouter(D, E, 2, "description", ["a"], descriptions={"a": [1.0, 2.0]}), {"new": [1.0, 2.0]}
    other = TaskRouter(D, E, 2, "description", ["new"], descriptions=told)
    other.load_state_dict(known.state_dict())  # descriptions are no weights
    tokens = torch.randn(N, D)
    assert torch.equal(known(tokens, ["a"]).logits, other(tokens, ["new"]).logits)


def test_noise_is_of_training_alone():
    router, tokens = router_of("per_task", noise=0.5), torch.randn(N, D)
    clean = router_of("per_task")
    clean.load_state_dict(router.state_dict())
    assert not torch.equal(router(tokens, ["a"]).logits, clean(tokens, ["a"]).logits)
    assert torch.equal(router.eval()(tokens, ["a"]).logits, clean(tokens, ["a"]).logits)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("renormalise", [True, False])
def test_a_router_that_keeps_what_it_chose_chooses_alike(gate, renormalise):
    """Kept experts answer as before, also with raw gates, whose denominator stays."""
    router, tokens = router_of(gate, renormalise=renormalise).double(), torch.randn(N, D, dtype=torch.float64)
    before = router(tokens, ["a"])
    used = before.chosen.unique().tolist()[:4]
    inside = torch.tensor([all(e in used for e in row) for row in before.chosen.tolist()])
    router.keep(used)
    after = router(tokens, ["a"])
    assert inside.any()
    torch.testing.assert_close(after.gates[inside], before.gates[inside])
    assert torch.equal(torch.tensor(used)[after.chosen][inside], before.chosen[inside])


def test_slicing_raw_gates_changes_them_by_the_mass_of_what_is_cut():
    """The fault of the official code that `keep` avoids: experts never chosen hold 17 %, gates grow by 1 / 0.83."""
    token, found = torch.eye(D)[:1], {}
    for way in ("whole", "kept", "sliced"):
        router = TaskRouter(D, 4, 2, "agnostic", ["a"], renormalise=False)
        with torch.no_grad():
            router.token.weight[:, 0] = torch.tensor([0.5, 0.33, 0.1, 0.07]).log()
        if way == "kept":
            router.keep([0, 1])
        if way == "sliced":
            router.token.weight = torch.nn.Parameter(router.token.weight[:2])
        found[way] = router(token, ["a"]).gates
    torch.testing.assert_close(found["whole"], torch.tensor([[0.5, 0.33]]))
    assert torch.equal(found["kept"], found["whole"])
    torch.testing.assert_close(found["sliced"], found["whole"] / 0.83)


def mean_query_attention(attention, x):
    """Multi-query attention with one head per expert, plainly."""
    key, value = attention.key_value(x).chunk(2, dim=-1)
    total = torch.zeros_like(x)
    for wq, wo in zip(attention.query, attention.output, strict=True):
        scores = (x @ wq) @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        total = total + scores.softmax(-1) @ value @ wo
    return total


def test_attention_of_all_experts_with_gates_of_one_is_multi_query_attention():
    attention = ExpertAttention(D, 4, E).double()
    x = torch.randn(2, 7, D, dtype=torch.float64)
    everyone = torch.arange(E).repeat(14, 1)
    routing = Routing(torch.zeros(14, E, dtype=torch.float64), torch.ones(14, E, dtype=torch.float64), everyone, 1)
    torch.testing.assert_close(attention(x, routing), mean_query_attention(attention, x))


def test_attention_is_equivariant_to_the_order_of_tokens_and_of_experts():
    attention, router = ExpertAttention(D, 4, E).double(), router_of("agnostic").double()
    x, order, experts_order = torch.randn(2, 7, D, dtype=torch.float64), torch.randperm(7), torch.randperm(E)
    before = attention(x, router(x.flatten(0, 1), ["a"]))
    moved = x[:, order]
    torch.testing.assert_close(attention(moved, router(moved.flatten(0, 1), ["a"])), before[:, order])
    with torch.no_grad():
        for parameter in (attention.query, attention.output, router.token.weight):
            parameter.copy_(parameter[experts_order].clone())
    torch.testing.assert_close(attention(x, router(x.flatten(0, 1), ["a"])), before)


def test_attention_has_right_gradients():
    attention, router = ExpertAttention(4, 2, 3).double(), TaskRouter(4, 3, 2, "agnostic", ["a"]).double()
    with torch.no_grad():
        router.token.weight.mul_(50)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, *_: attention(x, router(x.flatten(0, 1), ["a"])), (x, *attention.parameters())
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("init", ["copy", "split"])
def test_upcycled_experts_reproduce_the_dense_mlp(init, gated):
    linear = torch.nn.Linear
    dense = GatedMlp(linear(8, 64), torch.nn.GELU(), linear(32, 8)) if gated else Mlp(8, 32)
    dense, tokens = dense.double(), torch.randn(N, 8, dtype=torch.float64)
    for layer in two_layers(dense):
        torch.nn.init.normal_(layer.bias)
    sparse = ExpertMlp(8, 32 if init == "copy" else 16, 4, gated=gated).double()
    sparse.upcycle(dense, init)
    chosen = torch.tensor([[0, 1], [2, 1], [0, 3], [2, 3]]).repeat(N // 4, 1)  # one expert of each half
    routing = Routing(torch.zeros(N, 4), torch.full((N, 2), 0.5, dtype=torch.float64), chosen, 1)
    torch.testing.assert_close(sparse(tokens, routing), dense(tokens))
    for experts_, hidden in ((3, 16), (4, 12)):
        with pytest.raises(MethodError, match="divide the dense MLP evenly"):
            ExpertMlp(8, hidden, experts_).double().upcycle(dense, "split")


def test_copies_under_a_raw_top_1_gate_have_a_router_gradient_and_renormalised_ones_have_none():
    for renormalise, expected in ((None, True), (True, False)):
        router, mlp = TaskRouter(D, E, 1, "agnostic", ["a"], renormalise=renormalise).double(), experts()
        tokens = torch.randn(N, D, dtype=torch.float64)
        mlp(tokens, router(tokens, ["a"])).square().sum().backward()
        assert (router.token.weight.grad.abs().max() > 1e-8) == expected


def test_without_a_task_embedding_the_token_gate_is_agnostic():
    aware, agnostic = TaskRouter(D, E, 2, "token_task", ["a"]), TaskRouter(D, E, 2, "agnostic", ["a"])
    torch.nn.init.zeros_(aware.embeddings["a"].vector)
    agnostic.token.load_state_dict(aware.token.state_dict())
    tokens = torch.randn(N, D)
    assert torch.equal(aware(tokens, ["a"]).probabilities, agnostic(tokens, ["a"]).probabilities)


def test_the_router_keeps_float32_under_autocast():
    router, tokens = TaskRouter(D, E, 2, "token_task", ["a"]), torch.randn(N, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router(tokens, ["a"]).probabilities
        assert experts().float()(tokens, router(tokens, ["a"])).dtype == torch.bfloat16
    assert inside.dtype == torch.float32 and torch.equal(inside, router(tokens, ["a"]).probabilities)


def test_top_k_of_probabilities_renormalised_is_the_softmax_of_the_top_logits():
    router, tokens = TaskRouter(D, E, 2, "agnostic", ["a"]), torch.randn(N, D)
    with torch.no_grad():
        router.token.weight.mul_(50)
    top = (tokens @ router.token.weight.t()).softmax(1).topk(2, dim=1)
    routing = router(tokens, ["a"])
    torch.testing.assert_close(routing.gates, top.values / top.values.sum(1, keepdim=True))
    assert torch.equal(routing.chosen, top.indices)


def test_all_experts_chosen_is_the_dense_softmax_mixture():
    router, mlp, tokens = TaskRouter(D, E, E, "agnostic", ["a"]).double(), experts(), torch.randn(N, D).double()
    with torch.no_grad():
        router.token.weight.mul_(50)
    hidden = F.gelu(torch.einsum("nd,edh->neh", tokens, mlp.weight1) + mlp.bias1)
    outputs = torch.einsum("neh,ehd->ned", hidden, mlp.weight2) + mlp.bias2
    mixture = torch.einsum("ne,ned->nd", (tokens @ router.token.weight.t()).softmax(1), outputs)
    torch.testing.assert_close(mlp(tokens, router(tokens, ["a"])), mixture)


def test_every_expert_gets_tokens_at_the_start():
    """Unit-scale tokens, the default gate, eight experts: no expert starts dead."""
    for seed in range(5):
        torch.manual_seed(seed)
        router = TaskRouter(64, 8, 2, "token_task", list("abcd"))
        load = sum(LayerStatistics.of(router(torch.randn(256, 64), [t]), 8).load[0] for t in "abcd")
        assert (load > 0).all()


def test_active_flops_are_those_of_the_dense_mlp_plus_the_router():
    """The experts' second bias is a product of gates and biases, as dear as the router."""
    tokens, count, top_k = torch.randn(N, 32), 4, 2
    router, mlp = TaskRouter(32, count, top_k, "agnostic", ["a"]), ExpertMlp(32, 128 // top_k, count)
    flops = []
    for run in (lambda: mlp(tokens, router(tokens, ["a"])), lambda: Mlp(32, 128)(tokens)):
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] + 2 * 2 * N * 32 * count


@pytest.mark.parametrize(("top_k", "gate", "message"), [(6, "task", "experts=5"), (0, "task", "1..experts")])
def test_values_outside_their_range(top_k, gate, message):
    with pytest.raises(MethodError, match=message):
        TaskRouter(D, E, top_k, gate, ["a"])
    with pytest.raises(MethodError, match="Did you mean 'token_task'"):
        TaskRouter(D, E, 1, "token-task", ["a"])
    with pytest.raises(MethodError, match="noise"):
        TaskRouter(D, E, 1, "task", ["a"], noise=float("nan"))
    with pytest.raises(MethodError, match="Found none for b"):
        TaskRouter(D, E, 1, "description", ["a", "b"], descriptions={"a": [1.0]})
    with pytest.raises(MethodError, match="same length"):
        TaskRouter(D, E, 1, "description", ["a", "b"], descriptions={"a": [1.0], "b": [1.0, 2.0]})
