"""The sparse network and its method."""

from __future__ import annotations

import copy

import pytest
import torch

from mtlbench.errors import MethodError, SuiteError
from mtlbench.method import MethodSpec
from mtlbench.methods.task_moe import TaskMoE
from mtlbench.networks.experts import GATES
from mtlbench.networks.moe import SparseMlp, TaskMoENetwork
from mtlbench.tasks import Classification, Depth, Normals

TASKS = {"depth": Depth("depth"), "normals": Normals("normals"), "kind": Classification("kind")}
MODEL = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_options": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "decoder_channels": 8,
    "image_size": [16, 24],
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network(**options):
    return TaskMoENetwork(TASKS, **{"experts": 4, "placement": "every", **options}, **MODEL)


def images(batch=2):
    return torch.randint(0, 256, (batch, 3, 16, 24), dtype=torch.uint8)


@pytest.mark.parametrize("gate", GATES)
def test_ownership_is_the_partition_that_gradients_show(gate):
    net = network(gate=gate)
    trainable = {id(p) for p in net.parameters() if p.requires_grad}
    reached = {}
    for task in TASKS:
        net.zero_grad(set_to_none=True)
        net(images(), [task]).predictions[task].square().sum().backward()
        reached[task] = {id(p) for p in net.parameters() if p.grad is not None}
    assert set.union(*reached.values()) == trainable
    for task in TASKS:
        others = set.union(*(reached[t] for t in TASKS if t != task))
        assert {id(p) for p in net.task_parameters(task)} == reached[task] - others
    assert {id(p) for p in net.shared_parameters(list(TASKS))} == set.intersection(*reached.values())
    assert len(net.task_modules("depth")) == (1 if gate == "agnostic" else 1 + 3)


def test_shapes_and_statistics():
    outputs = network(top_k=2)(images(), ["kind", "depth"])
    assert {k: tuple(v.shape) for k, v in outputs.predictions.items()} == {"kind": (2, 2), "depth": (2, 1, 16, 24)}
    layers = outputs.statistics["router"]
    assert len(layers) == 3
    for layer in layers:
        assert layer["probability"].shape == layer["load"].shape == (2, 4)
        assert layer["probability"].requires_grad and not layer["load"].requires_grad
        torch.testing.assert_close(layer["load"].sum(1), torch.ones(2))


def test_a_task_is_predicted_alike_alone_and_among_others():
    net = network().eval()
    image = images()
    together = net(image, list(TASKS)).predictions
    for task in TASKS:
        torch.testing.assert_close(net(image, [task]).predictions[task], together[task])


def test_float64_bfloat16_and_copies():
    net, image = network().eval(), images()
    single = net(image, ["depth"]).predictions["depth"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(image, ["depth"]).predictions["depth"].dtype == torch.float32
    double = copy.deepcopy(net).double()(image, ["depth"]).predictions["depth"]
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("placement", "found"), [("every", [0, 1, 2]), ("alternate", [1]), ([0, 2], [0, 2])])
def test_placement_and_width(placement, found):
    net = network(placement=placement, top_k=4)
    blocks = net.encoder.trunk.model.blocks
    assert [i for i, block in enumerate(blocks) if isinstance(block.mlp, SparseMlp)] == found
    assert blocks[found[0]].mlp.experts.weight1.shape == (4, 32, 128 // 4)


def test_other_transformers():
    for name in ("eva02_tiny_patch14_224", "beit_base_patch16_224"):
        options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        net = TaskMoENetwork(TASKS, experts=2, **{**MODEL, "encoder": name, "encoder_options": options})
        net(images(), list(TASKS)).predictions["depth"].sum().backward()
        assert net.encoder.trunk.model.blocks[1].mlp.experts.weight1.grad.any()


def test_what_cannot_be_is_refused():
    with pytest.raises(SuiteError, match="vision transformer"):
        TaskMoENetwork(TASKS, **{**MODEL, "encoder": "test_resnet", "encoder_options": {}})
    with pytest.raises(MethodError, match="3 blocks"):
        network(placement=[3])
    with pytest.raises(MethodError, match="'alternate'"):
        network(placement="altern")
    with pytest.raises(MethodError, match="top_k=5, experts=4"):
        network(top_k=5)
    with pytest.raises(MethodError, match="not its encoder"):
        network().encoder(torch.zeros(1, 3, 16, 24))
    with pytest.raises(MethodError, match="balance"):
        TaskMoE(MethodSpec(TASKS, MODEL), balance=-1.0)


def method(**options):
    made = TaskMoE(MethodSpec(TASKS, MODEL), **{"experts": 4, "balance": 0.5, **options})
    made.configure_model()
    return made


def test_the_regulariser_balances_the_mixture_also_over_streams():
    made, image = method(placement="every"), images()
    together = made.regularisation(made.network(image, list(TASKS)), {})["load_balance"]
    parts = [made.regularisation(made.network(image, [task]), {}) for task in TASKS]
    assert parts[:2] == [{}, {}]
    torch.testing.assert_close(parts[2]["load_balance"], together)
    layers = made.network(image, list(TASKS)).statistics["router"]
    expected = sum(4 * (layer["load"].mean(0) * layer["probability"].mean(0)).sum() for layer in layers)
    torch.testing.assert_close(together, 0.5 * expected)
    # An interrupted step leaves no trace.
    made.regularisation(made.network(image, ["depth"]), {})
    torch.testing.assert_close(made.regularisation(made.network(image, list(TASKS)), {})["load_balance"], together)


def test_the_regulariser_reaches_routers_and_balances_them():
    made, image = method(balance=1.0), images(8)
    parameters = [p for router in made.network.routers for p in router.parameters()]
    with torch.no_grad():
        router = made.network.routers[0]  # made to prefer its first expert for every task
        router.task.weight[0] += 0.1 * sum(e.vector for e in router.embeddings.values())
    values = []
    optimiser = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(20):
        (loss,) = made.regularisation(made.network(image, list(TASKS)), {}).values()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert all(p.grad is not None for p in parameters)
    assert values[-1] < values[0] - 0.1 and values[-1] > 0.95
