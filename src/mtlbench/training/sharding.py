"""Parameters in shards over the ranks (FSDP2), for encoders whose weights, gradients and optimiser do not fit a device.

Each rank keeps a share of every parameter, of its gradient and of the optimiser's state. A block is gathered when it
runs. Checkpoints hold whole tensors, so that a run may resume on another number of ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from mtlbench.errors import MethodError
from mtlbench.method import MTLMethod
from mtlbench.networks.base import Outputs
from mtlbench.runs.spec import RunSpec

OWN_STEP = (
    "rank_losses", "training_step", "backward", "on_before_optimizer_step", "optimizer_step", "configure_optimizers",
)  # fmt: skip
"""A method that overrides one of these hooks may read whole parameters or gradients."""


class FSDP2Strategy(DDPStrategy):
    """Shards the network of a method instead of copying it to every rank; ranks start as under DDP."""

    _plain: Any = None
    _failed = False

    def configure_ddp(self) -> None:
        """Cuts the network into shards: every block of the encoder on its own, and the rest together."""
        method: Any = self.lightning_module
        # Kept on the host, where it takes the place of the sharded network when training has ended.
        self._plain = copy.deepcopy(method.network).cpu()
        shard(method.network, self.root_device.type, self.num_processes)
        method.configure_model()  # The parameters are other objects now.
        self._hook = method.register_state_dict_post_hook(_gather)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the optimiser's state in whole tensors; all ranks call it together."""
        return pytree.tree_map(_whole, optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this rank's share of the state of a checkpoint."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            cut = {
                index: {key: _share_of(value, parameters[index]) for key, value in found.items()}
                for index, found in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": cut})

    def on_exception(self, exception: BaseException) -> None:
        """Remembers that ranks may no longer meet."""
        self._failed = True
        super().on_exception(exception)

    def teardown(self) -> None:
        """Puts a whole network in place of the shards first: afterwards ranks score different numbers of batches."""
        if self._plain is not None and not self._failed:
            method: Any = self.lightning_module
            state, device = method.state_dict(), method.device
            self._hook.remove()
            for optimizer in self.optimizers:
                optimizer.state.clear()
            method.network, self._plain = self._plain.to(device).train(method.network.training), None
            method.configure_model()
            method.load_state_dict(state)
        super().teardown()


def shard(network: Any, device: str, ranks: int) -> None:
    """Cuts the parameters of a network into shards.

    Args:
        network: An `MTLNetwork`.
        device: Type of the ranks' devices, ``"cuda"`` or ``"cpu"``.
        ranks: Their number.
    """
    if Outputs not in pytree.SUPPORTED_NODES:
        # The hooks of the backward pass are set on the tensors in what the network returns.
        pytree.register_dataclass(Outputs)
    mesh = init_device_mesh(device, (ranks,))
    for block in network.encoder_blocks():
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)


@contextmanager
def whole(network: nn.Module) -> Iterator[None]:
    """Keeps all parameters of a network gathered, so that ranks may run it different numbers of times.

    Every rank enters and leaves it. A network without shards is left alone.
    """
    parts = [part for part in network.modules() if isinstance(part, FSDPModule)]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not network, recurse=False)


def check_sharding(method: MTLMethod, spec: RunSpec) -> None:
    """Refuses what does not work on shards.

    Raises:
        MethodError: With every reason and its remedy. `Update.settle` refuses gradient rules.
    """
    own = [hook for hook in OWN_STEP if getattr(type(method), hook) is not getattr(MTLMethod, hook)]
    faults = []
    if own:
        faults.append(
            f"{spec.label} overrides {', '.join(own)} and may need whole parameters. Use trainer.strategy=ddp."
        )
    if method.surgery.rest:
        faults.append(
            f"{spec.label} trains {len(method.surgery.rest)} parameters outside the network, which are not sharded. "
            "Use trainer.strategy=ddp."
        )
    if spec.local.get("diagnose_every"):
        faults.append("Gradient conflict is measured on whole gradients. Set trainer.diagnose_every=0.")
    if spec.trainer["precision"] == "16-mixed":
        faults.append("Each rank would scale its losses on its own. Set trainer.precision=bf16-mixed.")
    if spec.local.get("compile"):
        faults.append("A compiled graph would gather no shards. Leave trainer.compile empty.")
    if faults:
        raise MethodError("\n".join(f"trainer.strategy=fsdp: {fault}" for fault in faults))


def _gather(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Makes the tensors of a state dict whole; all ranks call it together."""
    for name, value in state.items():
        state[name] = _whole(value)


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _share_of(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    # Every rank has read the same checkpoint, so nothing is sent.
    there = value.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)
