"""PyTorch's global random generators, set quickly enough for every step."""

from __future__ import annotations

import torch


def reseed(seed: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of ``device``.

    `torch.manual_seed` seeds every kind of accelerator. Where one is absent it formats and keeps a stack trace per
    call: over a millisecond a step, and memory that grows for ever.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
