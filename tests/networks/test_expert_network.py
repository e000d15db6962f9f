"""The network with experts: who owns what, tasks together or one by one, and what routing leaves behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.errors import MethodError, SuiteError
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.experts import GATES, ExpertLayer
from mtlbench.networks.experts import network as expert_network
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.trunk import ExpertOptions
from mtlbench.networks.flops import forward_flops
from mtlbench.tasks import Classification, Depth, Normals
from mtlbench.testing import check_network

TASKS = {"depth": Depth("depth"), "normals": Normals("normals"), "kind": Classification("kind")}
MODEL = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_options": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "decoder_channels": 8,
    "image_size": [16, 24],
}
FORMS = {
    "mlp": {"placement": "every"},
    "attention": {"placement": "none", "attention_placement": "every", "attention_experts": 3},
    "mod_squad": {"attention_placement": "even", "gate": "per_task", "task_tokens": 1.0},
    "late": {"placement": [2]},
    "agnostic": {"gate": "agnostic"},
    "raw": {"gate": "per_task", "renormalise": False},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(model=MODEL, **options):
    if options.get("gate") == "description":
        options["descriptions"] = {task: torch.randn(3).tolist() for task in TASKS}
    return ExpertNetwork(TASKS, ExpertOptions(**{"experts": 4, "placement": "every", **options}), **model)


def images(batch=2):
    return torch.randint(0, 256, (batch, 3, 16, 24), dtype=torch.uint8)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("tokens", [0.0, 0.02])
def test_ownership_is_the_partition_that_gradients_show(gate, tokens):
    net = network(gate=gate, task_tokens=tokens, attention_placement=[1])
    assert check_network(net, TASKS) is None
    owned = 1 + (tokens > 0) + (4 if gate in ("task", "token_task", "per_task") else 0)
    assert len(net.task_modules("depth")) == owned


@pytest.mark.parametrize("form", FORMS)
def test_tasks_together_equal_tasks_one_by_one_in_all_gradients(form, monkeypatch):
    net, image = network(**FORMS[form]).double(), images()
    found = []
    for separate, tokens in ((False, 4096), (True, 4096), (False, 30)):  # 30 tokens: two tasks at a time
        net.separate = separate
        monkeypatch.setattr(expert_network, "TOKENS_PER_PASS", tokens)
        outputs = net(image, list(TASKS))
        total = sum(p.square().sum() for p in outputs.predictions.values())
        total = total + sum(s.probability.square().sum() for s in outputs.statistics["experts"].values())
        net.zero_grad()
        total.backward()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        found.append([*outputs.predictions.values(), *gradients])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_a_task_is_predicted_alike_alone_and_among_others(form):
    net, image = network(**FORMS[form]).eval(), images()
    together = net(image, list(TASKS))
    for row, task in enumerate(TASKS):
        alone = net(image, [task])
        torch.testing.assert_close(alone.predictions[task], together.predictions[task])
        for name, layer in alone.statistics["experts"].items():
            torch.testing.assert_close(layer.probability[0], together.statistics["experts"][name].probability[row])


def test_shapes_and_statistics():
    outputs = network(attention_placement=[0], attention_experts=6, attention_top_k=3)(images(), ["kind", "depth"])
    assert {k: tuple(v.shape) for k, v in outputs.predictions.items()} == {"kind": (2, 2), "depth": (2, 1, 16, 24)}
    layers = outputs.statistics["experts"]
    assert list(layers) == ["block0.attention", "block0.mlp", "block1.mlp", "block2.mlp"]
    for name, layer in layers.items():
        assert layer.probability.shape == layer.load.shape == (2, 6 if "attention" in name else 4)
        assert layer.probability.requires_grad and not layer.load.requires_grad
        torch.testing.assert_close(layer.load.sum(1), torch.ones(2))


def test_what_no_task_changes_runs_once():
    """Counted: with experts in the last block alone, three tasks cost much less than three times one."""
    costs = {}
    for placement in ("every", [2]):
        net = network(placement=placement)
        for tasks in (list(TASKS), ["depth"]):
            with FlopCounterMode(display=False) as counter:
                net.encoder.finish(net.encoder.begin(images())[0], tasks)
            costs[str(placement), len(tasks)] = counter.get_total_flops()
    assert costs["every", 3] > 2.3 * costs["every", 1]
    assert costs["[2]", 3] < 2 * costs["[2]", 1]


def test_a_gate_that_does_not_see_the_task_shares_all_features():
    outputs = network(gate="agnostic")(images(), list(TASKS))
    assert outputs.representation.shape[0] == 2
    assert network(gate="token_task")(images(), list(TASKS)).representation is None


def test_one_expert_of_full_width_is_the_dense_network():
    """Upcycled from the dense encoder, one expert: nothing has changed."""
    torch.manual_seed(3)
    dense = DenseNetwork(TASKS, **MODEL)
    torch.manual_seed(3)
    sparse = network(experts=1, top_k=1, init="copy", gate="agnostic", renormalise=True)
    sparse.neck.load_state_dict(dense.neck.state_dict())
    for block, other in zip(sparse.encoder.blocks, dense.encoder.trunk.model.blocks, strict=True):
        block.attn.load_state_dict(other.attn.state_dict())
    image = images()
    for task in TASKS:
        sparse.heads[task].load_state_dict(dense.heads[task].state_dict())
        torch.testing.assert_close(sparse(image, [task]).predictions[task], dense(image, [task]).predictions[task])


def test_float64_bfloat16_and_copies():
    net, image = network(attention_placement="every").eval(), images()
    single = net(image, ["depth"]).predictions["depth"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(image, ["depth"]).predictions["depth"]
    assert low.dtype == torch.float32 and (low - single).abs().max() < 0.1 * single.abs().max()
    double = copy.deepcopy(net).double()(image, ["depth"]).predictions["depth"]
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("placement", "found"), [("every", [0, 1, 2]), ("odd", [1]), ("even", [0, 2]), ([0, 2], [0, 2])]
)
def test_placement_and_width(placement, found):
    net = network(placement=placement, top_k=4)
    blocks = net.encoder.blocks
    assert [i for i, block in enumerate(blocks) if isinstance(block.mlp, ExpertLayer)] == found
    assert blocks[found[0]].mlp.experts.weight1.shape == (4, 32, 128 // 4)


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch32_clip_224"]
)
def test_other_plain_transformers(name):
    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    net = network({**MODEL, "encoder": name, "encoder_options": options}, attention_placement=[0])
    net(images(), list(TASKS)).predictions["depth"].sum().backward()
    assert net.encoder.blocks[1].mlp.experts.weight1.grad.any()


@pytest.mark.parametrize("name", ["test_resnet", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_other_encoders_are_refused(name):
    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} if "eva" in name else {}
    size = [224, 224] if "swin" in name else [16, 24]
    with pytest.raises(SuiteError, match="plain vision transformer"):
        network({**MODEL, "encoder": name, "encoder_options": options, "image_size": size})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": [3]}, "3 blocks"),
        ({"placement": [1, 1]}, "each at most once"),
        ({"placement": "alternate"}, "Unknown placement"),
        ({"attention_placement": "evn"}, "Did you mean 'even'"),
        ({"placement": "none"}, "At least one block"),
        ({"top_k": 5}, "top_k=5, experts=4"),
        ({"task_tokens": -1.0}, "standard deviation"),
        ({"init": "splitt"}, "Did you mean 'split'"),
        ({"init": "split", "experts": 3}, "multiple of top_k"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(MethodError, match=message):
        network(**options)


def sizes(net):
    """Parameters of blocks, and of routers among them."""
    routers = sum(p.numel() for router in net.routers for p in router.parameters())
    return sum(p.numel() for p in net.encoder.blocks.parameters()) - routers, routers


def test_parameters_of_the_paper_s_base_model():
    """185.2 M weights in blocks (185.4 M with biases and norms) and 2.4 M in routers, by formula and in fact."""
    tasks = {f"t{i}": Depth(f"t{i}") for i in range(13)}
    model = {**MODEL, "encoder": "vit_base_patch16_224", "encoder_options": {}, "image_size": [32, 32]}
    options = ExpertOptions(16, 4, "odd", attention_placement="even", gate="per_task", task_tokens=0.02)
    net = ExpertNetwork(tasks, options, **model)
    width, hidden, experts, head = 768, 3072, 16, 128
    dense_mlp, dense_attention = 2 * width * hidden, 4 * width * width
    moe_mlp, moa = experts * 2 * width * hidden // 4, 24 * 2 * width * head + width * 2 * head
    weights = 6 * (moa + dense_mlp) + 6 * (dense_attention + moe_mlp)
    biases = 6 * (2 * head + hidden + width) + 6 * (4 * width + experts * (hidden // 4 + width))
    norms, routers = 12 * 2 * 2 * width, 13 * 6 * width * (24 + 16)
    assert sizes(net) == (weights + biases + norms, routers)
    assert round(weights / 1e6, 1) == 185.2 and round(routers / 1e6, 1) == 2.4


def dense_macs(tokens, width):
    """Of one transformer block with an MLP of four times the width."""
    return tokens * 12 * width * width + 2 * tokens * tokens * width


def test_active_flops_by_formula():
    """A task costs what the dense network costs, plus routers, second biases, and attention of twice the width."""
    model = {**MODEL, "image_size": [32, 48]}
    width, tokens, heads, experts = 32, 25, 2, 8
    dense = DenseNetwork(TASKS, **model)
    options = ExpertOptions(experts, 4, [1], attention_placement=[0], gate="per_task")
    sparse = ExpertNetwork(TASKS, options, **model)
    image = torch.zeros(1, 3, 32, 48, dtype=torch.uint8)
    whole, found = (forward_flops(net, image, ["depth"]) / 2 for net in (dense, sparse))
    head, chosen, every = 2 * width // heads, heads, 2 * heads
    projections = tokens * (2 * chosen * width * head + width * 2 * head)
    attention = (
        projections + 2 * chosen * tokens * tokens * head - (tokens * 4 * width * width + 2 * tokens * tokens * width)
    )
    extra = attention + tokens * width * every + 2 * tokens * width * experts
    assert found == whole + extra
    patch = 3 * 8 * 8 * width * (tokens - 1)
    assert whole > 3 * dense_macs(tokens, width) + patch


ROUTERS = {"moe": {"gate": "agnostic"}, "task_moe": {}, "m3vit": {"gate": "per_task"}, "marked": {"task_tokens": 0.02}}


def drawn(tasks=TASKS, **options):
    """Returns the initial weights of a network with experts by name."""
    torch.manual_seed(5)
    options = {"experts": 4, "top_k": 2, "placement": [1], "attention_placement": [2], **options}
    return dict(ExpertNetwork(tasks, ExpertOptions(**options), **MODEL).named_parameters())


@pytest.mark.parametrize("name", ROUTERS)
def test_modules_that_networks_share_start_from_the_same_weights(name):
    """Encoder, neck and heads are those of the dense network, and experts do not depend on the gate."""
    torch.manual_seed(5)
    dense = {
        key.replace("encoder.", "encoder.encoder.", 1): value
        for key, value in DenseNetwork(TASKS, **MODEL).named_parameters()
    }
    found, other = drawn(**ROUTERS[name]), drawn(gate="task")
    common = [key for key in dense if key in found]
    assert {key.split(".")[0] for key in common} == {"encoder", "neck", "heads"} and len(common) > 40
    assert all(torch.equal(found[key], dense[key]) for key in common)
    # Experts, and what two gates have in common of a router.
    both = [key for key in found if key in other and (".experts." in key or ".router." in key)]
    assert len(both) >= 8 and all(torch.equal(found[key], other[key]) for key in both)


def test_experts_do_not_depend_on_other_blocks_and_what_a_task_owns_not_on_other_tasks():
    all_blocks = {"placement": "every", "attention_placement": "none", "gate": "per_task"}
    whole, one = drawn(**all_blocks, task_tokens=0.02), drawn(**{**all_blocks, "placement": [1]}, task_tokens=0.02)
    alone = drawn({"normals": TASKS["normals"]}, **all_blocks, task_tokens=0.02)
    for part in (one, alone):
        keys = [key for key in part if key in whole]
        assert any(".experts.weight1" in key for key in keys)
        assert all(torch.equal(part[key], whole[key]) for key in keys)
    assert any("router.matrices.normals" in key for key in alone)
    # Different places and tasks do differ.
    first, second = (whole[f"encoder.encoder.trunk.model.blocks.{i}.mlp.experts.weight1"] for i in (0, 1))
    assert not torch.equal(first, second)
    rows = [value for key, value in whole.items() if "blocks.1.mlp.router.matrices" in key]
    assert len(rows) == len(TASKS) and not torch.equal(rows[0], rows[1])
