"""Expert attention: experts have their own query and output projections and share one key and one value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.networks.experts.dispatch import Dispatch, segment_matmul
from mtlbench.networks.experts.routing import Routing


class ExpertAttention(nn.Module):
    """Mixture of attention heads (Zhang et al., arXiv:2210.05144; in Mod-Squad, arXiv:2212.08066).

    A token's k experts are its k heads. Each has a query projection D → d and an output projection d → D, without
    bias. All experts share one key and one value of width d. The output is the sum of the heads, weighted by the gates.
    """

    def __init__(self, width: int, head_width: int, experts: int) -> None:
        """Builds the experts.

        Args:
            width: Width D of a token.
            head_width: Width d of a head.
            experts: Number of experts E.
        """
        super().__init__()
        self.query = nn.Parameter(torch.empty(experts, width, head_width))
        self.output = nn.Parameter(torch.empty(experts, head_width, width))
        self.key_value = nn.Linear(width, 2 * head_width)
        for weight in (self.query, self.output, self.key_value.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.key_value.bias)

    @property
    def experts(self) -> int:
        """E."""
        return len(self.query)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """Returns (R, N, D).

        Args:
            x: (R, N, D), the N tokens of each of R images.
            routing: Routing of the R · N tokens.
        """
        rows, tokens, _ = x.shape
        dispatch = Dispatch.of(routing.chosen, self.experts)
        queries = segment_matmul(dispatch.spread(x.flatten(0, 1)), self.query, dispatch)
        key, value = self.key_value(x).unsqueeze(1).chunk(2, dim=-1)  # (R, 1, N, d) each
        # All heads share one key, so the k heads of N tokens are computed as N · k queries of a single head.
        query = dispatch.collect(queries).view(rows, 1, tokens * routing.chosen.shape[1], -1)
        heads = F.scaled_dot_product_attention(query, key, value)
        heads = heads.reshape(rows * tokens, routing.chosen.shape[1], -1)
        results = segment_matmul(dispatch.spread(heads), self.output, dispatch)
        return dispatch.collect(results, routing.gates).view_as(x)

    def keep(self, experts: Sequence[int]) -> None:
        """Removes all experts except those listed."""
        for name in ("query", "output"):
            setattr(self, name, nn.Parameter(getattr(self, name).detach()[list(experts)].clone()))
