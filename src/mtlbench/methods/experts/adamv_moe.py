"""AdaMV-MoE: every task has a router of its own and learns how many experts its tokens need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.method.experts import ExpertMethod
from mtlbench.networks.experts.routing import AdaptiveRouter
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions


class AdaMVMoE(ExpertMethod):
    """AdaMV-MoE (https://github.com/google-research/google-research/tree/master/moe_mtl, ICCV 2023).

    Rule: A router of its own for each task t sends a token x to the k_t experts of largest p = softmax(W_t x) and mixes
    their outputs with those p. Every ``every`` steps the mean loss of a task over these steps is compared with its best
    one. If it has not fallen, k_t + 1 is tried for as many steps; if that does not help, k_t - 1; if that does not help
    either, k_t stays. What helps is kept. 1 ≤ k_t ≤ E / 2.

    Symbols: E experts per layer; k_t experts per token of task t, the same in all layers.

    Args:
        experts: E, at least 2.
        top_k: k_t at the start, in 1..E / 2.
        every: Steps between comparisons, at least 1. The default is ours.
        placement: Blocks with experts.
        balance: Coefficient of the balance losses of `m3vit`; 0 for none.
        noise: Standard deviation of the logits' noise, in training only.
        start: ``"random"``; ``"split"``, ``"copy"`` or ``"scaled"`` of the encoder's dense MLP, for pretrained weights.

    Differences from the official code: the rule that moves k_t is known to follow the validation loss; its details were
    not available. Here it follows the mean training loss, because validation labels must not train. Gates are raw,
    because k_t may become 1. Tasks run one after the other. An expert's width is the MLP's over ``top_k``, so that at
    the start a token costs what it costs in the dense network. `mtlbench extract` works as for `mod_squad`, with the
    final k_t.

    Example:
        >>> Patience(2, limit=4).after(1.0)  # the first comparison has nothing to compare with
        Patience(count=2, limit=4, base=2, trial=0, best=1.0)
        >>> Patience(2, limit=4, base=2, best=1.0).after(1.5).count  # no progress: one more is tried
        3
    """

    TAXONOMY = "architectures/conditional"
    SEARCH: ClassVar[dict[str, Any]] = {"balance": [0.001, 0.01, 0.1], "every": [25, 50, 100]}

    counts: Tensor
    bests: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(
        self,
        spec: MethodSpec,
        *,
        experts: int = 16,
        top_k: int = 2,
        every: int = 50,
        placement: str | Sequence[int] = "odd",
        balance: float = 0.01,
        noise: float = 0.0,
        start: str = "random",
    ) -> None:
        if not 1 <= top_k <= experts // 2:
            raise MethodError(f"adamv_moe: top_k must be in 1..experts / 2. Found {top_k} of {experts} experts.")
        if every < 1:
            raise MethodError(f"adamv_moe: every must be at least 1. Found {every}. The default is 50.")
        options = ExpertOptions(experts, top_k, placement, gate="per_task", noise=noise, init=start, adaptive=True)
        super().__init__(spec, options, RoutingWeights(task_balance=balance, importance=balance))
        self.every, self.limit = every, experts // 2
        tasks = len(self.tasks)
        # Rows: the k in use, the k to return to, and the number of the trial; see `Patience`.
        self.register_buffer("counts", torch.tensor([[top_k] * tasks, [top_k] * tasks, [0] * tasks]))
        self.register_buffer("bests", torch.full((tasks,), float("inf"), dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(tasks, dtype=torch.float64))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, and adapts k at the end of an interval."""
        super().optimizer_step(*args, **kwargs)
        losses = self.last_losses
        if losses is not None:
            self.sums += losses.double().nan_to_num()
            self.steps += losses.isfinite()
        if (self._state.step + 1) % self.every == 0:
            self._adapt()

    def _adapt(self) -> None:
        """Compares the mean losses of the interval with the best ones and moves k; the same on all ranks."""
        means, bests = (self.sums / self.steps).tolist(), self.bests.tolist()
        for i, (count, base, trial) in enumerate(self.counts.T.tolist()):
            if means[i] == means[i]:  # Not so for a task without a label.
                found = Patience(count, self.limit, base, trial, bests[i]).after(means[i])
                self.counts[:, i] = torch.tensor([found.count, found.base, found.trial])
                self.bests[i] = found.best
        self.sums.zero_()
        self.steps.zero_()
        for router in cast(list[AdaptiveRouter], self.network.routers):
            router.use(dict(zip(self.tasks, self.counts[0].tolist(), strict=True)))

    def summary(self) -> dict[str, Any]:
        """Returns what `ExpertMethod` does, and the final k of every task."""
        return {**super().summary(), "experts_per_token": dict(zip(self.tasks, self.counts[0].tolist(), strict=True))}


class Patience:
    """The number of experts of one task, and what is being tried.

    Attributes:
        count: k in use.
        limit: Largest k.
        base: k to return to if a trial does not help.
        trial: 0 for none, 1 for k + 1, 2 for k - 1.
        best: Smallest mean loss of an interval so far.
    """

    def __init__(self, count: int, limit: int, base: int | None = None, trial: int = 0, best: float = float("inf")):
        self.count, self.limit, self.base = count, limit, count if base is None else base
        self.trial, self.best = trial, best

    def __repr__(self) -> str:
        return f"Patience({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    def after(self, loss: float) -> Patience:
        """Returns what to do in the next interval, given the mean loss of the last one."""
        if loss < self.best:
            return Patience(self.count, self.limit, self.count, 0, loss)
        trial, tried = self.trial + 1, self.base + (1 if self.trial == 0 else -1)
        if trial == 1 and tried > self.limit:
            trial, tried = 2, self.base - 1
        if trial > 2 or tried < 1:
            return Patience(self.base, self.limit, self.base, 0, self.best)
        return Patience(tried, self.limit, self.base, trial, self.best)
