"""Attention masks of each task on shared maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mtlbench.errors import SuiteError
from mtlbench.networks.mtan import AttentionMask, MTANNetwork
from tests.support.architectures import (
    MODELS,
    TASKS,
    check_ownership,
    check_predictions,
    check_with_balancer,
    dense,
    images,
    network,
)


@pytest.mark.parametrize("kind", MODELS)
def test_ownership_and_predictions(kind):
    net = network("mtan", kind)
    check_ownership(net)
    check_predictions(net)


class Ones(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return x.new_ones(x.shape[0], self.channels, *x.shape[2:])


@pytest.mark.parametrize("kind", MODELS)
def test_masks_of_one_give_the_dense_network(kind):
    net, plain, image = network("mtan", kind), dense(kind), images()
    for masks, channels in zip(net.masks, net.encoder.channels, strict=True):
        for task in TASKS:
            masks[task] = Ones(channels)
    wanted = plain(image, list(TASKS)).predictions
    for task, prediction in net(image, list(TASKS)).predictions.items():
        torch.testing.assert_close(prediction, wanted[task])


def test_masks_are_between_zero_and_one_also_on_one_pixel():
    for size in ((1, 1), (3, 2)):
        values = AttentionMask(6, 16)(torch.randn(2, 6, *size))
        assert values.shape == (2, 16, *size) and ((values > 0) & (values < 1)).all()
        assert values.std() > 0.05


def by_hand(net, task, image):
    """Returns what a task sees, from the outputs of the transformer's blocks as hooks find them."""
    vit, found = net.encoder.trunk.model, []
    hooks = [block.register_forward_hook(lambda _, __, out: found.append(out)) for block in vit.blocks]
    net.encoder(net.encoder.normalise(image))
    for hook in hooks:
        hook.remove()
    maps = [out[:, 1:].transpose(1, 2).unflatten(2, (2, 3)) for out in found]
    seen, ends = [], net.encoder.trunk.out_indices
    assert ends == [0, 1, 2, 4]  # the last stage alone has two blocks
    for s, end in enumerate(ends):
        u = maps[end - 1] if end else None
        if u is None:  # the embedded patches
            u = net.stages.start(net.encoder.normalise(image)).map
        inputs = [u, net.refine[s - 1](seen[-1])] if seen else [u]
        seen.append(net.masks[s][task](torch.cat(inputs, 1)) * maps[end])
    return seen


def test_masks_read_the_map_before_the_last_block_and_what_was_seen_before():
    net, image = network("mtan").double().eval(), images()
    for task in TASKS:
        seen = by_hand(net, task, image)
        prediction = net(image, [task]).predictions[task]
        torch.testing.assert_close(net.heads[task](net.neck(seen)), prediction)


def test_between_stages_of_a_cnn_maps_halve_by_the_mean_of_two_by_two():
    net, read = network("mtan", "cnn").eval(), []
    for masks in net.masks:
        masks["depth"].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    refined = []
    for block in net.refine:
        block.register_forward_hook(lambda _, __, out: refined.append(out))
    net(images(), ["depth"])
    # Strides 4, 8, 16, 32 of 16 x 24 pixels.
    assert [tuple(x.shape[2:]) for x in read] == [(4, 6), (2, 3), (1, 2), (1, 1)]
    channels = net.encoder.channels
    assert [x.shape[1] for x in read] == [channels[0], *(2 * c for c in channels[1:])]
    torch.testing.assert_close(read[1][:, channels[1] :], F.avg_pool2d(refined[0], 2))


def test_the_encoder_runs_once_and_masks_once_per_task():
    net, calls = network("mtan"), []
    net.encoder.trunk.model.blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    for task in TASKS:
        net.masks[0][task].register_forward_hook(lambda *_: calls.append("mask"))
    net(images(), list(TASKS))
    assert sorted(calls) == ["block", "mask", "mask", "mask"]


def test_starts_as_the_dense_network():
    state = network("mtan").state_dict()
    assert all(torch.equal(state[key], value) for key, value in dense().state_dict().items())


@pytest.mark.parametrize("balancer", ["pcgrad", "uncertainty", "gradnorm"])
def test_any_balancer(balancer, tmp_path):
    check_with_balancer("mtan", balancer, tmp_path)


def test_an_encoder_without_stages_is_refused():
    options = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    with pytest.raises(SuiteError, match="stage by stage.*Beit"):
        MTANNetwork(TASKS, encoder="beit_base_patch16_224", image_size=[16, 24], encoder_options=options)
