"""Tasks: one thing to predict each, with its loss, its ignore rule, its metrics and their direction."""

from mtlbench.tasks.base import IGNORE, Task, form_fault
from mtlbench.tasks.control import Action
from mtlbench.tasks.dense import BinaryMap, Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from mtlbench.tasks.detection import Detection
from mtlbench.tasks.geometry import Geometry, LabelOptions
from mtlbench.tasks.heat_maps import HeatMaps
from mtlbench.tasks.image import NO_CLASS, Classification, Regression
from mtlbench.tasks.keypoints import Keypoints
from mtlbench.tasks.scored import AbsoluteRegression, ScoredClassification, ScoredRegression
from mtlbench.tasks.table import Count, MultiLabel
from mtlbench.tasks.tokens import Span, TokenLabels

__all__ = [
    "IGNORE", "NO_CLASS", "AbsoluteRegression", "Action", "BinaryMap", "Classification", "Count", "Depth", "Detection",
    "Edges", "Geometry", "HeatMaps", "HumanParts", "Keypoints", "LabelOptions", "MultiLabel", "Normals", "Regression",
    "Saliency", "ScoredClassification", "ScoredRegression", "SemanticSegmentation", "Span", "Task", "TokenLabels",
    "form_fault",
]  # fmt: skip
