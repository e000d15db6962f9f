"""Evaluation: every sample of a split once over all ranks, with summed metrics and no effect on training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from mtlbench import distributed
from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.data.rollouts import Rollout
from mtlbench.method import MTLMethod
from mtlbench.metrics import MeanLoss
from mtlbench.tasks.inputs import inputs_of, is_image
from mtlbench.training.rollouts import roll_out
from mtlbench.training.sharding import whole

Scores = dict[str, dict[str, float]]


@contextmanager
def evaluating(method: MTLMethod) -> Iterator[None]:
    """Put every module into evaluation mode without gradients, and restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        with torch.no_grad(), method.trainer.precision_plugin.val_step_context(), whole(method.network):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def share_buffers(network: nn.Module) -> None:
    """Averages floating-point buffers (BatchNorm statistics) over ranks: the rule for evaluation and checkpoints.

    Modules that rest in evaluation mode are left out: theirs do not move, and an average would round them.
    """
    moving = {id(b) for m in network.modules() if m.training for b in m.buffers(recurse=False)}
    for buffer in network.buffers():
        if buffer.is_floating_point() and id(buffer) in moving:
            distributed.mean_(buffer)


def evaluate(
    method: MTLMethod,
    batches: Iterable[Batch],
    rollouts: Sequence[Rollout] = (),
    *,
    final: bool = False,
    with_loss: bool = False,
) -> tuple[Scores, float]:
    """Returns the scores of all tasks, and the sum of their scaled mean losses (NaN unless ``with_loss``).

    Args:
        method: Method in a trainer.
        batches: A split.
        rollouts: Episodes in which the network acts; see `MTLDataModule.rollouts`.
        final: Compute every metric. If false, only those fast enough to monitor during training.
        with_loss: Compute the losses.
    """
    step = method.test_step if final else method.validation_step
    share_buffers(method.network)
    losses = {name: MeanLoss(task, protocol="loss").to(method.device) for name, task in method.tasks.items()}
    with evaluating(method):
        for index, batch in enumerate(batches):
            batch = method.trainer.strategy.batch_to_device(batch)
            step(batch, index)
            if with_loss:
                _add_losses(method, losses, batch)
        roll_out(method, rollouts, dict((method.metrics if final else method.monitors).items()))
        scores = method.scores(final=final)
    if not with_loss:
        return scores, float("nan")
    return scores, sum(float(m.compute()["loss"]) * method.tasks[name].scale for name, m in losses.items())


def examples(method: MTLMethod, batches: Iterable[Batch], count: int) -> dict[str, np.ndarray]:
    """Returns the first samples with truth and prediction, for the report; of several streams, those of the first.

    Images are stored as ``image``. Other inputs are stored as ``input``, the ids of the samples.
    """
    found: list[dict[str, np.ndarray]] = []
    with evaluating(method):
        for batch in batches:
            stream = streams(method.trainer.strategy.batch_to_device(batch))[0]
            names = [name for name in method.tasks if name in stream["targets"]]
            inputs = inputs_of(stream)
            raw = method(inputs, names)
            record = {"image": _numpy(inputs)} if is_image(inputs) else {"input": np.array(stream["id"])}
            record |= {f"target/{n}": _numpy(stream["targets"][n]) for n in names}
            decoded = {n: method.tasks[n].decode_beside(raw[n].float(), stream["targets"][n]) for n in names}
            record |= {f"prediction/{n}": _numpy(decoded[n]) for n in names}
            if found and record.keys() != found[0].keys():
                break  # Another stream, which has other tasks.
            found.append(record)
            if sum(len(next(iter(record.values()))) for record in found) >= count:
                break
    keys = found[0].keys() if found else ()
    arrays = {key: np.concatenate([record[key] for record in found])[:count] for key in keys}
    return arrays | _shown(method, arrays)


def _shown(method: MTLMethod, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what the report shows of each label and prediction, pictures or texts: it cannot ask the tasks."""
    shown = {}
    for key, values in arrays.items():
        what, _, name = key.partition("/")
        if name:
            task, truths = method.tasks[name], arrays[f"target/{name}"]
            if not task.dense:
                drawn: list[Any] = [task.caption(value) for value in values]
            elif "image" in arrays:
                drawn = [task.draw_on(*one) for one in zip(_pictures(arrays["image"]), values, truths, strict=True)]
            else:
                drawn = [task.draw(*one) for one in zip(values, truths, strict=True)]
            shown[f"shown/{what}/{name}"] = np.array(drawn)
    return shown


def _add_losses(method: MTLMethod, losses: dict[str, MeanLoss], batch: Batch) -> None:
    for stream in streams(batch):
        names = [name for name in method.tasks if name in stream["targets"]]
        for name, prediction in method(inputs_of(stream), names).items():
            losses[name].update(prediction.float(), stream["targets"][name])


def _pictures(images: np.ndarray) -> np.ndarray:
    """Returns images (N, 3, H, W) as pictures (N, H, W, 3)."""
    return images.transpose(0, 2, 3, 1)


def _numpy(value: torch.Tensor) -> np.ndarray[Any, Any]:
    return value.detach().cpu().numpy()
