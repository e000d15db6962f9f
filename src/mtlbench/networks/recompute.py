"""Recomputes the activations of an encoder in the backward pass instead of keeping them (gradient checkpointing).

Only the inputs of its blocks are kept. In the backward pass a block runs again, in the same random state and with the
same weights, so that gradients are the same. A rule that takes T backward passes runs it T times.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mtlbench.errors import MethodError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_state = threading.local()


class Recomputed:
    """Mixin of a module whose activations are recomputed; `recompute_blocks` gives it to the modules of a network."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the module returns."""
        return recomputed(super().forward, self, *args, **kwargs)  # type: ignore[misc, arg-type]


def recompute_blocks(blocks: Sequence[nn.Module]) -> None:
    """Lets every block be recomputed. Its class becomes a subclass, so that its name, weights and copies stay.

    Args:
        blocks: Modules that are called as a whole; none within another.
    """
    for block in blocks:
        cls = type(block)
        if not isinstance(block, Recomputed):
            block.__class__ = type(cls.__name__, (Recomputed, cls), {"__module__": cls.__module__})


def recomputed(run: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls ``run``, and keeps of its graph what it was called with alone.

    Args:
        run: A function of ``module`` that is the same whenever it is called in the same random state.
        module: Where its parameters and its BatchNorm are.
        *args: Passed on.
        **kwargs: Passed on.

    Raises:
        MethodError: In the backward pass, if the module has other parameters by then.
    """
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    if torch.compiler.is_compiling():  # The compiler replays random numbers and running statistics by itself.
        return checkpoint(run, *args, use_reentrant=False, **kwargs)
    contexts = partial(_contexts, module, [id(p) for p in module.parameters()])
    return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def replaying() -> bool:
    """Returns whether this thread is running a block again."""
    return getattr(_state, "depth", 0) > 0


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """Returns the blocks of an encoder: modules with parts that stand in a list or sequence, outermost first.

    Args:
        trunk: The encoder. The blocks of a ResNet's stages and of a transformer are found, a stem's layers are not.
    """
    found: list[nn.Module] = []
    for child in trunk.children():
        listed = isinstance(trunk, nn.Sequential | nn.ModuleList) and not isinstance(child, CONTAINERS)
        within = blocks_of(child)
        # A stage in a sequence that has a list of blocks itself is no block, but one with a shortcut is.
        deeper = any(isinstance(part, nn.ModuleList | nn.Sequential) for part in child.children()) and len(within) > 1
        found += [child] if listed and not deeper and any(True for _ in child.children()) else within
    return found


def _contexts(module: nn.Module, known: list[int]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Replay(module, known)


class _Replay(AbstractContextManager[None]):
    """Keeps running statistics as they are while a block runs again, and makes sure that its weights are the same.

    It is entered once per backward pass, of which a gradient rule takes several.
    """

    def __init__(self, module: nn.Module, known: list[int]) -> None:
        self.module, self.known = module, known
        self.kept: list[tuple[_BatchNorm, float | None, Any]] = []

    def __enter__(self) -> None:
        if [id(p) for p in self.module.parameters()] != self.known:
            raise MethodError(
                "trainer.gradient_checkpointing runs the encoder again in the backward pass, with the weights of the "
                f"forward pass. {type(self.module).__name__} has other ones by then, because the method takes "
                "gradients at other weights than those of the network. Leave the method out, or set "
                "trainer.gradient_checkpointing=false."
            )
        norms = [m for m in self.module.modules() if isinstance(m, _BatchNorm) and m.training]
        self.kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        _state.depth = getattr(_state, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _state.depth -= 1
        for norm, momentum, count in self.kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
