"""PAD-Net: its decoder and its method."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.methods.architectures.pad_net import PADNet
from tests.support import network_checks as arch


@pytest.mark.parametrize("size", arch.SIZES)
@pytest.mark.parametrize("kind", arch.MODELS)
def test_shapes_and_initial_predictions(kind, size):
    net = arch.network(PADNet, arch.model(kind, size), auxiliary=0.5)
    arch.assert_shapes(net, arch.TASKS, size)
    auxiliary = net(arch.images(size=size), ["kind", "depth"]).auxiliary
    assert list(auxiliary) == ["depth"] and [weight for weight, _ in auxiliary["depth"]] == [0.5]
    arch.assert_subset_is_alike(net, arch.TASKS, size)


@pytest.mark.parametrize("tasks", [list(arch.TASKS), ["semseg", "kind"], ["depth"], ["kind"]])
def test_ownership_is_the_partition_that_gradients_show(tasks):
    chosen = {name: arch.TASKS[name] for name in tasks}
    arch.assert_partition(arch.network(PADNet, arch.model("vit"), chosen), chosen)


def test_precisions_and_cuts():
    net = arch.network(PADNet, arch.model("vit"))
    arch.assert_cut_does_not_matter(net, arch.TASKS)
    arch.assert_precisions(net, arch.TASKS)


def parts(net):
    """Returns the encoder's maps and the features of all tasks."""
    maps = net.encoder(net.encoder.normalise(arch.images()))
    shared = net.decoder.neck(maps)
    return maps, {task: net.decoder.initial[task](shared) for task in arch.DENSE}


def test_zeroed_attention_is_the_identity():
    net = arch.network(PADNet, arch.model("vit")).eval()
    maps, features = parts(net)
    full = net.decoder(maps, ["depth"])[0]["depth"]
    for gate in net.decoder.distil.gates["depth"].values():  # σ → 0: no message passes
        gate.register_forward_hook(lambda _, inputs, output: torch.full_like(output, -torch.inf))
    found = net.decoder(maps, ["depth"])[0]["depth"]
    assert torch.equal(found, net.decoder.heads["depth"](features["depth"]))
    assert not torch.allclose(found, full)


def test_initial_and_final_predictions_read_what_they_should():
    net = arch.network(PADNet, arch.model("vit"))
    maps, features = parts(net)
    final, initial = net.decoder(maps, ["depth", "semseg"])
    assert torch.equal(initial["depth"][0], net.decoder.supervise["depth"](features["depth"]))
    refined = net.decoder.distil(features, "depth")
    assert torch.equal(final["depth"], net.decoder.heads["depth"](refined))
    # The final prediction of one task depends on the features of another; the initial one does not.
    other = list(net.decoder.initial["semseg"].parameters())
    assert any(g is not None and g.any() for g in grads(final["depth"], other))
    assert all(g is None for g in grads(initial["depth"][0], other))


def grads(prediction, parameters):
    return torch.autograd.grad(prediction.square().sum(), parameters, retain_graph=True, allow_unused=True)


def test_a_weight_outside_its_range_is_refused():
    with pytest.raises(MethodError, match="auxiliary.*>= 0"):
        arch.network(PADNet, arch.model("vit"), auxiliary=-1.0)
