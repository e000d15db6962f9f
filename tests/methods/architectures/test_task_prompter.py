"""TaskPrompter: prompts among the tokens, attention to places and channels, and exchange of tasks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mtlbench.errors import MethodError
from mtlbench.methods.architectures.task_prompter import TaskPrompter
from mtlbench.networks.task_prompter import PromptedMap
from mtlbench.testing import check_network
from tests.support import network_checks as arch

STEM = {"encoder": "stem_vit_tiny", "encoder_options": {"embed_dim": 32, "depth": 3, "num_heads": 2}}


def network(tasks=None, **options):
    changes = options.pop("model", {})
    return arch.network(TaskPrompter, {**arch.model("vit"), **changes}, tasks, **options)


@pytest.mark.parametrize("model", [{}, STEM], ids=["vit", "stem"])
def test_shapes_and_ownership(model):
    net = network(model=model)
    arch.assert_shapes(net, arch.TASKS, (32, 48))
    arch.assert_partition(net, arch.TASKS)
    assert check_network(net, arch.TASKS, arch.images()) is None
    arch.assert_subset_is_alike(net, arch.TASKS)


@pytest.mark.parametrize("tasks", [["semseg", "kind"], ["depth"], ["kind"]])
def test_ownership_in_small_networks(tasks):
    chosen = {name: arch.TASKS[name] for name in tasks}
    arch.assert_partition(network(chosen), chosen)


def test_precisions_and_cuts():
    net = network(prompts=2)
    arch.assert_precisions(net, arch.TASKS)
    arch.assert_cut_does_not_matter(net, arch.TASKS)


def test_a_map_is_read_by_places_and_channels():
    """Against loops over tasks, heads, places and channels."""
    torch.manual_seed(0)
    reader = PromptedMap(width=6, channels=4, places=3, heads=2).double()
    patches, prompts = torch.randn(1, 3, 6).double(), torch.randn(1, 2, 6).double()
    found = reader(patches, prompts, (1, 3))[0, :, :, 0]
    f = torch.stack([reader.project.weight[:, :, 0, 0] @ place for place in patches[0]], 1)
    keys = [reader.key(reader.norm(place)) for place in patches[0]]
    for t, prompt in enumerate(prompts[0]):
        query, r = reader.query(reader.norm(prompt)), reader.places(reader.norm(prompt))
        channels = torch.stack([r @ f[c] / math.sqrt(3) for c in range(4)]).softmax(0) * 4
        for c in range(4):
            own = slice(0, 2) if c < 2 else slice(2, 4)
            places = torch.stack([query[own] @ key[own] / math.sqrt(2) for key in keys]).softmax(0) * 3
            assert_close(found[t, c], places * f[c])
            assert_close(found[t, 4 + c], channels[c] * f[c])


def test_equal_scores_leave_the_map_as_it_is():
    reader = PromptedMap(width=6, channels=4, places=6, heads=1)
    for layer in (reader.query, reader.places):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    patches = torch.randn(2, 6, 6)
    found = reader(patches, torch.randn(2, 3, 6), (2, 3))
    plain = reader.project(patches.transpose(1, 2).unflatten(2, (2, 3)))
    assert_close(found, torch.cat([plain, plain], 1)[:, None].expand(-1, 3, -1, -1, -1))


def test_tasks_that_exchange_prompts_and_decoders_exchange_predictions():
    """Prompts have no position, so nothing but what a task owns tells it from another."""
    tasks = {name: arch.DENSE["depth"] for name in ("a", "b", "c")}
    net = network(tasks, prompts=2).eval()
    with torch.no_grad():
        before = net(arch.images(), list(tasks)).predictions
        for modules in (net.prompts, net.mixes, net.heads):
            modules["a"], modules["b"] = modules["b"], modules["a"]
        after = net(arch.images(), list(tasks)).predictions
    assert_close([after[name] for name in "bac"], [before[name] for name in "abc"], atol=1e-5, rtol=1e-5)
    assert (before["a"] - before["b"]).abs().max() > 1e-3


def test_prompts_of_a_task_reach_patches_and_the_other_tasks():
    net = network().eval()
    other = net.prompts["semseg"].tokens
    for task in ("depth", "kind"):
        value = net(arch.images(), [task]).predictions[task].square().sum()
        (gradient,) = torch.autograd.grad(value, other)
        assert gradient.abs().max() > 0
    with torch.no_grad():
        (patches, prompts, grid), *_ = net._encoded(arch.images())[0]
        other.add_(1.0)
        (moved, _, _), *_ = net._encoded(arch.images())[0]
    assert patches.shape == (2, 24, 32) and prompts.shape == (2, 4, 32) and grid == (4, 6)
    assert (moved - patches).abs().amax(2).min() > 0


@pytest.mark.parametrize(("options", "message"), [
    ({"prompts": 0}, "at least 1.* Found 0, 2 and 8. The defaults"), ({"heads": 3}, "decoder_channels. Found 1, 3"),
    ({"heads": 0}, "Found 1, 0"),
    ({"model": {"encoder": "resnet18", "encoder_options": {}}}, "plain vision transformer. Found .*vit_"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(MethodError, match=message):
        network(**options)
