"""Linear heads of tasks on a network's pooled features, which rules of task mixing may follow."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlbench import distributed
from mtlbench.data import Batch
from mtlbench.errors import MethodError
from mtlbench.method import MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import inputs_of
from mtlbench.training.evaluation import evaluating

RIDGE = 0.1
"""Penalty of the regression, relative to the mean eigenvalue of the features' Gramian."""


def linear_heads(method: MTLMethod, batches: Iterable[Batch]) -> dict[str, list[float]]:
    """Returns the head (C,) of every task: a ridge regression of its labels on C pooled features.

    Features are the representation that all heads read, averaged over places. Labels of any form become one number per
    sample, see `scalar_labels`. A task without two different labels has a head of zeros. Ranks get the same numbers.

    Args:
        method: Method in a trainer.
        batches: Batches of one stream each, the same on every rank.

    Raises:
        MethodError: The network names no representation, or labels have a form without a number per element.
    """
    heads: dict[str, list[float]] = {}
    with evaluating(method):
        for batch in batches:
            moved = method.trainer.strategy.batch_to_device(batch)
            names = [name for name in method.tasks if name in moved["targets"]]
            features = features_of(method.network, method.network(inputs_of(moved), names).representation)
            for name in names:
                labels, kept = scalar_labels(method.tasks[name], batch["targets"][name])
                head = ridge(features[kept], labels, RIDGE)
                heads[name] = distributed.mean_(head.to(method.device)).tolist()
    return heads


def features_of(network: MTLNetwork, representation: Tensor | None) -> Tensor:
    """Returns features (B, C) in float64 on the host.

    Args:
        network: The network.
        representation: Its `mtlbench.networks.base.Outputs.representation`.

    Raises:
        MethodError: There is none.
    """
    if representation is None:
        raise MethodError(
            "Mixing by active measures linear heads on the representation that all heads read. This network names none "
            "(Outputs.representation). Choose a method with one shared trunk, or another rule of mixing."
        )
    return network.sample_features(representation).detach().cpu().double()


def scalar_labels(task: Task, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns one number per labelled sample, with mean 0 and variance 1, and which samples are labelled: bool (B,).

    The number is the first principal component of the label's values: a class is a vector of zeros and a one, a map has
    a value for every place and channel, and an element without a label has the mean. Its sign is arbitrary.

    Args:
        task: The task.
        target: Targets (B, ...) on the host.

    Raises:
        MethodError: The kind of task has no label per element of its target.
    """
    valid = task.valid(target)
    if valid.ndim < target.ndim and not target.is_floating_point():
        raise _without_numbers(task)
    if target.is_floating_point():
        values = target.double()
        valid = valid[:, None] if valid.ndim == values.ndim - 1 else valid
    else:
        values = F.one_hot(torch.where(valid, target, 0).long()).double()
        valid = valid[..., None]
    try:
        valid = valid.expand_as(values).reshape(len(target), -1)
    except RuntimeError:
        raise _without_numbers(task) from None
    values = values.reshape(len(target), -1)
    kept = valid.any(1)
    values, valid = torch.where(valid, values, 0.0)[kept], valid[kept]
    centred = torch.where(valid, values - values.sum(0) / valid.sum(0).clamp(min=1), 0.0)
    sizes, vectors = torch.linalg.eigh(centred @ centred.T)
    if not len(sizes) or sizes[-1] <= 0:
        return centred.new_zeros(len(centred)), kept
    return vectors[:, -1] * len(centred) ** 0.5, kept


def _without_numbers(task: Task) -> MethodError:
    return MethodError(
        f"Mixing by active needs labels with a number per element. {task.name} is of the kind {task.kind}, which has "
        "none. Leave the task out, or choose another rule of mixing."
    )


def ridge(features: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Returns the weights (C,) of a ridge regression with an intercept, which is not penalised.

    Args:
        features: (n, C) in float64.
        labels: (n,) with mean 0.
        penalty: λ > 0, relative to the mean eigenvalue of the centred features' Gramian.
    """
    count, width = features.shape
    if count < 2:
        return features.new_zeros(width)
    centred = features - features.mean(0)
    gram = centred @ centred.T
    mean = gram.trace() / min(count - 1, width)
    if mean <= 0:
        return features.new_zeros(width)
    # By the samples rather than by the features, of which there may be thousands.
    return centred.T @ torch.linalg.solve(gram + penalty * mean * torch.eye(count, dtype=gram.dtype), labels)
