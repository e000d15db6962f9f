"""SAMO: takes every task's gradient at a point of its own, where the losses are sharp; any rule combines them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlbench import distributed
from mtlbench.data import Batch
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.forward import RankLosses, label_counts, loss_sums
from mtlbench.method.lookahead import moved
from mtlbench.networks.base import Outputs
from mtlbench.seeding import seed_of


class SAMO(MTLMethod):
    """Sharpness-aware multi-objective optimisation (https://arxiv.org/abs/2507.07883, ICCV 2025).

    Rule: for every parameter tensor p, j_ip = (1 - β) g_p + β ‖g_p‖ s_i z_ip / ‖z_ip‖; ε_i = ρ j_i / ‖j_i‖. The
    gradient of L_i is that at (θ + ε_i, φ_i + ρ h_i / ‖h_i‖); the step starts from (θ, φ).

    Symbols: θ shared parameters, φ_i those of task i alone; g gradient of the mean loss with respect to θ, h_i with
    respect to φ_i; z_i ~ N(0, I) over θ, drawn for every task in every step; s_i the sign of
    L_i(θ + μ z_i) - L_i(θ - μ z_i), without dropout and with the running statistics of BatchNorm.

    Args:
        rho: ρ, at least 0; the official runs use 0.001. 0 is the wrapped rule.
        beta: β in [0, 1], share of the task's own direction; the official runs use 0.5. With 0 all tasks have one ε.
        mu: μ, above 0; the official code uses 0.01.

    The rows of the Jacobian are these gradients: any balancer combines them (``{name: samo, balancer: cagrad}``);
    without one, they are added. A step costs 1 + 3T forward and 1 + T backward passes before those of the balancer.

    Differences from the official code: the weights are not copied into a second model. z has a generator of its own,
    the same on all ranks, and s_i is that of the loss over all ranks. BatchNorm's running means see the unperturbed
    pass alone. Regularisers are those at θ. Under accumulation every micro-batch has its own ε. A rule on the
    representation is refused, because the tasks have no common one.

    Example:
        >>> import torch
        >>> gradient, noise = [torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])]
        >>> perturbation(gradient, noise, torch.tensor(1.0), rho=0.1, beta=0.5)
        [tensor([0.0316, 0.0949])]
    """

    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"rho": [1e-4, 1e-3, 1e-2], "beta": [0.1, 0.5, 0.9]}

    def __init__(self, spec: MethodSpec, *, rho: float = 0.001, beta: float = 0.5, mu: float = 0.01):
        super().__init__(spec)
        if not 0 <= rho < float("inf"):
            raise MethodError(f"samo: rho must be at least 0 and finite. Found {rho}. The default is 0.001.")
        if not 0 <= beta <= 1:
            raise MethodError(f"samo: beta must be in [0, 1]. Found {beta}. The default is 0.5.")
        if not 0 < mu < float("inf"):
            raise MethodError(f"samo: mu must be above 0 and finite. Found {mu}. The default is 0.01.")
        self.rho, self.beta, self.mu = rho, beta, mu

    def rank_losses(self, batch: Batch) -> RankLosses:
        """Returns the loss sums of all tasks, each at its own perturbed parameters."""
        plain = super().rank_losses(batch)
        shared, heads = self._gradients(plain, batch)
        signs = self._signs(batch)
        sums = []
        for i, name in enumerate(self.tasks):
            step = perturbation(shared, self._noise(i), signs[i], rho=self.rho, beta=self.beta)
            own = perturbation(heads[i], heads[i], signs[i], rho=self.rho, beta=0.0)
            change = zip([*self.surgery.shared, *self.surgery.owned[i]], [*step, *own], strict=True)
            sums += loss_sums(self._moved_network({id(p): p + e.to(p) for p, e in change}), self.tasks, batch, [name])
        return RankLosses(sums, plain.regularisers, [])

    def _gradients(self, plain: RankLosses, batch: Batch) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Returns the gradient of the mean loss, averaged over ranks: of shared parameters, and of each task's own."""
        counts = distributed.sum_counts(label_counts(self.tasks, batch), self.device)
        factors = [task.scale / max(1, count) for task, count in zip(self.tasks.values(), counts, strict=True)]
        total = sum(
            (f * loss for f, loss in zip(factors, plain.sums, strict=True)), torch.zeros((), device=self.device)
        )
        places = [*self.surgery.shared, *(p for own in self.surgery.owned for p in own)]
        found = torch.autograd.grad(total, places, retain_graph=bool(plain.regularisers), allow_unused=True)
        known = [torch.zeros_like(p) if g is None else g for g, p in zip(found, places, strict=True)]
        rest = iter(distributed.mean_row(known))
        return [next(rest) for _ in self.surgery.shared], [[next(rest) for _ in own] for own in self.surgery.owned]

    @torch.no_grad()
    def _signs(self, batch: Batch) -> Tensor:
        """Returns s (T,), from 2T forward passes in evaluation mode."""
        found = []
        with _evaluating(self.network):
            for i, name in enumerate(self.tasks):
                noise = self._noise(i)
                sides = []
                for side in (self.mu, -self.mu):
                    with moved(self.network, self.surgery.shared, [side * z for z in noise]):
                        sides += loss_sums(self.network, self.tasks, batch, [name])
                found.append(sides[0] - sides[1])
        return torch.sign(distributed.sum_(torch.stack(found)))

    def _noise(self, task: int) -> list[Tensor]:
        """Returns z of a task, one tensor per shared parameter: the same on all ranks and whenever it is asked for."""
        seed = seed_of("samo", self.spec.seed, self._state.step, self._state.micro_index, task)
        generator = torch.Generator(self.device).manual_seed(seed)
        return [torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device) for p in self.surgery.shared]

    def _moved_network(self, values: Mapping[int, Tensor]) -> Any:
        """Returns the network with other parameters; gradients reach its own, and its buffers do not move."""
        tensors = {name: values[id(p)] for name, p in self.network.named_parameters() if id(p) in values}
        tensors |= {name: buffer.clone() for name, buffer in self.network.named_buffers()}

        def predict(image: Tensor, tasks: Sequence[str]) -> Outputs:
            return functional_call(self.network, tensors, (image, tasks))

        return predict


@torch.no_grad()
def perturbation(
    gradient: Sequence[Tensor], noise: Sequence[Tensor], sign: Tensor, *, rho: float, beta: float
) -> list[Tensor]:
    """Returns ε, one tensor per parameter; zeros where j is zero.

    Args:
        gradient: g, one tensor per parameter.
        noise: z, likewise.
        sign: s, ().
        rho: ρ.
        beta: β.
    """
    joint = []
    for g, z in zip(gradient, noise, strict=True):
        length = z.norm()
        own = torch.where(length > 0, g.norm() * sign / length, 0.0) * z
        joint.append((1 - beta) * g + beta * own)
    if not joint:
        return []
    size = torch.stack([j.double().square().sum() for j in joint]).sum().sqrt()
    scale = torch.where(size > 0, rho / size, 0.0)
    return [j * scale.to(j) for j in joint]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode, and every module back into its own afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
