"""Task grouping: chooses the tasks that share a network from tables of quality. Does not import torch."""

from mtlbench.grouping.assignment import Cover, Group, Table, best_cover, subsets
from mtlbench.grouping.plans import Grouping
from mtlbench.grouping.quality import from_pairs, random_partition, relative_gains

__all__ = [
    "Cover",
    "Group",
    "Grouping",
    "Table",
    "best_cover",
    "from_pairs",
    "random_partition",
    "relative_gains",
    "subsets",
]
