"""Task-aware sparse mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlbench.data import Batch
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.experts import load_balance
from mtlbench.networks.moe import TaskMoENetwork


class TaskMoE(MTLMethod):
    """Task-aware sparse mixture of experts (https://arxiv.org/abs/2204.07689, 2022).

    Rule: In some transformer blocks the MLP becomes E smaller ones. A router sends each token x of task t to the k
    experts of largest p = softmax(W [x; e_t]) and mixes their outputs with those p, divided by their sum if k >= 2.
    The network runs once per task. The loss gains balance · Σ_layers E · Σ_e f_e · P_e.

    Symbols: E experts per layer; k experts per token; e_t a learned vector of task t; W the router's matrix; P_e
    the mean of p_e and f_e the share of choices of expert e, both over the tokens of all tasks and ranks.

    Args:
        experts: E. The paper's value is unknown to us, as are those below: this is our reading of its idea.
        top_k: k, 1..E.
        gate: What the logits are: ``"token_task"`` W [x; e_t], ``"task"`` W e_t, ``"per_task"`` W_t x, or
            ``"agnostic"`` W x, the control.
        placement: Blocks with experts: ``"every"``, ``"alternate"`` (the 2nd, 4th, ...) or a list of indices.
        balance: Coefficient of the load balance, >= 0; 0.01 and the sum over layers are the Switch transformer's.

    Differences from the official code: there is none to compare with. The paper works on text, this on images; it
    starts experts from a pretrained MLP, these start at random, also where the encoder has pretrained weights.
    An expert's width is the MLP's over k, so active FLOPs equal those of the dense network run once per task.

    Example:
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "vit_tiny_patch16_224", "image_size": [32, 32], "encoder_options": {"depth": 2}}
        >>> method = TaskMoE(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), experts=4)
        >>> method.configure_model()
        >>> sorted(method(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
        ['depth', 'normals']
    """

    SEARCH: ClassVar[dict[str, Any]] = {"balance": [0.001, 0.003, 0.01, 0.03, 0.1]}

    def __init__(
        self,
        spec: MethodSpec,
        *,
        experts: int = 8,
        top_k: int = 2,
        gate: str = "token_task",
        placement: str | Sequence[int] = "alternate",
        balance: float = 0.01,
    ) -> None:
        """Takes the hyper-parameters; `build_network` checks them against the encoder."""
        super().__init__(spec)
        if not balance >= 0:
            raise MethodError(f"task_moe: balance must be >= 0; found {balance}.")
        self.options: dict[str, Any] = {"experts": experts, "top_k": top_k, "gate": gate, "placement": placement}
        self.balance = balance
        self._seen: dict[str, Tensor] = {}
        self._load: Tensor | None = None

    def build_network(self) -> MTLNetwork:
        """Returns the sparse network."""
        return TaskMoENetwork(self.tasks, **self.options, **self.spec.model)

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the load balance of the mixture of all tasks, once all have run."""
        if self._seen.keys() & outputs.predictions.keys():
            # A task that comes again begins another step: an earlier one was interrupted.
            self._seen.clear()
        layers = outputs.statistics["router"]
        rows = torch.stack([torch.stack((layer["probability"], layer["load"])) for layer in layers])  # (L, 2, T, E)
        self._seen.update(zip(outputs.predictions, rows.unbind(2), strict=True))
        if self._seen.keys() != self.tasks.keys():
            # One stream per task: balancing each by itself would spread every task over all experts.
            return {}
        probability, load = torch.stack(list(self._seen.values()), 2).unbind(1)  # (L, T, E) each
        self._seen.clear()
        self._load = load.detach()
        return {"load_balance": self.balance * load_balance(probability, load)}

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns the share of choices that every expert received in the last batch, over all tasks."""
        if self._load is None:
            return {}
        shares = self._load.mean(1)  # (L, E)
        return {
            f"experts/layer{layer}/expert{expert}": share
            for layer, row in enumerate(shares)
            for expert, share in enumerate(row)
        }
