"""Builds the Lightning Trainer of a run; no other module creates one."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from mtlbench.runs.spec import RunSpec
from mtlbench.training import checkpoint
from mtlbench.training.sharding import FSDP2Strategy


def build_trainer(
    spec: RunSpec, folder: Path, callbacks: list[L.Callback], world: int, batches: int = 1, nodes: int = 1
) -> L.Trainer:
    """Returns the Trainer of a run. ``world`` ranks were started already, one process each, as many on every node."""
    _quiet_lightning()
    trainer = spec.trainer
    cuda = torch.cuda.is_available()
    strategy: Strategy = SingleDeviceStrategy(torch.device("cuda", 0) if cuda else torch.device("cpu"))
    if world > 1:
        # Both backends, so that counts are added on the host without waiting for a device. Buffers: see evaluation.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        sharded = spec.local.get("strategy") == "fsdp"
        strategy = (FSDP2Strategy if sharded else DDPStrategy)(process_group_backend=backend, broadcast_buffers=False)
    return L.Trainer(
        accelerator="cuda" if cuda else "cpu",
        devices=world // nodes,
        num_nodes=nodes,
        strategy=strategy,
        precision=trainer["precision"],
        max_steps=trainer["steps"],
        max_epochs=-1,
        limit_train_batches=None if trainer["steps"] else 0,  # A run without steps asks the data for no batches.
        accumulate_grad_batches=trainer["accumulate"] * batches,
        gradient_clip_val=trainer["clip"] or None,
        callbacks=callbacks,
        # Named, because Lightning would take the tasks of a SLURM or MPI job, in which benches run, for ranks.
        plugins=[checkpoint.CheckpointFiles(), LightningEnvironment()],
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        sync_batchnorm=cuda and world > 1,
        inference_mode=False,
    )


def _quiet_lightning() -> None:
    """Silence warnings of Lightning about intended choices: our own evaluation, and our rule for buffers."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for text in ("You defined a `validation_step`", "`broadcast_buffers` is deprecated", "`isinstance\\(treespec"):
        warnings.filterwarnings("ignore", message=text)
    for text in ("The 'train_dataloader' does not have many workers", "You're resuming from a checkpoint that ended"):
        warnings.filterwarnings("ignore", message=text)
