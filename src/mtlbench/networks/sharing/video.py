"""Computation sharing on video: across tasks on key frames, and across time on the frames in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.sharing.costs import attention_macs, shared_macs
from mtlbench.networks.sharing.network import SharingNetwork
from mtlbench.networks.sharing.referenced_vit import Activations, ReferencedViT, Threshold, Trace


class VideoTask:
    """The trained network of one task, prepared to run frame by frame.

    Attributes:
        encoder: Encoder with the weights of the base task.
        changes: Whole tensors of the task that differ from those of the base, by name.
        kept: Number of differing entries of each tensor.
        decode: Function from feature maps to the prediction.
    """

    def __init__(
        self,
        encoder: ReferencedViT,
        changes: Mapping[str, Tensor],
        kept: Mapping[str, int],
        decode: Callable[[Sequence[Tensor]], Tensor],
    ) -> None:
        """Stores the attributes. Use `alone` or `changed` to create a task."""
        self.encoder, self.changes, self.kept, self.decode = encoder, dict(changes), dict(kept), decode
        self._decoder_macs: int | None = None

    @classmethod
    def alone(cls, network: DenseNetwork, task: str) -> VideoTask:
        """Returns a task of a network that shares nothing, such as the base task or a single-task run.

        Raises:
            SuiteError: The encoder is not a plain vision transformer.
        """
        encoder: Any = network.encoder
        wrapped = encoder if isinstance(encoder, ReferencedViT) else ReferencedViT(encoder)
        return cls(wrapped, {}, {}, _decoder(network, task))

    @classmethod
    def changed(cls, network: SharingNetwork, task: str) -> VideoTask:
        """Returns a sub-task, whose network is that of the base with sparse changes."""
        kept = {name: int(count) for name, count in network.deltas.kept().items()}
        changes = {name: weight.detach() for name, weight in network.weights().items()}
        return cls(network.encoder, changes, kept, _decoder(network, task))

    def trace(self, image: Tensor, references: Activations, threshold: Threshold) -> Trace:
        """Runs a pass that is held to references; see `ReferencedViT.forward`."""
        return functional_call(self.encoder, self.changes, (image, references, threshold))

    def decoder_macs(self, maps: Sequence[Tensor]) -> int:
        """Returns the multiply-adds of the decoder per image.

        Args:
            maps: Feature maps of any pass, (B, D, h, w) each.
        """
        if self._decoder_macs is None:
            with FlopCounterMode(display=False) as counter:
                self.decode([m[:1] for m in maps])
            self._decoder_macs = counter.get_total_flops() // 2
        return self._decoder_macs


def _decoder(network: DenseNetwork, task: str) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda maps: network.heads[task](network.neck(list(maps)))


@dataclass(frozen=True)
class Frame:
    """The predictions for one frame of B clips.

    Attributes:
        lag: Number of frames since the key frame, 0 for the key frame itself.
        predictions: By task, (B, channels, H, W).
        macs: Multiply-adds by task, (B,) float64.
    """

    lag: int
    predictions: dict[str, Tensor]
    macs: dict[str, Tensor]


def play(
    tasks: Mapping[str, VideoTask],
    base: str,
    frames: Iterable[Tensor],
    *,
    threshold: Threshold,
    distance: int,
    shared_blocks: int,
) -> Iterator[Frame]:
    """Runs all tasks over clips (Shoouri et al., 2023, arXiv:2303.09663).

    On a key frame the base task is computed in full, and every sub-task is held to it. On the frames in between, the
    base is held to its own previous frame. A sub-task is held to the base in its first blocks and to its own previous
    frame in the others. `referenced_vit.held` defines the operation. Held values are the references of the next frame.

    Args:
        tasks: All tasks by name.
        base: Name of the base task.
        frames: Consecutive images (B, 3, H, W) uint8, RGB, of B clips.
        threshold: Threshold θ; see `referenced_vit.held`.
        distance: Frames from one key frame to the next, >= 1. With 1, tasks share across tasks only.
        shared_blocks: Number of first blocks in which sub-tasks are held to the base between key frames, >= 0. The
            embedding counts as part of the first block.
    """
    # The base runs first, because its activations are references of the other tasks on the same frame.
    order = [base, *(name for name in tasks if name != base)]
    before: dict[str, Trace] = {}
    for number, image in enumerate(frames):
        lag = number % distance
        now: dict[str, Trace] = {}
        macs: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in order:
                across = _across_tasks(now[base], shared_blocks if lag else None) if now else {}
                own = before[name] if lag else None
                time = {p: v for p, v in own.activations.items() if p not in across} if own else {}
                now[name] = tasks[name].trace(image, {**across, **time}, threshold)
                macs[name] = _macs(tasks[name], now[name], across, own)
            predictions = {name: task.decode(now[name].maps) for name, task in tasks.items()}
        before = now
        yield Frame(lag, predictions, macs)


def _across_tasks(base: Trace, blocks: int | None) -> dict[str, Tensor]:
    """Returns the base's activations in its first ``blocks`` blocks, or in all blocks if None."""
    return {p: v for p, v in base.activations.items() if blocks is None or _block_of(p) < blocks}


def _block_of(place: str) -> int:
    part, dot, _ = place.partition(".")
    return int(part.removeprefix("block")) if dot else 0


def _macs(task: VideoTask, trace: Trace, across: Activations, before: Trace | None) -> Tensor:
    """Returns the multiply-adds of every image, (B,) float64.

    A linear layer costs its changed inputs times d_out. If its reference is that of the base, each of the task's own
    weights costs N products in addition. Without a reference the layer is dense. Attention is dense unless all queries,
    keys and values of the image are held, and the decoder is dense unless all its maps equal those of the previous
    frame.
    """
    changed = {place: _differing(trace, place, size) for place, size in task.encoder.sizes().items()}
    layers = task.encoder.layers().values()
    kept = {x.weight: task.kept.get(x.weight, 0) for x in layers if x.reads in across}
    blocks = range(len(task.encoder.model.blocks))
    attending: Any = sum(changed[f"block{i}.qkv"] > 0 for i in blocks)
    attention = attention_macs(task.encoder) / len(blocks) * attending
    pairs = zip(trace.maps, before.maps, strict=True) if before else ()
    still = [(a == b).flatten(1).all(1) for a, b in pairs]
    decoded = ~torch.stack(still).all(0) if still else torch.ones_like(attending, dtype=torch.bool)
    linear: Any = shared_macs(task.encoder, changed, kept)  # type: ignore[arg-type]  # One number per image.
    return linear + attention + decoded * task.decoder_macs(trace.maps)


def _differing(trace: Trace, place: str, size: int) -> Tensor:
    """Returns the number of entries per image that differ from their reference, (B,) float64; all if there is none."""
    value = trace.activations[place]
    if place not in trace.references:
        return torch.full((len(value),), float(size), dtype=torch.float64, device=value.device)
    return (value != trace.references[place]).flatten(1).sum(1).double()
