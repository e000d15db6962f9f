"""Learning over graphs: the two forms, the graphs, and the decentralised training that equals the centralised one."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench import registry
from mtlbench.data import Collate
from mtlbench.errors import MethodError
from mtlbench.method import DEFAULT_OPTIMISER
from mtlbench.method.graph_agent import GraphAgent
from mtlbench.methods.architectures.graph_mtl import GraphMTL
from mtlbench.networks.graph import GraphNetwork, affinity_graph, disagreement, laplacian, named_graph
from mtlbench.seeding import seed_of
from mtlbench.testing import ToyData, check_network, toy_spec, trained
from tests.support import network_checks as arch
from tests.support.architectures import TASKS, dense, images, made, network

PAIR = [[0, 1], [1, 0]]
TWO = ["far", "mean"]


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_columns_are_single_task_networks_with_owners(kind):
    net = network("graph_mtl", kind).eval()
    for task in TASKS:
        alone = dense(kind, {task: TASKS[task]}).eval()
        assert_close(net(images(), [task]).predictions[task], alone(images(), [task]).predictions[task])
    assert check_network(net, TASKS) is None and net.shared_parameters(list(TASKS)) == []
    arch.assert_partition(net, TASKS, (16, 24))
    arch.assert_subset_is_alike(net, TASKS, (16, 24))


# ---- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "wanted"), [(0.0, (1.0, 3.0)), (1.0, (5 / 3, 7 / 3)), (1e6, (2.0, 2.0))])
def test_the_minimiser_for_quadratic_losses(eta, wanted):
    """With L_i = (w_i - t_i)² / 2 the gradient of loss and penalty is linear, so its root solves a linear system."""
    targets = torch.tensor([[1.0], [3.0]], dtype=torch.float64)

    def gradient(w):
        return w - targets + eta * torch.stack(disagreement(w, laplacian(PAIR)))

    zero = torch.zeros_like(targets)
    columns = [gradient(unit[:, None]) - gradient(zero) for unit in torch.eye(2, dtype=torch.float64)]
    found = torch.linalg.solve(torch.cat(columns, 1), -gradient(zero))
    assert_close(found[:, 0], torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_pull_is_the_gradient_of_the_penalty_and_has_the_sum_zero():
    torch.manual_seed(0)
    graph = [[0, 2, 0.5], [2, 0, 0], [0.5, 0, 0]]
    w = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    penalty = sum(graph[i][j] * (w[i] - w[j]).square().sum() for i in range(3) for j in range(3)) / 4
    (wanted,) = torch.autograd.grad(penalty, w)
    found = torch.stack(disagreement(w.detach(), laplacian(graph)))
    assert_close(found, wanted)
    assert_close(found.sum(0), torch.zeros(4, 5, dtype=torch.float64))


def weights(form, eta, folder, steps):
    """Returns the trunks (2, P) of two tasks after plain gradient descent at the rate 0.05."""
    spec = toy_spec("graph_mtl", steps=steps, ragged=False, clip=0, arguments={"form": form, "eta": eta}, tasks=TWO)
    spec.optimiser.update({"lr": 0.05, "name": "sgd", "momentum": 0.0, "weight_decay": 0.0})
    found = trained(spec, str(folder))
    names = [[n for n in found if n.startswith(("network.encoders." + t, "network.necks." + t))] for t in spec.tasks]
    return torch.stack([torch.cat([found[n].flatten() for n in sorted(own)]) for own in names])


def test_the_combination_follows_the_step_and_keeps_the_sum(tmp_path):
    free = weights("atc", 0.0, tmp_path / "free", 1)
    found = weights("atc", 5.0, tmp_path / "atc", 1)
    assert_close(found, free - 0.25 * (free - free.flip(0)))
    assert_close(found.sum(0), free.sum(0))
    assert (found - free).abs().max() > 1e-4


def test_without_a_pull_a_column_is_the_run_of_its_task_alone(tmp_path):
    def found(name, tasks, **arguments):
        spec = toy_spec(name, steps=3, ragged=False, clip=0, tasks=tasks, arguments=arguments)
        return trained(spec, str(tmp_path / name))

    columns, alone = found("graph_mtl", TWO, eta=0.0), found("single_task", TWO[:1])
    for name, value in alone.items():
        if name.startswith("network."):
            own = name.replace(".encoder.", ".encoders.far.").replace(".neck.", ".necks.far.")
            assert_close(columns[own], value, rtol=0, atol=1e-12)


def test_the_penalty_is_part_of_the_gradient(tmp_path):
    """Columns start alike, so that the penalty acts from the second step on, at the weights before that step."""
    one = weights("penalty", 0.0, tmp_path / "one", 1)
    assert torch.equal(weights("penalty", 5.0, tmp_path / "pulled", 1), one)
    two = weights("penalty", 0.0, tmp_path / "two", 2)
    assert_close(weights("penalty", 5.0, tmp_path / "both", 2), two - 0.25 * (one - one.flip(0)))


def test_the_distance_of_columns_is_recorded():
    method = made("graph_mtl", tasks={name: TASKS[name] for name in ("depth", "normals")})
    assert float(method.diagnostics()["graph/distance"]) == 0
    with torch.no_grad():
        for p in method.network.trunk("depth"):
            p += 2.0
    assert float(method.diagnostics()["graph/distance"]) == pytest.approx(1.0)


# ---- graphs ---------------------------------------------------------------------------------------------------------


def test_named_graphs():
    assert named_graph("complete", 3) == named_graph("ring", 3) == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert named_graph("ring", 4) == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert named_graph("ring", 2) == named_graph("complete", 2) == PAIR
    assert named_graph("ring", 1) == named_graph("complete", 1) == [[0.0]]
    assert laplacian(named_graph("ring", 4))[0].tolist() == [2, -1, 0, -1]


def test_the_affinity_graph_is_the_sparsest_connected_one():
    affinity = [[9, 0.4, -0.2], [0.2, 9, 0.1], [-0.4, 0.1, 9]]  # means 0.3, -0.3 and 0.1
    assert affinity_graph(affinity) == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert affinity_graph(affinity, 0.2) == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert affinity_graph(affinity, -1) == named_graph("complete", 3)


def test_the_plan_measures_affinities_before(tmp_path):
    spec = toy_spec("graph_mtl", tasks=["kind", "shape", "far"]).with_method(
        registry.record("graph_mtl", graph="affinity")
    )
    plan = GraphMTL.plan(spec)
    (probe,) = next(plan)
    assert probe.method == registry.record("inter_task_affinity")
    table = [[0, 2, 0], [2, 0, 1], [0, 1, 0]]
    (run,) = plan.send([{"summary": {"affinity": table}}])
    assert run.method["arguments"] == {
        "eta": 1.0, "form": "atc", "graph": [[0, 1, 0], [1, 0, 1], [0, 1, 0]], "threshold": None
    }  # fmt: skip
    with pytest.raises(StopIteration) as end:
        plan.send([{}])
    assert end.value.value == dict.fromkeys(spec.tasks, run.run_id)
    with pytest.raises(MethodError, match="follows the method's plan"):
        made("graph_mtl", graph="affinity")


UNMEASURED = [[None, 2, None], [2, None, 1], [None, 1, None]]


@pytest.mark.parametrize(("affinity", "threshold", "message"), [
    ([[0, 2, 1], [2, 0, 1], [1, 1, 0]], 3.0, "must be connected.*lower `threshold`"),
    (UNMEASURED, None, "a finite affinity. inter_task_affinity has none for far → kind, kind → far.*Train longer"),
    ([[float("nan")] * 3] * 3, None, "a finite affinity"),
    (None, None, "must hold an affinity table of 3 × 3 tasks. Found None"),
])  # fmt: skip
def test_affinities_that_give_no_graph_are_told(affinity, threshold, message):
    spec = toy_spec("graph_mtl", tasks=["kind", "shape", "far"]).with_method(
        registry.record("graph_mtl", graph="affinity", threshold=threshold)
    )
    plan = GraphMTL.plan(spec)
    next(plan)
    with pytest.raises(MethodError, match=message):
        plan.send([{"summary": {"affinity": affinity}}])


@pytest.mark.parametrize(("options", "message"), [
    ({"threshold": 0.5}, "threshold=0.5 with graph='complete'. Set graph to affinity"),
    ({"graph": []}, "symmetric 3 x 3"),
    ({"graph": [[0, float("nan"), 1], [float("nan"), 0, 1], [1, 1, 0]]}, "finite weights"),
    ({"graph": [[0, 1, 0], [1, 0, 0], [0, 0, 0]]}, "must be connected"),
    ({"graph": [[0, 1, 1], [1, 0, 1], [0, 1, 0]]}, "symmetric 3 x 3"),
    ({"graph": [[0, 1], [1, 0]]}, "symmetric 3 x 3"),
    ({"graph": [[1, 1, 1], [1, 0, 1], [1, 1, 0]]}, "zeros on the diagonal"),
    ({"graph": [[0, -1, 1], [-1, 0, 1], [1, 1, 0]]}, "weights >= 0"),
    ({"graph": [[0, "a"]]}, "symmetric 3 x 3"),
    ({"graph": "star"}, "complete, ring"),
    ({"form": "cta"}, "atc"),
    ({"eta": -1.0}, "eta must be"), ({"eta": float("nan")}, "eta must be"),
    ({"eta": 400.0}, "Set eta to at most 333"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(MethodError, match=message) as caught:
        made("graph_mtl", **options)
    assert "\n" not in str(caught.value)


# ---- one task per rank ----------------------------------------------------------------------------------------------


def agent_weights(form, eta, name, lr, steps):
    """Trains this rank's column in a process group; returns its trunk as one vector."""
    from mtlbench import distributed

    task = ToyData.TASKS[TWO[distributed.rank()]]
    spec = toy_spec("graph_mtl")
    torch.manual_seed(seed_of("weights", 0))
    net = GraphNetwork({task.name: task}, **spec.model).double()
    optimiser = {**DEFAULT_OPTIMISER, "lr": lr, "name": name, "momentum": 0.9, "weight_decay": 0.01}
    agent = GraphAgent(net, task, PAIR, TWO, optimiser, eta=eta, form=form)
    data = ToyData(ragged=False, size=8 * steps, tasks={n: ToyData.TASKS[n] for n in TWO})
    samples, collate = data.samples("train"), Collate(data.tasks)
    for step in range(steps):
        batch = collate([samples[i] for i in range(8 * step, 8 * step + 8)])
        agent.step(batch["image"], batch["targets"][task.name])
    return torch.cat([p.detach().flatten() for p in net.trunk(task.name)])


