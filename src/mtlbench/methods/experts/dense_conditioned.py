"""Dense network that is told the task and runs once per task; the control for the cost of task-aware experts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtlbench.data import Batch
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.experts import ExpertMethod
from mtlbench.networks.base import Outputs
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions


class DenseConditioned(ExpertMethod):
    """Task-conditioned dense network: `task_moe` without experts (a control of mtlbench's own).

    Rule: A learned vector e_t is added to every token of task t before every block of the encoder. So features depend
    on the task, and encoder and neck run once per task, as they do where gates see the task. If a method with
    task-aware experts does not beat this row, what helps is the computation per task, not the experts.

    Symbols: e_t a vector of the width of a token, owned by task t.

    Args:
        task_tokens: Initial standard deviation of e_t, > 0; 0.02 is that of the other weights.

    Differences from common practice: FiLM would scale features too. One vector per task, which `mod_squad` has as well,
    is the least that makes features depend on the task.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "vit_tiny_patch16_224", "image_size": [32, 32], "encoder_options": {"depth": 2}}
        >>> method = DenseConditioned(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> sorted(method(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
        ['depth', 'normals']
    """

    TAXONOMY = "architectures/conditional"

    def __init__(self, spec: MethodSpec, *, task_tokens: float = 0.02) -> None:
        if not task_tokens > 0:
            raise MethodError(
                f"dense_conditioned: task_tokens, a standard deviation, must be > 0. Found {task_tokens}. Without "
                "vectors of the tasks this is the network of uniform."
            )
        options = ExpertOptions(placement="none", attention_placement="none", task_tokens=task_tokens)
        super().__init__(spec, options, RoutingWeights())

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns nothing: there is no routing."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Returns the balancer's summary, without tables of experts."""
        return MTLMethod.summary(self)
