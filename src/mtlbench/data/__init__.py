"""Data: the batch contract, stateless loading, and `MTLDataModule`, the base class of every data set."""

from mtlbench.data.batches import Collate, StepBatches, check_division
from mtlbench.data.contract import Batch, Sample, Samples, streams
from mtlbench.data.module import MTLDataModule

__all__ = ["Batch", "Collate", "MTLDataModule", "Sample", "Samples", "StepBatches", "check_division", "streams"]