@pytest.mark.parametrize(("form", "optimiser"), [("atc", "adamw"), ("penalty", "sgd")])
def test_one_task_per_rank_equals_the_centralised_form(form, optimiser, pool, tmp_path):
    spec = toy_spec("graph_mtl", steps=6, ragged=False, clip=0, tasks=TWO, arguments={"form": form, "eta": 5.0})
    spec.optimiser.update({"lr": 0.02, "name": optimiser, "momentum": 0.9, "weight_decay": 0.01})
    central = trained(spec, str(tmp_path))
    agents = pool.call(agent_weights, form, 5.0, optimiser, 0.02, 6)
    torch.manual_seed(seed_of("weights", 0))
    net = GraphNetwork({n: ToyData.TASKS[n] for n in TWO}, **spec.model).double()
    start = torch.cat([p.detach().flatten() for p in net.trunk("far")])
    net.load_state_dict({k.removeprefix("network."): v for k, v in central.items() if k.startswith("network.")})
    for task, agent in zip(TWO, agents, strict=True):
        own = torch.cat([p.detach().flatten() for p in net.trunk(task)])
        assert_close(agent, own, atol=1e-6, rtol=0)
        assert (own - start).abs().max() > 1e-3
    assert (agents[0] - agents[1]).abs().max() > 1e-4


def test_agents_need_a_rank_each():
    net = GraphNetwork({"far": ToyData.TASKS["far"]}, **toy_spec("graph_mtl").model)
    with pytest.raises(MethodError, match="one process per task|rank of its own"):
        GraphAgent(net, ToyData.TASKS["far"], PAIR, TWO, DEFAULT_OPTIMISER)
