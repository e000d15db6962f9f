"""Sums and means over the ranks of a run, identities where there is only one process; and copies to a device.

The host does not wait for the device in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Returns the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this rank, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def mean_(tensor: Tensor) -> Tensor:
    """Averages a tensor over ranks in place, without gradient, and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def sum_(tensor: Tensor) -> Tensor:
    """Adds a tensor over ranks in place, without gradient, and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_counts(counts: Sequence[int], device: torch.device) -> list[int]:
    """Adds host integers over ranks.

    Goes over the CPU backend where the process group has one (the bench's runs do), so that the host does not
    wait for the accelerator.
    """
    if world_size() == 1:
        return list(counts)
    host = "cpu" in dist.get_backend_config()
    total = torch.tensor(counts, dtype=torch.int64, device="cpu" if host else device)
    dist.all_reduce(total)
    return [int(value) for value in total]


def any_rank(flag: Tensor) -> Tensor:
    """Returns a 0-d float flag: the largest over ranks."""
    if world_size() > 1:
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return flag


def mean_row(tensors: list[Tensor]) -> list[Tensor]:
    """Averages a list of tensors over ranks, without gradient, in one collective."""
    if world_size() == 1 or not tensors:
        return tensors
    vector = mean_(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    sizes = [tensor.numel() for tensor in tensors]
    return [part.view_as(tensor) for part, tensor in zip(vector.split(sizes), tensors, strict=True)]


def scatters() -> bool:
    """Returns whether sums are scattered: half the traffic of sums that every rank gets, and slower over gloo."""
    return world_size() > 1 and "nccl" in dist.get_backend_config()


def scatter_mean(vector: Tensor) -> Tensor:
    """Returns this rank's part of the average of a vector over ranks; its length is a multiple of their number."""
    part = vector.new_empty(len(vector) // world_size())
    dist.reduce_scatter_tensor(part, vector)
    part /= world_size()
    return part


def gather(part: Tensor) -> Tensor:
    """Returns the vector whose parts lie on the ranks."""
    whole = part.new_empty(len(part) * world_size())
    dist.all_gather_into_tensor(whole, part.contiguous())
    return whole


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows (N, ...) of all ranks, one rank after the other; N may differ and be 0."""
    if world_size() == 1:
        return rows
    counts = sum_counts([len(rows) * (r == rank()) for r in range(world_size())], rows.device)
    most, shape = max(counts), rows.shape[1:]
    if not most:
        return rows
    equal = rows.new_zeros(most, *shape)
    equal[: len(rows)] = rows
    whole = gather(equal.flatten()).view(world_size(), most, *shape)
    return torch.cat([part[:count] for part, count in zip(whole, counts, strict=True)])


def sent(values: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns numbers, or lists of them, as a tensor on the device of another.

    ``torch.tensor(values, device=...)`` waits until a GPU has done all of its earlier work.

    Args:
        values: Numbers on the host.
        like: Tensor whose device, and type, the result has.
        dtype: Type of the result, if it is another.
    """
    on_gpu = like.device.type == "cuda"
    host = torch.tensor(values, dtype=dtype or like.dtype, pin_memory=on_gpu)
    return host.to(like.device, non_blocking=on_gpu)
