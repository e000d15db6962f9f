"""Small networks on images of 16 x 24 pixels, and properties that all architectures must have."""

from __future__ import annotations

import torch

from mtlbench import registry
from mtlbench.method import MethodSpec
from mtlbench.networks.dense import build_dense
from mtlbench.tasks import Classification, Depth, Normals
from mtlbench.testing import check_network, difference, toy_spec, trained
from tests.support import network_checks as arch

TASKS = {"depth": Depth("depth"), "normals": Normals("normals"), "kind": Classification("kind")}
MODELS = {
    "cnn": {"encoder": "test_resnet"},
    "vit": {
        "encoder": "vit_tiny_patch16_224",
        "encoder_options": {"patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2},
    },
    "swin": {
        "encoder": "swin_tiny_patch4_window7_224",
        "encoder_options": {
            "depths": (1, 1, 1, 1),
            "embed_dim": 8,
            "num_heads": (1, 1, 1, 1),
            "window_size": 2,
            "drop_path_rate": 0.0,
        },
    },
}


SIZE = (16, 24)


def model(kind):
    return {"image_size": list(SIZE), "decoder_channels": 12, **MODELS[kind]}


def made(name, kind="vit", tasks=TASKS, **options):
    """Returns a method with its network; equal seeds give equal encoders, necks and heads."""
    torch.manual_seed(7)
    method = registry.find(name)(MethodSpec(tasks, model(kind)), **options)
    method.configure_model()
    return method


def network(name, kind="vit", tasks=TASKS, **options):
    return made(name, kind, tasks, **options).network


def dense(kind="vit", tasks=TASKS):
    torch.manual_seed(7)
    return build_dense(tasks, model(kind))


def images(batch=2):
    return torch.randint(0, 256, (batch, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def check_ownership(net, tasks=TASKS):
    """Checks that shared parameters reach two or more tasks, owned ones a single task, and that none is left over."""
    assert check_network(net, tasks) is None
    arch.assert_partition(net, tasks, SIZE)
    last = {id(p) for p in net.last_shared_parameters()}
    assert last and last <= {id(p) for p in net.shared_parameters(list(tasks))}


def check_predictions(net):
    """Checks shapes, and that a prediction does not depend on other tasks, other images or the precision."""
    arch.assert_shapes(net, TASKS, SIZE)
    arch.assert_subset_is_alike(net, TASKS, SIZE)
    arch.assert_precisions(net, TASKS, SIZE)
    arch.assert_cut_does_not_matter(net, TASKS, SIZE, training=False)


def check_with_balancer(name, balancer, folder):
    """Checks that training with a balancer gives finite weights that differ from those of the plain sum."""
    weights = trained(toy_spec(name, steps=3, balancer=balancer), str(folder / "one"))
    assert all(value.isfinite().all() for key, value in weights.items() if key.startswith("network."))
    plain = trained(toy_spec(name, steps=3), str(folder / "plain"))
    assert difference(plain, {key: weights[key] for key in plain}) > 1e-6
