"""The rule shared by `aligned_mtl` (Gramian of the shared parameters) and `aligned_mtl_ub` (of the representation)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.torchjd import AlignedMTLWeighting, gramian_weights
from mtlbench.errors import MethodError, unknown_name

ALIGNMENTS = ("min", "median", "rmse")


class Aligned(GradientRule):
    """Makes the singular values of the Jacobian equal; see `mtlbench.methods.gradients.aligned_mtl`.

    Args:
        alignment: The eigenvalue of the Gramian to which all others are set: ``"min"``, ``"median"`` or ``"rmse"``.
        **conventions: See `GradientRule`.
    """

    SEARCH: ClassVar[dict[str, Any]] = {"alignment": list(ALIGNMENTS)}

    def __init__(self, alignment: str = "min", **conventions: Any):
        super().__init__(**conventions)
        if alignment not in ALIGNMENTS:
            raise MethodError(f"{type(self).__name__}: {unknown_name('alignment', alignment, ALIGNMENTS)}")
        self._rule = AlignedMTLWeighting(scale_mode=alignment)  # type: ignore[arg-type]

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the sums (A,) of the rows of the balancing matrix."""
        # TorchJD takes the rank from its argument's dtype, so the Gramian gets that of the gradients.
        relative = gramian / gramian.diagonal().amax().clamp(min=torch.finfo(gramian.dtype).tiny)
        weights = gramian_weights(self._rule, relative.to(ctx.losses.dtype), ctx.generator)
        return self.scaled(weights.double(), len(gramian), natural="mean")
