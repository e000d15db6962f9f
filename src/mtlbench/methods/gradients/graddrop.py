"""GradDrop: keeps gradients of one sign only in each coordinate, with a random sign drawn by its purity."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.errors import MethodError


class GradDrop(Balancer):
    """Just pick a sign (https://arxiv.org/abs/2010.06808, NeurIPS 2020).

    Rule: p = ½ (1 + Σ_i g_i / Σ_i |g_i|) per coordinate; with U ~ U(0, 1), keep g_i > 0 where p > U and g_i < 0 where
    p < U; d = Σ_i (leak + (1 - leak) · mask_i) · g_i.

    Symbols: g_i gradient of task i with respect to the shared parameters, p positive sign purity.

    Args:
        leak: Share of a dropped coordinate that still passes, in [0, 1]; the paper uses 0.

    Differences from the paper: the rule uses the gradients of the shared parameters, not of a representation z, so that
    it supports accumulation and every network. The paper's form is not available: its p uses g_i ⊙ sign(z) summed over
    all samples of all ranks, so a rule would need z and a sum over ranks within one micro-batch, which no other rule
    needs. All ranks, and a resumed run, repeat the same draws. If the rule is called with blocks of columns, it draws
    for each block, so the draws depend on the size of the blocks.

    Example:
        >>> import torch
        >>> GradDrop(leak=1.0).direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
    """

    TAXONOMY = "optimisation/gradient modulation"
    VERSION = 2
    SEARCH = {"leak": [0.0, 0.25, 0.5]}
    COLUMNWISE = True

    def __init__(self, leak: float = 0.0):
        super().__init__()
        if not 0 <= leak <= 1:
            raise MethodError(f"graddrop: leak must be in [0, 1]. Found {leak}. The default is 0.")
        self.leak = leak

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the direction (P,) from the (A, P) Jacobian, or a block of it, in one pass over the rows."""
        total = jacobian[0].clone()
        size = total.abs()
        spare = torch.empty_like(size)
        for row in jacobian[1:]:
            total += row
            size += torch.abs(row, out=spare)
        # With u = 1 - U, p > U means Σ g - Σ |g| + 2u Σ |g| > 0, and the kept part is ½ (Σ g ± Σ |g|). If all gradients
        # have one sign they always pass: u = 0 gives +0 if none is negative, and u is never 1.
        side = torch.sub(total, size, out=spare).addcmul_(uniform(total, ctx.generator), size, value=2)
        signed = torch.copysign(size, side, out=spare)
        return total.mul_((1 + self.leak) / 2).add_(signed, alpha=(1 - self.leak) / 2)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns samples of U[0, 1) in the shape of ``like`` (P,), seeded by one number from the step's generator.

    On a CPU they come from NumPy's SFC64 generator, which is faster than PyTorch's.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    drawn = torch.empty_like(like)
    if like.device.type != "cpu":
        return drawn.uniform_(generator=torch.Generator(like.device).manual_seed(seed))
    numbers = drawn.numpy()
    np.random.Generator(np.random.SFC64(seed)).random(dtype=numbers.dtype, out=numbers)
    return drawn
