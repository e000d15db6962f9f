"""`MTLMethod`, the one extension point of mtlbench, and the training step that it takes part in."""

from mtlbench.method.method import MTLMethod
from mtlbench.method.spec import DEFAULT_OPTIMISER, MethodSpec

__all__ = ["DEFAULT_OPTIMISER", "MTLMethod", "MethodSpec"]
