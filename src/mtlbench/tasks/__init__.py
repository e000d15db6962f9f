"""Tasks: one thing to predict each, with its loss, its ignore rule, its metrics and their direction."""

from mtlbench.tasks.base import IGNORE, Task
from mtlbench.tasks.dense import BinaryMap, Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from mtlbench.tasks.image import NO_CLASS, Classification, Regression

__all__ = [
    "IGNORE", "NO_CLASS", "BinaryMap", "Classification", "Depth", "Edges", "HumanParts", "Normals", "Regression",
    "Saliency", "SemanticSegmentation", "Task",
]  # fmt: skip
