"""Seeds, on which all randomness depends, and a way to seed PyTorch's generators that is fast enough for every step."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def seed_of(*parts: Any) -> int:
    """Returns a 63-bit seed that depends on every part, in order, and is the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of ``device``.

    `torch.manual_seed` seeds every kind of accelerator. Where one is absent it formats and keeps a stack trace per
    call, which costs over a millisecond per step and memory that grows without bound.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
