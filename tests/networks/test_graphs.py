"""Message passing on graphs: one step by hand, padding, order of nodes, edgeless graphs and wrong inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlbench.errors import DataError, SuiteError
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.networks.graphs import EdgeConvolution, GraphEncoder, Set2Set
from mtlbench.tasks import Depth, Regression
from mtlbench.tasks.inputs import GRAPHS, input_fault, stacked

SIZES = {"nodes": 6, "node_features": 3, "edge_features": 2}
MODEL = {"encoder": "graph:nnconv", "encoder_options": {"width": 6, "hidden": 5}, "inputs": SIZES}


def graph(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "nodes": torch.randn(size, 3, generator=generator, dtype=torch.float64),
        "edges": torch.randn(size, size, 2, generator=generator, dtype=torch.float64),
        "linked": torch.rand(size, size, generator=generator) < 0.6,
    }


def batch(*graphs):
    return stacked([{"inputs": each, "id": str(number)} for number, each in enumerate(graphs)])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DenseNetwork({"a": Regression("a"), "b": Regression("b")}, **MODEL).double()


def outputs(network, inputs):
    return torch.cat(list(network(inputs, ["a", "b"]).predictions.values()), 1)


def test_one_step_by_hand():
    """Width 1, one hidden unit: W(e) = 3 relu(2 e) + 1, the root 10 x + 0.5. Node 0 hears 1 and 2, node 1 hears 0."""
    layer = EdgeConvolution(1, 1, 1)
    values = {"edge.weight": 2.0, "edge.bias": 0.0, "matrix.weight": 3.0, "matrix.bias": 1.0}
    values |= {"root.weight": 10.0, "root.bias": 0.5}
    for name, value in values.items():
        nn.init.constant_(layer.get_parameter(name), value)
    nodes = torch.tensor([[[1.0], [2.0], [4.0]]])
    edges = torch.zeros(1, 3, 3, 1)
    edges[0, 0, 1], edges[0, 0, 2], edges[0, 1, 0] = 1.0, -1.0, 0.5
    linked = torch.zeros(1, 3, 3, dtype=torch.bool)
    linked[0, 0, 1] = linked[0, 0, 2] = linked[0, 1, 0] = True
    # Node 0: (2 (3 · 2 + 1) + 4 (3 · 0 + 1)) / 2 + 10.5 = 19.5. Node 1: 1 (3 · 1 + 1) + 20.5. Node 2: 0 + 40.5.
    found = layer(nodes, layer.coefficients(edges, linked))
    assert torch.equal(found, torch.tensor([[[19.5], [24.5], [40.5]]]))


def test_messages_equal_those_with_a_matrix_per_edge():
    torch.manual_seed(1)
    layer = EdgeConvolution(4, 2, 3).double()
    one = graph(5)
    x, edges, linked = torch.randn(5, 4).double(), one["edges"], one["linked"]
    matrices = layer.matrix(layer.edge(edges).relu()).view(5, 5, 4, 4)  # [i, j, input, output]
    sums = torch.einsum("ij,jd,ijdo->io", linked.double(), x, matrices)
    wanted = layer.root(x) + sums / linked.sum(1, keepdim=True).clamp(min=1)
    found = layer(x[None], layer.coefficients(edges[None], linked[None]))[0]
    assert torch.allclose(found, wanted, atol=1e-12)


def test_attention_by_hand():
    """With zero weights the questions are 0, all scores are equal, and the answer is the mean of the nodes."""
    readout = Set2Set(2, 3)
    for parameter in readout.parameters():
        nn.init.zeros_(parameter)
    nodes = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    found = readout(nodes, torch.tensor([[True, True, False]]))
    assert torch.equal(found, torch.tensor([[0.0, 0.0, 2.0, 4.0]]))


def test_the_readout_equals_torchs_lstm():
    torch.manual_seed(2)
    readout = Set2Set(3, 2).double()
    nodes = torch.randn(2, 4, 3).double()
    lstm = nn.LSTM(6, 3).double()
    for name, value in readout.cell.named_parameters():
        lstm.get_parameter(f"{name}_l0").data.copy_(value)
    read, state = torch.zeros(1, 2, 6).double(), None
    for _ in range(2):
        question, state = lstm(read, state)
        weights = torch.einsum("bnd,bd->bn", nodes, question[0]).softmax(1)
        read = torch.cat([question[0], torch.einsum("bn,bnd->bd", weights, nodes)], 1)[None]
    assert torch.allclose(readout(nodes, torch.ones(2, 4, dtype=torch.bool)), read[0], atol=1e-12)


def test_the_order_of_nodes_does_not_matter(network):
    one = graph(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = {
        "nodes": one["nodes"][order],
        "edges": one["edges"][order][:, order],
        "linked": one["linked"][order][:, order],
    }
    found = outputs(network, batch(one, other))
    assert torch.allclose(found[0], found[1], atol=1e-12)
    other["edges"] = other["edges"].transpose(0, 1)  # The reverse edges: another graph.
    assert not torch.allclose(outputs(network, batch(other))[0], found[0], atol=1e-6)


def test_padding_does_not_matter(network):
    graphs = [graph(1), graph(4, 1), graph(6, 2)]
    together = outputs(network, batch(*graphs))
    alone = torch.cat([outputs(network, batch(each)) for each in graphs])
    assert torch.allclose(together, alone, atol=1e-12)


def test_a_node_without_edges_has_a_prediction_and_gradients(network):
    one = graph(1)
    one["linked"][:] = False
    outputs(network, batch(one)).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert gradients["encoder.message.matrix.weight"].abs().sum() == 0
    assert gradients["encoder.message.root.weight"].abs().sum() > 0


def test_the_networks_of_the_papers_have_these_sizes():
    encoder = GraphEncoder((11, 5), width=64, hidden=128, steps=3, readouts=3)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_children()}
    assert counts["embed"] == 12 * 64 and counts["update"] == 2 * 3 * (64 * 64 + 64)
    assert counts["message"] == 6 * 128 + 129 * 64 * 64 + 65 * 64
    assert counts["readout"] == 4 * 64 * (128 + 64 + 2)


def test_an_example_counts_the_largest_graph():
    family, model = family_of("graph:nnconv"), Model(**MODEL)
    example = family.example(model, 2)
    family.check(example)
    assert example["nodes"].shape == (2, 6, 3) and int(example["linked"].sum()) == 2 * 6 * 5


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"encoder": "graph:other"}, "graph"),
    ({"encoder_options": {"widht": 3}}, "widht"),
    ({"encoder_options": {"steps": 0}}, "steps .* whole number from 1. Found 0"),
    ({"encoder_options": {"steps": True}}, "Found True"),
    ({"weights": "some"}, "no pretrained weights"),
    ({"inputs": {"features": 3}}, "sizes of its graphs"),
])  # fmt: skip
def test_wrong_models_are_refused(changes, message):
    with pytest.raises(SuiteError, match=message):
        DenseNetwork({"a": Regression("a")}, **{**MODEL, **changes})


def test_dense_tasks_are_refused():
    with pytest.raises(SuiteError, match="takes graphs"):
        DenseNetwork({"far": Depth("far")}, **MODEL)


def test_wrong_batches_are_refused(network):
    family = family_of("graph:nnconv")
    right = batch(graph(3), graph(2))
    family.check(right)
    empty = {**right, "mask": right["mask"] & torch.tensor([[True], [False]])}
    for wrong, message in (
        (torch.zeros(2, 3), "Found Tensor"),
        ({key: right[key] for key in ("nodes", "edges", "mask")}, "Found nodes, edges, mask"),
        ({**right, "linked": right["linked"].float()}, "linked: torch.float32"),
        ({**right, "edges": right["edges"][:, :1]}, r"edges: torch.float64 \(2, 1, 3, 2\)"),
        (empty, "Graph 1 of the batch has none"),
    ):
        with pytest.raises(DataError, match=message):
            family.check(wrong)
    with pytest.raises(DataError, match="takes 3 features per node and 2 per edge. Found 2 and 2"):
        network({**right, "nodes": right["nodes"][..., :2]}, ["a"])


def test_wrong_samples_are_refused():
    assert input_fault({"inputs": graph(2)}, GRAPHS) is None
    for key, value in (("nodes", torch.zeros(0, 3)), ("edges", torch.zeros(2, 3, 2)), ("linked", torch.ones(2, 2))):
        assert "a graph is a mapping with `nodes`" in str(input_fault({"inputs": {**graph(2), key: value}}, GRAPHS))
    with pytest.raises(DataError, match="one size"):
        batch(graph(2), {**graph(2), "nodes": torch.zeros(2, 4).double()})
