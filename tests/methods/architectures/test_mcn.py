"""MultiTask-CenterNet: stride, branches, what is shared, and that boxes and keypoints are learned."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mtlbench import registry
from mtlbench.method import MethodSpec
from mtlbench.networks.mcn import _freeze_idle
from mtlbench.tasks import Classification, Depth, Detection, Keypoints, SemanticSegmentation
from mtlbench.testing import check_network
from tests.support import network_checks as arch
from tests.support.architectures import MODELS, check_ownership, check_predictions, check_with_balancer, images, network

BOXES = Detection("boxes", classes=2, most=3)
PEOPLE = Keypoints("people", names=("head", "foot"), most=2)
TASKS = {"boxes": BOXES, "people": PEOPLE, "depth": Depth("depth"), "kind": Classification("kind")}


@pytest.mark.parametrize("kind", MODELS)
def test_ownership_and_predictions(kind: str) -> None:
    net = network("mcn", kind, TASKS)
    check_ownership(net, TASKS)
    arch.assert_subset_is_alike(net, TASKS, (16, 24))
    check_predictions(network("mcn", kind))


def test_parameters_that_reach_finer_maps_only_are_frozen() -> None:
    net = network("mcn", "vit", TASKS)
    net.encoder.trunk.fine = torch.nn.Linear(1, 3)
    forward = net.encoder.forward
    net.encoder.forward = lambda x: [forward(x)[0] + net.encoder.trunk.fine.bias.sum(), *forward(x)[1:]]
    _freeze_idle(net.encoder, (16, 24))
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert {"encoder.trunk.fine.bias", "encoder.trunk.fine.weight"} <= set(frozen)
    assert check_network(net, TASKS) is None and len(list(net.encoder.parameters())) > 2 * len(frozen)


@pytest.mark.parametrize(("encoder", "layers"), [("resnet18", 3), ("vit", 1)])
def test_all_tasks_read_a_map_of_stride_four(encoder: str, layers: int) -> None:
    section = arch.model("cnn" if encoder == "resnet18" else "vit", (64, 96))
    net = arch.network(registry.find("mcn"), section, TASKS)
    shared = net(arch.images(size=(64, 96)), ["depth"]).representation
    assert shared.shape == (2, 8, 16, 24) and len(net.upsampling.blocks) == layers and net.upsampling.stride == 4


@pytest.mark.parametrize("task", [BOXES, PEOPLE], ids=lambda task: task.name)
def test_every_quantity_has_a_branch_and_the_task_reads_what_it_predicts(task) -> None:
    net = network("mcn", "vit", TASKS)
    outputs = net(images(), [task.name])
    head = net.heads[task.name]
    wanted = torch.cat([branch(outputs.representation) for branch in head.branches], 1)
    assert [branch[-1].out_channels for branch in head.branches] == list(task.branches)
    assert_close(task.grid(outputs.predictions[task.name]), wanted)


def test_the_grid_of_a_task_may_be_another_and_dense_heads_may_be_learned() -> None:
    fine = Detection("boxes", classes=2, stride=2)
    semseg = SemanticSegmentation("semseg", classes=3)
    method = registry.find("mcn")(
        MethodSpec(
            {"boxes": fine, "semseg": semseg}, {**MODELS["vit"], "image_size": [16, 24], "upsampling": "learned"}
        )
    )
    method.configure_model()
    raw = method(images())
    assert raw["boxes"].shape == (2, 6, 16, 24) and fine.grid(raw["boxes"]).shape[2:] == (8, 12)
    assert raw["semseg"].shape == (2, 3, 16, 24)
    assert method.network.heads["semseg"][1].out_channels == 3 * 16


def test_it_trains_with_a_balancer(tmp_path) -> None:
    check_with_balancer("mcn", "pcgrad", tmp_path)


def test_a_batch_without_a_single_box_trains_and_has_no_score() -> None:
    """Nothing in sight lowers the heat everywhere; sizes and places learn nothing, and a mean over no class is NaN."""
    tasks = {"boxes": BOXES, "people": PEOPLE}
    method = registry.find("mcn")(MethodSpec(tasks, {**MODELS["vit"], "image_size": [16, 24], "decoder_channels": 12}))
    method.configure_model()
    raw = method(images())
    for name, task in tasks.items():
        empty = torch.stack([task.table([]), task.table([])])
        assert task.fault(empty) is None and task.count(empty) == 2
        loss = task.loss(raw[name], empty)
        heat, *others = (branch[-1].weight for branch in method.network.heads[name].branches)
        first, *rest = torch.autograd.grad(loss, [heat, *others], retain_graph=True)
        assert loss.isfinite() and loss > 0 and first.abs().max() > 0
        metric = task.metric()
        metric.update(raw[name].detach(), empty)
        assert all(math.isnan(score) for score in metric.compute().values())
        if name == "boxes":
            assert all(not gradient.any() for gradient in rest)


@pytest.mark.parametrize("name", ["mcn", "uniform"])
def test_a_bright_square_and_its_corners_are_found(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, people = [], []
    image = torch.randint(0, 60, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for i in range(8):
        x, y = (int(v) for v in torch.randint(0, 20, (2,), generator=generator))
        shown = i < 6  # Two images are empty.
        if shown:
            image[i, :, y : y + 12, x : x + 12] = 250
        boxes.append(BOXES.table([(x, y, x + 12, y + 12, 1, 1)] * shown))
        points = {"head": (x, y, 2), "foot": (x + 12, y + 12, 2)}
        people.append(PEOPLE.table([PEOPLE.row((x, y, x + 12, y + 12), points)] * shown))
    targets = {"boxes": torch.stack(boxes), "people": torch.stack(people)}
    tasks = {"boxes": BOXES, "people": PEOPLE}
    torch.manual_seed(0)
    section = {"encoder": "test_resnet", "image_size": [32, 32], "decoder_channels": 16}
    found = registry.find(name)
    method = (registry.find("single_task") if name == "uniform" else found)(MethodSpec(tasks, section))
    method.configure_model()
    optimiser = torch.optim.AdamW(method.network.parameters(), 0.01)

    def scores() -> list[float]:
        metrics, raw = {name: task.metric() for name, task in tasks.items()}, method(image)
        for key, metric in metrics.items():
            metric.update(raw[key].detach(), targets[key])
        return [next(iter(metric.compute().values())) for metric in metrics.values()]

    before = scores()
    for _ in range(60):
        raw = method(image)
        loss = sum(task.loss(raw[key], targets[key]) / task.count(targets[key]) for key, task in tasks.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert max(before) < 0.3 < 0.7 < min(scores())
