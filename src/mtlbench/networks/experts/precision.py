"""The type that experts compute in: autocast does not know products per expert."""

from __future__ import annotations

import torch
from torch import Tensor


def computing(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns the tensors in the type that autocast wants for products; as they are outside of it."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind) or tensors[0].dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) for tensor in tensors)
