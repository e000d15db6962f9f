"""Task-aware sparse mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtlbench.method import MethodSpec
from mtlbench.method.experts import ExpertMethod
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions
from mtlbench.networks.sentences import described


class TaskMoE(ExpertMethod):
    """Task-aware sparse mixture of experts (https://arxiv.org/abs/2204.07689, 2022).

    Rule: In some transformer blocks the MLP becomes E smaller ones. A router sends each token x of task t to the k
    experts of largest p = softmax(W [x; e_t]) and mixes their outputs with those p, divided by their sum if k >= 2.
    Features therefore depend on the task. The loss gains balance · Σ_layers E · Σ_e f_e · P_e.

    Symbols: E experts per layer; k experts per token; e_t a learned vector of task t; W the router's matrix; P_e
    the mean of p_e and f_e the share of choices of expert e, both over the tokens of all tasks and ranks.

    Args:
        experts: E. The paper's values of this and the other arguments are unknown to us.
        top_k: k, 1..E.
        gate: What the logits are: ``"token_task"`` W [x; e_t], ``"task"`` W e_t, ``"description"`` W [x; MLP(d_t)] with
            given vectors d_t, ``"per_task"`` W_t x, or ``"agnostic"`` W x, which is the method `moe`.
        placement: Blocks with experts: ``"every"``, ``"odd"`` (the 2nd, 4th, ...), ``"even"`` or a list of indices.
        balance: Coefficient of the load balance, >= 0; 0.01 and the sum over layers are the Switch transformer's.
        noise: Standard deviation of noise on the logits, in training only.
        renormalise: Whether gates of a token sum to 1; None means where k >= 2.
        start: Initialisation of the experts: ``"random"``; ``"split"``, ``"copy"`` or ``"scaled"`` of the encoder's
            dense MLP, for pretrained weights.
        descriptions: d_t by task, for the gate of that name: a text about the task, or numbers.
        describer: Frozen encoder whose mean token is the d_t of a text: ``minilm``, a folder, or ``owner/name`` of the
            Hugging Face Hub. Its name identifies the run, not its content.

    Differences from the official code: no official code is known. The paper works on text; this method takes images and
    vectors too. An expert's width is the MLP's over k (except with ``copy`` and ``scaled``), so active FLOPs equal
    those of the dense network run once per task.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "vit_tiny_patch16_224", "image_size": [32, 32], "encoder_options": {"depth": 2}}
        >>> method = TaskMoE(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), experts=4)
        >>> method.configure_model()
        >>> sorted(method(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
        ['depth', 'normals']
    """

    TAXONOMY = "architectures/conditional"
    VERSION: ClassVar[int] = 4
    LATER: ClassVar[tuple[str, ...]] = ("describer",)
    SEARCH: ClassVar[dict[str, Any]] = {"balance": [0.001, 0.003, 0.01, 0.03, 0.1]}

    def __init__(
        self,
        spec: MethodSpec,
        *,
        experts: int = 8,
        top_k: int = 2,
        gate: str = "token_task",
        placement: str | Sequence[int] = "odd",
        balance: float = 0.01,
        noise: float = 0.0,
        renormalise: bool | None = None,
        start: str = "random",
        descriptions: Mapping[str, str | Sequence[float]] | None = None,
        describer: str = "minilm",
    ) -> None:
        options = ExpertOptions(
            experts,
            top_k,
            placement,
            gate=gate,
            noise=noise,
            renormalise=renormalise,
            init=start,
            descriptions=described(descriptions, describer),
        )
        super().__init__(spec, options, RoutingWeights(load_balance=balance))
