"""Expert MLPs: the sparse form of a transformer block's MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError, SuiteError
from mtlbench.networks.experts.dispatch import Dispatch, expert_mlp
from mtlbench.networks.experts.routing import Routing
from mtlbench.networks.text_encoder import GatedMlp

INITS = ("random", "split", "copy", "scaled")
"""Initialisations of MLP experts; see `ExpertMlp.upcycle`."""

STACKED_BIASES = ("bias1", "bias2")
"""Names of the biases of all experts, (E, d) each."""


class ExpertMlp(nn.Module):
    """E two-layer MLPs of width h, plain or gated, of which each token uses k. No token is dropped.

    The weights are stacked, so an expert without tokens has a zero gradient instead of None. Weight decay still shrinks
    its matrices; `ExpertMethod` exempts the biases, which an optimiser would take for matrices.
    """

    def __init__(self, width: int, hidden: int, experts: int, *, gated: bool = False) -> None:
        """Builds the experts, initialised like timm's vision transformers.

        Args:
            width: Width D of a token.
            hidden: Hidden width h of an expert.
            experts: Number of experts E.
            gated: Whether an expert is W2 (gelu(a) · b) with (a, b) = W1 x instead of W2 gelu(W1 x).
        """
        super().__init__()
        first = 2 * hidden if gated else hidden
        self.weight1 = nn.Parameter(torch.empty(experts, width, first))
        self.weight2 = nn.Parameter(torch.empty(experts, hidden, width))
        self.bias1 = nn.Parameter(torch.zeros(experts, first))
        self.bias2 = nn.Parameter(torch.zeros(experts, width))
        for weight in (self.weight1, self.weight2):
            nn.init.trunc_normal_(weight, std=0.02)

    @property
    def experts(self) -> int:
        """E."""
        return len(self.weight1)

    def forward(self, tokens: Tensor, routing: Routing) -> Tensor:
        """Returns Σ_k gate · expert(token): (..., D).

        Args:
            tokens: (..., D), N tokens in total.
            routing: Routing of the same tokens.
        """
        dispatch = Dispatch.of(routing.chosen, self.experts)
        layers = (self.weight1, self.bias1, self.weight2, self.bias2)
        return expert_mlp(tokens.flatten(0, -2), routing.gates, dispatch, *layers).view_as(tokens)

    @torch.no_grad()
    def upcycle(self, mlp: nn.Module, init: str, top_k: int = 1) -> None:
        """Initialises the experts from a trained dense MLP of hidden width H.

        ``copy``: every expert is the whole MLP (h = H), so that renormalised gates reproduce it exactly at k times its
        cost. ``split``: expert e holds slice e mod (H / h) of the hidden units with its output scaled by H / h, so that
        equal gates on one expert of each slice reproduce the MLP. ``scaled``: every expert is the whole MLP with its
        output multiplied by E / k, so that k raw gates of 1 / E reproduce it. Raw gates give their router a gradient
        even if all experts are equal (He et al., https://arxiv.org/abs/2410.07524, 2024).

        Args:
            mlp: An MLP of two linear layers, like timm's.
            init: ``"copy"``, ``"split"`` or ``"scaled"``.
            top_k: k, for ``"scaled"``.

        Raises:
            MethodError: The experts do not divide the MLP evenly.
        """
        first, second = two_layers(mlp)
        hidden, whole = self.weight2.shape[1], second.in_features
        parts = whole // hidden
        if whole % hidden or self.experts % parts or (init != "split") != (parts == 1):
            raise MethodError(
                f"start {init!r} needs experts that divide the dense MLP evenly. Its hidden width is {whole}; found "
                f"{self.experts} experts of width {hidden}. Make `experts` a multiple of top_k, and top_k a divisor of "
                f"{whole}."
            )
        # Every expert gets one slice of the hidden units; slices repeat if there are more experts than slices. In a
        # gated MLP, a slice has two halves.
        piece = torch.arange(self.experts, device=first.weight.device) % parts
        form = (-1, parts, hidden)
        self.weight1.copy_(first.weight.t().unflatten(1, form).movedim(2, 0).flatten(2)[piece])
        self.weight2.copy_(parts * second.weight.t().unflatten(0, (parts, hidden))[piece])
        if first.bias is not None:
            self.bias1.copy_(first.bias.unflatten(0, form).movedim(1, 0).flatten(1)[piece])
        if second.bias is not None:
            self.bias2.copy_(second.bias.expand_as(self.bias2))
        if init == "scaled":
            for output in (self.weight2, self.bias2):
                output.mul_(self.experts / top_k)

    def keep(self, experts: Sequence[int]) -> None:
        """Removes all experts except those listed."""
        for name in ("weight1", "bias1", "weight2", "bias2"):
            setattr(self, name, nn.Parameter(getattr(self, name).detach()[list(experts)].clone()))


def two_layers(mlp: nn.Module) -> tuple[Any, Any]:
    """Returns the two linear layers of a transformer's MLP, the first of which may be twice as wide: it is then gated.

    Raises:
        SuiteError: The MLP has another form.
    """
    layers = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    gated = isinstance(mlp, GatedMlp)
    if (
        len(layers) != 2
        or layers[0].in_features != layers[1].out_features
        or layers[0].out_features != (1 + gated) * layers[1].in_features
    ):
        raise SuiteError(
            f"Experts replace an MLP of two linear layers. Found {type(mlp).__name__}. Choose another encoder, for "
            "example 'vit_tiny_patch16_224'."
        )
    return layers[0], layers[1]
