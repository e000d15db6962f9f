"""Counts FLOPs of forward passes and of whole training steps, and the parameters that a task reads.

The rule: two FLOPs per multiply-add of every product of matrices, convolution and attention that runs, by the formulas
of ``torch.utils.flop_counter``. Element-wise work, norms, resampling and the optimiser's update are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.experts import ExpertLayer
from mtlbench.networks.experts.dispatch import flop_mapping
from mtlbench.networks.recompute import replaying


class FlopCounter(TorchDispatchMode):
    """Counts what runs inside its context, forward and backward.

    It counts as torch's ``FlopCounterMode`` does. That class also tracks modules, and adds hooks to the graph of every
    one of them, which the several backward passes of a gradient rule would trip over.

    Attributes:
        flops: FLOPs so far.
        read: Parameters that operators have read so far, by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.read: dict[int, nn.Parameter] = {}
        self._formulas = _formulas()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and adds its FLOPs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if replaying():  # What runs again to save memory is no part of the training that is compared.
            return out
        self._note((*args, *kwargs.values()))
        formula = self._formulas.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out

    def _note(self, arguments: Iterable[Any]) -> None:
        # Operators take tensors and lists of tensors. Torch's general walk over trees takes longer than the operators.
        for x in arguments:
            if isinstance(x, nn.Parameter):
                self.read[id(x)] = x
            elif isinstance(x, list | tuple):
                self._note(x)


@contextmanager
def counting(network: nn.Module) -> Iterator[FlopCounter]:
    """Counts what runs in this context, of which a compiled network is a part."""
    with ExitStack() as stack:
        if getattr(network, "_compiled_call_impl", None):  # A compiled graph hides its operators.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.clear_autocast_cache()  # A weight that was cast earlier would not be read again.
        yield stack.enter_context(FlopCounter())


@torch.no_grad()
def forward_flops(network: MTLNetwork, image: Tensor, tasks: Sequence[str]) -> int:
    """Counts the FLOPs of a forward pass, two per multiply-add. Of the experts, only the active ones count.

    Args:
        network: Any network.
        image: (B, 3, H, W) uint8.
        tasks: Names of the tasks to predict.
    """
    with counting(network) as counter:
        network(image, list(tasks))
    return counter.flops


@torch.no_grad()
def cost_alone(network: MTLNetwork, image: Tensor, task: str) -> tuple[int, float]:
    """Returns the FLOPs of predicting one task alone, and the number of its active parameters.

    Active are the parameters that this forward pass reads. Of a layer's E experts, k / E count: those of one token.

    Args:
        network: Any network.
        image: (B, 3, H, W) uint8.
        task: Name of the task.
    """
    with counting(network) as counter:
        network(image, [task])
    shares = {
        id(parameter): layer.router.count([task]) / layer.router.experts
        for layer in network.modules()
        if isinstance(layer, ExpertLayer)
        for parameter in layer.experts.parameters(recurse=False)  # Those below are common to all experts.
    }
    return counter.flops, sum(p.numel() * shares.get(key, 1.0) for key, p in counter.read.items())


def _formulas() -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    # PyTorch has no formulas for attention on a CPU, nor for the products of experts.
    more: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        **flop_mapping(),
    }
    return {**flop_registry, **{key: _on_shapes(formula) for key, formula in more.items()}}


def _on_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    def of(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        shapes = tree_map(lambda x: x.shape if isinstance(x, Tensor) else x, (args, kwargs))
        return formula(*shapes[0], **shapes[1])

    return of


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)
