"""LDC-MTL: a small router weights the losses, and a penalty keeps the weighted losses of neighbouring tasks alike."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from mtlbench import distributed
from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.scale import known_scale
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.family import Model

NORMALISE = ("none", "initial", "log")


class LDCMTL(MTLMethod):
    """Loss discrepancy control for multi-task learning (https://arxiv.org/abs/2502.08585, 2025).

    Rule: L = A (Σ_i w_i N_i + λ Σ_{i<A} |w_i N_i - w_{i+1} N_{i+1}|), w = softmax(W f + b).

    Symbols: f mean of the shared representation over pixels, images and ranks; W, b the router, trained with the
    network by the suite's optimiser; N_i the normalised loss of task i; A tasks with a label in the step.

    Args:
        penalty: λ, at least 0. The paper uses 0.05 on NYUv2 and QM9, 0.1 on Cityscapes and 0.01 on CelebA.
        normalise: ``"none"``: N_i = L_i (Cityscapes, CelebA). ``"initial"``: N_i = L_i min_j L_j(0) / L_i(0), where
            L(0) is that of the first batch (NYUv2). ``"log"``: N_i = ln(L_i / L_i(0)), where L(0) is that of the first
            batch of every epoch (QM9).
        scale: ``"sum"``: with the factor A. ``"raw"``: without it, as in the paper.

    Neighbours are those in the order of the run's tasks, so that with three tasks or more their order matters. The
    gradient of w also reaches the network through f. A task that is absent takes no part.

    Differences from the official code: the factor A. On NYUv2 the code also clamps w to [0.2, 0.8], and on Cityscapes
    the penalty is that of the unweighted losses; neither is available. The network must name its representation.

    Example:
        >>> import torch
        >>> combined(torch.tensor([1.0, 2.0]), torch.tensor([0.6, 0.4]), penalty=0.1)
        tensor(1.4200)
    """

    TAXONOMY = "optimisation/loss weighting/other"
    SEARCH = {"penalty": [0.01, 0.05, 0.1, 0.5], "normalise": list(NORMALISE)}

    initial: Tensor

    def __init__(self, spec: MethodSpec, *, penalty: float = 0.05, normalise: str = "none", scale: str = "sum"):
        super().__init__(spec)
        if not 0 <= penalty < math.inf:
            raise MethodError(f"ldc_mtl: penalty must be at least 0 and finite. Found {penalty}. The default is 0.05.")
        if normalise not in NORMALISE:
            raise MethodError(f"ldc_mtl: {unknown_name('normalise', normalise, NORMALISE)}")
        self.penalty, self.normalise, self.scale = penalty, normalise, known_scale("ldc_mtl", scale)
        self.register_buffer("initial", torch.full((len(self.tasks),), float("nan")))

    def configure_model(self) -> None:
        """Builds the network, and a router for the channels of its representation."""
        if not hasattr(self, "network"):
            self.network = self.build_network()
            self.router = nn.Linear(Model(**self.spec.model).decoder_channels, len(self.tasks))
        super().configure_model()

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the penalised sum of (A,) losses under the router's weights."""
        weights = torch.softmax(self.router(self._features())[list(ctx.active)], 0).to(losses)
        value = combined(self._normalised(losses, ctx), weights, self.penalty)
        return len(losses) * value if self.scale == "sum" else value

    def _features(self) -> Tensor:
        """Returns f (C,), whose gradient is right under gradient averaging over ranks."""
        if not self._state.representation:
            raise MethodError(
                "ldc_mtl needs the tensor through which all heads read the shared parameters. This network names none "
                "(Outputs.representation) or hides it (trainer.compile). Do not compile it, or choose another rule."
            )
        maps = [self.network.sample_features(z) for z in self._state.representation]
        local = cast(Tensor, sum(z.sum(0) for z in maps))
        images = distributed.sum_counts([sum(len(z) for z in maps)], self.device)[0]
        total = distributed.sum_(local.detach().clone())
        # Value of all ranks; every rank contributes the gradient of its own images, which averaging divides by ranks.
        return (total + distributed.world_size() * (local - local.detach())).to(self.router.weight) / images

    def _normalised(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns N (A,); remembers the losses of the first batch."""
        if self.normalise == "none":
            return losses
        active, now = list(ctx.active), losses.detach().to(self.initial)
        if self.normalise == "log" and ctx.step % self.spec.steps_per_epoch == 0 and self._state.micro_index == 0:
            self.initial.fill_(float("nan"))
        self.initial[active] = torch.where(self.initial[active].isnan(), now, self.initial[active])
        first = self.initial[active].to(losses)
        return losses * first.min() / first if self.normalise == "initial" else (losses / first).log()


def combined(losses: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Returns the weighted sum of (A,) losses plus the penalised differences of neighbours.

    Args:
        losses: (A,) normalised.
        weights: (A,) of sum 1.
        penalty: λ.
    """
    weighted = weights * losses
    return weighted.sum() + penalty * weighted.diff().abs().sum()
