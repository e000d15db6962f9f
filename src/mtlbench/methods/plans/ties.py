"""TIES: merges single-task networks after trimming small changes and resolving those of opposite sign."""

from __future__ import annotations

from torch import Tensor

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.method.merging import Merging
from mtlbench.networks.merging import ties


class TIES(Merging):
    """Resolving interference when merging models (https://arxiv.org/abs/2306.01708, NeurIPS 2023).

    Rule: of every τ_i = θ_i - θ_0 only the largest entries stay, a share k; γ = sign Σ_i τ_i; θ = θ_0 + λ m, where m is
    the mean over the entries that are not 0 and have the sign γ. Head i is that of network i, and all heads are then
    tuned on θ, which is frozen.

    Symbols: θ_i shared parameters of the single-task network of task i, θ_0 those from which all of them started.

    Args:
        keep: k, in (0, 1]; the paper uses 0.2.
        scale: λ, above 0, if none can be chosen; the paper uses 1.
        scales: λ that are tried, each in a run of its own; the best Δm on the validation split is chosen. If the data
            has no such split, λ is ``scale``. The values are ours.
        realign: Share of the suite's steps in which the heads are tuned, in (0, 1]. The default is ours.

    The networks are the runs of `single_task` with the same seed, and the tuning is that of `task_arithmetic`. The
    row's cost counts the single-task runs and every λ that was tried.

    Differences from the paper: heads are tuned on the merged encoder; see `task_arithmetic`.

    Example:
        >>> import torch
        >>> from mtlbench.networks.merging import ties
        >>> ties(torch.tensor([[3.0, -1.0, 0.5, 2.0], [-2.0, -2.0, 0.1, 1.0]]), keep=0.5, scale=1.0)
        tensor([ 3., -2.,  0.,  2.])
    """

    TAXONOMY = "relationships/transfer"

    def __init__(
        self,
        spec: MethodSpec,
        *,
        keep: float = 0.2,
        scale: float = 1.0,
        scales: list[float] | tuple[float, ...] = (0.3, 0.5, 0.7, 1.0, 1.5),
        realign: float = 0.1,
    ):
        super().__init__(spec, scale=scale, scales=scales, realign=realign)
        if not 0 < keep <= 1:
            raise MethodError(
                f"ties: keep, a share of the entries, must be in (0, 1]. Found {keep}. The paper has 0.2."
            )
        self.keep = keep

    def merged(self, changes: Tensor) -> Tensor:
        """Returns the change (P,) of the shared parameters for task vectors τ (T, P)."""
        return ties(changes, self.keep, self.scale)
