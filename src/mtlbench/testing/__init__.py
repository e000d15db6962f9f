"""Public contract checks for methods, networks and data modules, and the toy data that they use."""

from mtlbench.testing.contracts import (
    TOLERANCE,
    Finding,
    check_data_module,
    check_method,
    check_network,
    difference,
)
from mtlbench.testing.toy import ToyData, toy_spec, trained

__all__ = [
    "TOLERANCE",
    "Finding",
    "ToyData",
    "check_data_module",
    "check_method",
    "check_network",
    "difference",
    "toy_spec",
    "trained",
]
