"""Sparse experts: task-aware routers, expert MLPs, expert attention, and the routing losses."""

from mtlbench.networks.experts.attention import ExpertAttention
from mtlbench.networks.experts.balance_losses import (
    importance_variation,
    load_balance,
    mutual_information,
    task_balance,
)
from mtlbench.networks.experts.layer import ExpertLayer
from mtlbench.networks.experts.mlp import ExpertMlp
from mtlbench.networks.experts.routing import GATES, Routing, TaskRouter
from mtlbench.networks.experts.statistics import LayerStatistics, RunningTables, global_mean, global_sum

__all__ = [
    "GATES",
    "ExpertAttention",
    "ExpertLayer",
    "ExpertMlp",
    "LayerStatistics",
    "Routing",
    "RunningTables",
    "TaskRouter",
    "global_mean",
    "global_sum",
    "importance_variation",
    "load_balance",
    "mutual_information",
    "task_balance",
]
