"""Metrics with versioned protocols. Names load lazily, so that `delta_m` does not import torch."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "delta_m": "relative",
    "Protocol": "protocol",
    "MeanIoU": "segmentation",
    "NormalsError": "geometry",
    "DepthError": "geometry",
    "MaxF": "saliency",
    "SaliencyIoU": "saliency",
    "EdgeBSDS": "edges",
    "EdgeODSF": "edges",
    "edge_protocols": "edges",
    "MapError": "maps",
    "SoftAccuracy": "maps",
    "SoftCrossEntropy": "maps",
    "AveragePrecision": "detection",
    "CorrectKeypoints": "keypoints",
    "Joint": "joint",
    "Accuracy": "scalar",
    "SquaredError": "scalar",
    "AbsoluteError": "scalar",
    "MeanLoss": "scalar",
    "ClassAgreement": "agreement",
    "Correlation": "agreement",
    "LabelF1": "table",
    "PoissonDeviance": "table",
    "SpanOverlap": "tokens",
    "TokenAgreement": "tokens",
    "Success": "control",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
