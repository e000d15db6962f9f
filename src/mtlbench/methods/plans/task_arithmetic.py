"""Task arithmetic: adds what every single-task network has learned to the weights from which all of them started."""

from __future__ import annotations

from torch import Tensor

from mtlbench.method import MethodSpec
from mtlbench.method.merging import Merging
from mtlbench.networks.merging import task_arithmetic


class TaskArithmetic(Merging):
    """Editing models with task arithmetic (https://arxiv.org/abs/2212.04089, ICLR 2023).

    Rule: θ = θ_0 + λ Σ_i (θ_i - θ_0); head i is that of network i, and all heads are then tuned on θ, which is frozen.

    Symbols: θ_i shared parameters of the single-task network of task i, θ_0 those from which all of them started.

    Args:
        scale: λ, above 0, if none can be chosen.
        scales: λ that are tried, each in a run of its own; the best Δm on the validation split is chosen. If the data
            has no such split, λ is ``scale``. The values are ours.
        realign: Share of the suite's steps in which the heads are tuned, in (0, 1]. The default is ours.

    The networks are the runs of `single_task` with the same seed, whose encoders and necks start alike; merging assumes
    that θ_0 is pretrained (``model.weights``). The row's cost counts them and every λ that was tried. In the tuning,
    BatchNorm's running statistics start at the mean of the networks' and follow the merged one. Any balancer may weight
    the losses, but only heads are trained; the column of parameters counts these alone.

    Differences from the paper: it merges fine-tuned classifiers with frozen heads. Tuning the heads on the merged
    encoder follows later work on dense tasks (arXiv:2504.11268), which also trains low-rank changes of the encoder;
    that variant is not available.

    Example:
        >>> import torch
        >>> from mtlbench.networks.merging import task_arithmetic
        >>> task_arithmetic(torch.tensor([[3.0, -1.0, 0.5, 2.0], [-2.0, -2.0, 0.1, 1.0]]), 0.3)
        tensor([ 0.3000, -0.9000,  0.1800,  0.9000])
    """

    TAXONOMY = "relationships/transfer"

    def __init__(
        self,
        spec: MethodSpec,
        *,
        scale: float = 0.3,
        scales: list[float] | tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        realign: float = 0.1,
    ):
        super().__init__(spec, scale=scale, scales=scales, realign=realign)

    def merged(self, changes: Tensor) -> Tensor:
        """Returns λ Σ_i τ_i (P,) for task vectors τ (T, P)."""
        return task_arithmetic(changes, self.scale)
