"""A sparse layer: a router and its experts, which replace the attention or MLP of a block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtlbench.networks.experts.attention import ExpertAttention
from mtlbench.networks.experts.low_rank import LowRankExperts
from mtlbench.networks.experts.mlp import ExpertMlp
from mtlbench.networks.experts.routing import TaskRouter
from mtlbench.networks.experts.statistics import LayerStatistics, RunningTables


class ExpertLayer(nn.Module):
    """Routes the tokens of several tasks, one task after the other, through one set of experts."""

    def __init__(self, router: TaskRouter, experts: ExpertMlp | ExpertAttention | LowRankExperts, tasks: int) -> None:
        """Builds the layer.

        Args:
            router: Router over the same number of experts.
            experts: MLPs, attention heads, or low-rank changes of an MLP.
            tasks: Number of tasks T of the network.
        """
        super().__init__()
        self.router = router
        self.experts = experts
        self.running = RunningTables(tasks, router.experts)

    def forward(self, x: Tensor, tasks: Sequence[str]) -> tuple[Tensor, LayerStatistics]:
        """Returns the experts' output in the shape of ``x``, and the routing statistics of the tasks.

        Args:
            x: (G · B, N, D), B images of each task.
            tasks: Names of the G tasks.
        """
        routing = self.router(x.flatten(0, 1), tasks)
        return self.experts(x, routing), LayerStatistics.of(routing, self.experts.experts)

    def keep(self, experts: Sequence[int]) -> None:
        """Removes all experts except those listed, for a network of one task.

        Args:
            experts: At least k indices, ascending.
        """
        self.router.keep(experts)
        self.experts.keep(experts)
        self.running = RunningTables(1, len(experts))
