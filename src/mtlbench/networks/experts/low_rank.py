"""Low-rank experts: changes of a frozen MLP, of which every token uses a few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlbench.networks.experts.routing import Routing


class LowRankExperts(nn.Module):
    """A frozen MLP plus E products of two narrow matrices: mlp(x) + Σ_i gate_i · B_i A_i x.

    All experts together have E · r columns, fewer than a token has channels in most uses. They are computed for every
    token, and those that it does not use get the weight 0: two dense products are faster than a sorted dispatch.
    The B_i start at zero, so that the MLP is unchanged at first.
    """

    def __init__(self, mlp: nn.Module, width: int, rank: int, experts: int) -> None:
        """Builds the experts.

        Args:
            mlp: The MLP, which is frozen.
            width: Width D of a token.
            rank: r.
            experts: Number of experts E.
        """
        super().__init__()
        self.mlp = mlp.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(experts, width, rank))
        self.up = nn.Parameter(torch.zeros(experts, rank, width))
        nn.init.trunc_normal_(self.down, std=0.02)

    @property
    def experts(self) -> int:
        """E."""
        return len(self.down)

    def forward(self, tokens: Tensor, routing: Routing) -> Tensor:
        """Returns the changed MLP's output, in the shape of the tokens (..., D).

        Args:
            tokens: (..., D), N tokens in total.
            routing: Routing of the same tokens.
        """
        weights = routing.gates.new_zeros(len(routing.gates), self.experts)
        weights = weights.scatter(1, routing.chosen, routing.gates)
        low = torch.einsum("nd,edr->ner", tokens.flatten(0, -2), self.down.to(tokens))
        change = torch.einsum("ner,erd->nd", low * weights[:, :, None].to(low), self.up.to(low))
        return self.mlp(tokens) + change.view_as(tokens)

    def keep(self, experts: Sequence[int]) -> None:
        """Removes all experts except those listed."""
        for name in ("down", "up"):
            setattr(self, name, nn.Parameter(getattr(self, name).detach()[list(experts)].clone()))
