"""Reparameterised convolutions: a frozen filter bank that all tasks share, and a 1 x 1 modulator per task."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench import distributed
from mtlbench.errors import MethodError
from mtlbench.networks.dense import build_dense
from mtlbench.networks.named import NamedModules
from mtlbench.networks.parallel_encoders import SeparateColumns
from mtlbench.tasks import Task

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
SILENT = 1e-10
"""Share of the largest variance below which a direction of responses counts as empty."""


class Modulated(nn.Module):
    """y = W_t (W_s * x) + b: a convolution of the frozen bank, then the 1 x 1 convolution of one task.

    Attributes:
        direction: (C, C), rows v_c.
        scale: (C,), lengths g_c of the rows of W_t = g_c v_c / ‖v_c‖; absent if the weights are used as they are.
    """

    def __init__(self, bank: nn.Conv2d, bias: Tensor | None, *, normalised: bool) -> None:
        """Builds the layer with W_t = 1, which leaves the convolution of the bank as it is.

        Args:
            bank: Frozen convolution without bias. It is not registered here, because all tasks share it.
            bias: (C,), initial bias, or None.
            normalised: Whether rows of W_t have a direction and a length of their own.
        """
        super().__init__()
        self._bank = (bank,)
        self.direction = nn.Parameter(torch.eye(bank.out_channels))
        self.scale = nn.Parameter(torch.ones(bank.out_channels)) if normalised else None
        self.bias = nn.Parameter(bias.detach().clone()) if bias is not None else None

    def weight(self) -> Tensor:
        """Returns W_t (C, C)."""
        if self.scale is None:
            return self.direction
        return self.scale[:, None] * F.normalize(self.direction, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, C, h, w)."""
        return F.conv2d(self._bank[0](x), self.weight()[:, :, None, None].to(x.dtype), self.bias)

    def untouched(self) -> bool:
        """Returns whether W_t is the identity, as at first."""
        plain = bool(self.direction.equal(torch.eye(len(self.direction)).to(self.direction)))
        return plain and (self.scale is None or bool(self.scale.eq(1).all()))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Sets W_t.

        Args:
            weight: (C, C).
        """
        self.direction.copy_(weight)
        if self.scale is not None:
            self.scale.copy_(weight.norm(dim=1))


class RCMNetwork(SeparateColumns):
    """One network per task whose convolutions share frozen filter banks. No two tasks share a trainable parameter.

    Norms, modulators, neck and head belong to a task. Other layers of the encoder, such as the linear layers and the
    embeddings of a transformer, are frozen and shared. A task's network runs only if the task is requested.

    Attributes:
        banks: Frozen convolutions, by name of the layer with ``/`` in place of dots.
        bases: The basis (C, C) to which a bank was rotated, by the same name; the identity before.
        rotated: Whether banks were rotated.
    """

    rotated: Tensor

    # The entries are used as convolutions and tensors. mypy would treat them as plain modules.
    banks: Any
    bases: Any

    def __init__(self, tasks: Mapping[str, Task], *, normalised: bool = True, **model: Any) -> None:
        """Builds the network, whose predictions are those of the dense network of the same seed.

        Args:
            tasks: Tasks by name.
            normalised: See `Modulated`.
            model: Arguments of `DenseNetwork`.

        Raises:
            MethodError: The encoder has no convolution.
            SuiteError: The encoder cannot be built.
        """
        super().__init__()
        single = build_dense(tasks, model)
        convolutions = convolutions_of(single.encoder)
        self.banks = nn.ModuleDict({name.replace(".", "/"): _frozen(conv) for name, conv in convolutions.items()})
        self.bases = nn.Module()
        for name, bank in self.banks.items():
            if type(bank) is nn.Conv2d and bank.groups == 1:
                self.bases.register_buffer(name, torch.eye(bank.out_channels))
        self.register_buffer("rotated", torch.zeros((), dtype=torch.bool))
        self.encoders = NamedModules()
        for task in tasks:
            encoder = copy.deepcopy(single.encoder)
            _freeze_but_norms(encoder, single.encoder)
            for name, conv in convolutions.items():
                bank = self.banks[name.replace(".", "/")]
                encoder.set_submodule(name, Modulated(bank, conv.bias, normalised=normalised))
            self.encoders[task] = encoder
        self.necks = NamedModules({task: copy.deepcopy(single.neck) for task in tasks})
        self.heads = single.heads

    @torch.no_grad()
    def start_from_responses(self, images: Iterable[Tensor]) -> None:
        """Rotates every bank to the principal components of its responses, once, and modulators back.

        If banks are rotated already, only the modulators of tasks that are new since then are rotated. Predictions
        stay as they are up to rounding, those of trained tasks bit for bit. Layers with groups, and those that change
        their weights in the forward pass, keep their bank.

        Args:
            images: Batches (B, 3, H, W) uint8 of this rank, before any training; sums are added over ranks.
        """
        bases = dict(self.bases.named_buffers())
        if not self.rotated:
            for name, moments in self._measured(images, list(bases)).items():
                bank, basis = self.banks[name], principal_basis(moments.covariance())
                bases[name].copy_(basis)
                bank.weight.copy_((basis.T.to(bank.weight) @ bank.weight.flatten(1)).view_as(bank.weight))
            self.rotated.fill_(True)
        for encoder in self.encoders.values():
            layers = {name: encoder.get_submodule(name.replace("/", ".")) for name in bases}
            if all(layer.untouched() for layer in layers.values()):
                for name, layer in layers.items():
                    layer.start(bases[name])

    def _measured(self, images: Iterable[Tensor], names: Sequence[str]) -> dict[str, _Moments]:
        """Returns the moments of the responses of some banks."""
        first = next(iter(self.encoders.values()))
        sums = {name: _Moments(self.banks[name].out_channels, self.banks[name].weight.device) for name in names}

        def record(name: str) -> Any:
            return lambda module, inputs, output: sums[name].add(output)

        handles = [self.banks[name].register_forward_hook(record(name)) for name in names]
        training = first.training
        try:
            first.eval()
            for batch in images:
                first(first.normalise(batch))
        finally:
            first.train(training)
            for handle in handles:
                handle.remove()
        return sums


class _Moments:
    """Sums of the responses of a layer and of their products."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.sums = torch.zeros(channels + 1, channels, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, responses: Tensor) -> None:
        """Adds responses (B, C, h, w)."""
        columns = responses.double().movedim(1, 0).flatten(1)
        self.sums[:-1] += columns @ columns.T
        self.sums[-1] += columns.sum(1)
        self.count += columns.shape[1]

    def covariance(self) -> Tensor:
        """Returns the covariance (C, C) over all ranks."""
        sums, count = distributed.sum_(self.sums.clone()), distributed.sum_(self.count.clone()).clamp(min=1)
        mean = sums[-1] / count
        return sums[:-1] / count - mean[:, None] * mean


