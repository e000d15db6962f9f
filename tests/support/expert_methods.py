"""Small methods with experts, their routing losses, and training of their routers alone."""

from __future__ import annotations

import torch

from mtlbench.method import MethodSpec
from mtlbench.tasks import Classification, Depth, Normals

TASKS = {"depth": Depth("depth"), "normals": Normals("normals"), "kind": Classification("kind")}
MODEL = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_options": {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "decoder_channels": 8,
    "image_size": [16, 24],
}


def build(cls, **options):
    """Returns a method of the class with its network."""
    torch.manual_seed(0)
    method = cls(MethodSpec(TASKS, MODEL), **options)
    method.configure_model()
    return method


def images(batch=4):
    return torch.randint(0, 256, (batch, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def losses(method, image=None, counts=None):
    """Returns the routing losses and the statistics they come from."""
    image = images() if image is None else image
    outputs = method.network(image, list(TASKS))
    batch = {"image": image, "counts": dict.fromkeys(TASKS, 1) if counts is None else counts}
    return method.regularisation(outputs, batch), outputs.statistics["experts"]


def train_routers(method, steps=30, lr=0.03):
    """Trains the routers alone on the routing losses; returns the losses of every step."""
    parameters = [p for router in method.network.routers for p in router.parameters()]
    optimiser, values = torch.optim.Adam(parameters, lr=lr), []
    for _ in range(steps):
        found, _ = losses(method)
        total = sum(found.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        values.append(total.item())
    return values
