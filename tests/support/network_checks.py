"""Small networks of a method, and checks of shapes, subsets, precisions and the partition of parameters."""

from __future__ import annotations

import copy

import torch

from mtlbench.method import MethodSpec
from mtlbench.tasks import Classification, Depth, Normals, SemanticSegmentation

DENSE = {"semseg": SemanticSegmentation("semseg", classes=5), "depth": Depth("depth"), "normals": Normals("normals")}
TASKS = {**DENSE, "kind": Classification("kind", classes=4)}
SMALL_VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_options": {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
}
MODELS = {"cnn": {"encoder": "resnet18"}, "vit": SMALL_VIT}
SIZES = [(16, 24), (32, 48)]


def model(kind, size=(32, 48), **changes):
    """Returns the ``model`` section of a suite."""
    return {"image_size": list(size), "decoder_channels": 8, **MODELS[kind], **changes}


def network(cls, section, tasks=None, **options):
    """Returns the network of a method."""
    torch.manual_seed(0)
    method = cls(MethodSpec(tasks or TASKS, section), **options)
    method.configure_model()
    return method.network


def images(batch=2, size=(32, 48)):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def reached(net, task, size=(32, 48)):
    """Returns which trainable parameters the predictions of one task depend on, auxiliary ones included."""
    net.zero_grad(set_to_none=True)
    outputs = net(images(size=size), [task])
    values = [outputs.predictions[task], *(p for _, p in outputs.auxiliary.get(task, ()))]
    sum(value.square().sum() for value in values).backward()
    return {name for name, p in net.named_parameters() if p.grad is not None}


def assert_partition(net, tasks, size=(32, 48)):
    """Owned: what one task alone reaches. Shared: what two or more do. Together: all trainable parameters.

    The encoder counts as shared also where there is one task only.
    """
    names = {id(p): name for name, p in net.named_parameters()}
    by_task = {task: reached(net, task, size) for task in tasks}
    assert set.union(*by_task.values()) == {name for name, p in net.named_parameters() if p.requires_grad}
    for task in tasks:
        others = set().union(*(found for other, found in by_task.items() if other != task))
        if len(tasks) == 1:
            others = {name for name in by_task[task] if name.startswith("encoder.")}
        assert {names[id(p)] for p in net.task_parameters(task)} == by_task[task] - others
    shared = [names[id(p)] for p in net.shared_parameters(list(tasks))]
    assert len(shared) == len(set(shared))
    if len(tasks) > 1:
        assert set(shared) == {n for n in names.values() if sum(n in found for found in by_task.values()) > 1}


def assert_shapes(net, tasks, size, batch=2):
    """Predictions have the tasks' shapes in the asked order, and so have auxiliary ones."""
    order = list(reversed(tasks))
    outputs = net(images(batch, size), order)
    wanted = {name: (batch, tasks[name].channels, *(size if tasks[name].dense else ())) for name in order}
    assert list(outputs.predictions) == order
    assert {name: tuple(p.shape) for name, p in outputs.predictions.items()} == wanted
    for name, found in outputs.auxiliary.items():
        assert {tuple(p.shape) for _, p in found} == {wanted[name]}


def assert_subset_is_alike(net, tasks, size=(32, 48)):
    """A task's prediction does not depend on the other tasks, and evaluation makes no auxiliary predictions."""
    net.eval()
    with torch.no_grad():
        together = net(images(size=size), list(tasks))
        assert not together.auxiliary
        for task in tasks:
            alone = net(images(size=size), [task]).predictions
            assert list(alone) == [task]
            torch.testing.assert_close(alone[task], together.predictions[task])


def assert_precisions(net, tasks, size=(32, 48)):
    """Float64 agrees with float32; bfloat16 autocast returns float32, and differs by its rounding only."""
    net.eval()
    with torch.no_grad():
        single = net(images(size=size), list(tasks)).predictions
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = net(images(size=size), list(tasks)).predictions
        double = copy.deepcopy(net).double()(images(size=size), list(tasks)).predictions
    for task, value in single.items():
        assert mixed[task].dtype == torch.float32 and double[task].dtype == torch.float64
        torch.testing.assert_close(double[task].float(), value, atol=1e-3, rtol=1e-3)
        assert (mixed[task] - value).norm() < 0.1 * value.norm()


def assert_cut_does_not_matter(net, tasks, size=(32, 48), training=True):
    """An image's predictions do not depend on the batch that it is in; in training, where no encoder has BatchNorm."""
    net.train(training)
    with torch.no_grad():
        whole = net(images(4, size), list(tasks))
        part = net(images(4, size)[:1], list(tasks))
    for task in tasks:
        torch.testing.assert_close(part.predictions[task], whole.predictions[task][:1], atol=1e-4, rtol=1e-3)