def principal_basis(covariance: Tensor) -> Tensor:
    """Returns an orthogonal basis (C, C): columns are principal components, the largest variance first.

    The largest entry of a component is positive. Directions without variance are completed from the unit vectors in
    order, so that rounding does not choose them.

    Args:
        covariance: (C, C) in float64.
    """
    values, vectors = torch.linalg.eigh(covariance)
    order = values.argsort(descending=True)
    vectors = vectors[:, order[values[order] > SILENT * values.max().clamp(min=1e-300)]]
    largest = vectors.abs().argmax(0, keepdim=True)
    columns = list((vectors * vectors.gather(0, largest).sign()).T)
    for unit in torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device):
        if len(columns) == len(covariance):
            break
        rest = unit
        for _ in range(2):  # Once more against what rounding has left.
            known = torch.stack(columns) if columns else unit.new_zeros(0, len(unit))
            rest = rest - known.T @ (known @ rest)
        if rest.norm() > 1e-3:
            columns.append(rest / rest.norm())
    return torch.stack(columns, 1)


def convolutions_of(encoder: nn.Module) -> dict[str, nn.Conv2d]:
    """Returns the trainable convolutions of an encoder by name.

    Raises:
        MethodError: There is none.
    """
    found = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad}
    if not found:
        raise MethodError(
            "rcm: what a task learns are modulators of convolutions, and this encoder has no convolution. Choose "
            "`model.encoder` among CNNs, for example resnet18."
        )
    return found


def _frozen(conv: nn.Conv2d) -> nn.Conv2d:
    bank = copy.deepcopy(conv)
    bank.bias = None
    return bank.requires_grad_(requires_grad=False)


def _freeze_but_norms(encoder: nn.Module, common: nn.Module) -> None:
    """Freezes everything outside norms, and lets it be the tensors of a common encoder."""
    for name, module in encoder.named_modules():
        if isinstance(module, NORMS):
            continue
        for key in [key for key, _ in module.named_parameters(recurse=False)]:
            shared = getattr(common.get_submodule(name), key).requires_grad_(requires_grad=False)
            setattr(module, key, shared)
