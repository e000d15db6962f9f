"""InvPT: attention over all tasks, stages, and its method."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.methods.architectures.invpt import InvPT
from mtlbench.networks.invpt import JointAttention
from tests.support import network_checks as arch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", arch.SIZES)
@pytest.mark.parametrize("kind", arch.MODELS)
def test_shapes_and_preliminary_predictions(kind, size):
    net = arch.network(InvPT, arch.model(kind, size), auxiliary=0.5)
    arch.assert_shapes(net, arch.TASKS, size)
    auxiliary = net(arch.images(size=size), ["kind", "depth"]).auxiliary
    assert list(auxiliary) == ["depth"] and [weight for weight, _ in auxiliary["depth"]] == [0.5]
    arch.assert_subset_is_alike(net, arch.TASKS, size)


@pytest.mark.parametrize("tasks", [list(arch.TASKS), ["semseg", "kind"], ["depth"], ["kind"]])
def test_ownership_is_the_partition_that_gradients_show(tasks):
    chosen = {name: arch.TASKS[name] for name in tasks}
    arch.assert_partition(arch.network(InvPT, arch.model("vit"), chosen), chosen)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_encoders_with_fewer_maps(depth):
    options = {**arch.SMALL_VIT["encoder_options"], "depth": depth}
    arch.assert_partition(arch.network(InvPT, arch.model("vit", encoder_options=options)), arch.TASKS)


def test_precisions_and_cuts():
    net = arch.network(InvPT, arch.model("vit"))
    arch.assert_cut_does_not_matter(net, arch.TASKS)
    arch.assert_precisions(net, arch.TASKS)


# ---- attention ------------------------------------------------------------------------------------------------------


def test_attention_is_over_the_tokens_of_all_tasks():
    attention = JointAttention(8, 2, 2, first=True)
    x = torch.randn(2, 3, 8, 4, 6)
    out, scores = attention(x, None)
    assert out.shape == x.shape
    assert scores.shape == (2, 2, 3, 2, 3, 3 * 2 * 3)  # B, heads, T, h/2, w/2, T·(h/2)·(w/2)
    # Changing one place of one task changes the others' maps everywhere.
    other = x.clone()
    other[:, 2, :, 0, 0] += torch.randn(8)
    assert ((attention(other, None)[0] - out)[:, 0].abs().amax(1) > 0).all()


def slow(attention, x, previous=None):
    """The same for one image and pooling by 2, query by query and head by head."""
    tasks, channels, height, width = x.shape
    means = {
        (t, i, j): attention.norm(x.movedim(1, -1))[t, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1))
        for t in range(tasks)
        for i in range(height // 2)
        for j in range(width // 2)
    }
    wide = channels // attention.heads
    result = {}
    for place, token in means.items():
        parts = []
        for head in range(attention.heads):
            own = slice(head * wide, (head + 1) * wide)
            scores = torch.stack(
                [attention.query(token)[own] @ attention.key(other)[own] / math.sqrt(wide) for other in means.values()]
            )
            if previous is not None:
                scores = scores + attention.passing[head] * previous[(head, *place)]
            weights = scores.exp() / scores.exp().sum()
            parts.append(sum(w * attention.value(o)[own] for w, o in zip(weights, means.values(), strict=True)))
        result[place] = attention.out(torch.cat(parts))
    grid = torch.stack(list(result.values())).view(tasks, height // 2, width // 2, channels).movedim(-1, 1)
    return x + torch.nn.functional.interpolate(grid, scale_factor=2, mode="bilinear")


def test_attention_agrees_with_loops():
    attention = JointAttention(4, 2, 2, first=True).double()
    x = torch.randn(1, 2, 4, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(attention(x, None)[0][0], slow(attention, x[0]))


def test_scores_are_passed_on():
    attention = JointAttention(4, 2, 2, first=False).double()
    x = torch.randn(1, 2, 4, 4, 6, dtype=torch.float64)
    previous = torch.randn(1, 2, 2, 2, 3, 12, dtype=torch.float64)  # of the same grid: nothing to upsample
    attention.passing.data = torch.tensor([0.5, -2.0]).double()
    torch.testing.assert_close(attention(x, previous)[0][0], slow(attention, x[0], previous[0]))
    attention.passing.data.zero_()
    torch.testing.assert_close(attention(x, previous)[0], attention(x, None)[0])


def test_passed_scores_are_upsampled_over_the_queries_places():
    attention = JointAttention(4, 1, 4, first=False)
    for layer in (attention.query, attention.key):
        for p in layer.parameters():
            p.data.zero_()
    x = torch.randn(1, 2, 4, 4, 8)  # queries 2 x 4, keys 1 x 2 of two tasks
    previous = torch.randn(1, 1, 2, 1, 2, 4)
    _, scores = attention(x, previous)
    assert scores.shape == (1, 1, 2, 2, 4, 4)
    for task in range(2):
        for key in range(4):
            grown = torch.nn.functional.interpolate(previous[:, :, task, :, :, key], size=(2, 4), mode="bilinear")
            torch.testing.assert_close(scores[:, :, task, :, :, key], grown)


def test_three_stages_at_strides_16_8_4_halve_the_channels():
    net = arch.network(InvPT, arch.model("vit", decoder_channels=32))
    seen = []
    for stage in net.decoder.stages:
        stage.register_forward_hook(lambda _, inputs, output: seen.append(output))
    net(arch.images(), list(arch.TASKS))
    assert [tuple(maps.shape) for maps, _ in seen] == [(2, 3, 32, 2, 3), (2, 3, 16, 4, 6), (2, 3, 8, 8, 12)]
    keys = 3 * 1 * 2  # stride 32
    assert [tuple(scores.shape[2:]) for _, scores in seen] == [(3, 1, 2, keys), (3, 2, 3, keys), (3, 4, 6, keys)]


def test_without_attention_tasks_are_apart():
    net = arch.network(InvPT, arch.model("vit")).eval()
    maps = net.encoder(net.encoder.normalise(arch.images()))
    other = [p for p in net.decoder.initial["semseg"].parameters()]

    def depends():
        value = net.decoder(maps, ["depth"])[0]["depth"].square().sum()
        found = torch.autograd.grad(value, other, retain_graph=True, allow_unused=True)
        return any(g is not None and g.abs().max() > 0 for g in found)

    assert depends()
    for stage in net.decoder.stages:
        for p in stage.attention.out.parameters():
            p.data.zero_()
    assert not depends()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"divide.*decoder_channels=8.*\[8, 8, 8\].*heads=3"),
        ({"heads": 0}, "heads=0"),
        ({"auxiliary": -1.0}, "auxiliary"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(MethodError, match=message):
        arch.network(InvPT, arch.model("vit"), **options)
