"""Cost of a run: training time, FLOPs, peak memory, parameters, device."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from mtlbench.method import MTLMethod
from mtlbench.networks.flops import forward_flops
from mtlbench.training.evaluation import evaluating


def cost_of(method: MTLMethod, seconds: float, world: int) -> dict[str, Any]:
    """Return the section ``cost`` of a result.

    Args:
        method: Trained method in a trainer.
        seconds: Training time.
        world: Number of ranks.
    """
    cuda = method.device.type == "cuda"
    peak = _peak_memory(cuda=cuda)  # Before the forward pass below, which is not part of training.
    with evaluating(method):
        image = torch.zeros(1, 3, *method.spec.model["image_size"], dtype=torch.uint8, device=method.device)
        flops = forward_flops(method.network, image, list(method.tasks))
    return {
        "train_seconds": seconds,
        "flops": flops,
        "peak_memory_gib": peak / 2**30,
        "parameters": sum(p.numel() for p in method.network.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "devices": world,
        "threads": torch.get_num_threads(),
    }


def _peak_memory(*, cuda: bool) -> int:
    """Return peak memory in bytes: that of the accelerator, or the resident memory of this process."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    # Linux reports kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
