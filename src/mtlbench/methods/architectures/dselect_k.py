"""DSelect-k: MMoE with gates that learn to choose k experts."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlbench.data import Batch
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.mmoe import DSelectGate, MMoENetwork, selector_entropy


class DSelectK(MTLMethod):
    """Differentiable selection in the mixture of experts (https://arxiv.org/abs/2106.03760, NeurIPS 2021).

    Rule: The head of task t reads Σ_e g_t,e · expert_e(x) with g_t = Σ_s softmax(V_t mean(x))_s · r_t,s. Selector s
    encodes an expert in log2 E bits: r_t,s,e = Π_b (S(z_b) where bit b of e is 1, else 1 - S(z_b)) with
    z = A_t mean(x) + c_t and the smooth step S(z) = -2 z³/γ³ + 3 z/(2γ) + ½ between 0 at -γ/2 and 1 at γ/2. Once all
    bits are 0 or 1, at most k experts have a weight. The loss gains entropy · Σ_t Σ_s H(r_t,s), the mean over images.

    Symbols: E experts; k selectors of each task; x the neck's map; A_t, c_t, V_t owned by task t; H entropy in nats.

    Args:
        experts: E, a power of 2.
        top_k: k, 1..E; the official default is 2.
        gamma: γ > 0; the official default is 1.
        entropy: Coefficient >= 0; the official default is 1e-6.

    Cost of a step: that of `mmoe` with the same number of experts. Training runs all experts, whatever the choice.

    Differences from the official code: E must be a power of 2, whereas the official code penalises codes without an
    expert. Experts are those of `mmoe`. Beyond ±γ/2 a bit has no gradient, and its expert stays chosen until the
    features below the gate change.

    Example:
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = DSelectK(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> outputs = method.network(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])
        >>> outputs.statistics["gates"]["normals"].shape, list(method.regularisation(outputs, {}))
        (torch.Size([2, 4]), ['selector_entropy'])
    """

    TAXONOMY = "architectures/conditional"
    SEARCH: ClassVar[dict[str, Any]] = {"top_k": [1, 2], "gamma": [0.1, 1.0, 10.0], "entropy": [1e-6, 1e-3, 1e-1]}

    network: MMoENetwork

    def __init__(
        self, spec: MethodSpec, *, experts: int = 4, top_k: int = 2, gamma: float = 1.0, entropy: float = 1e-6
    ) -> None:
        super().__init__(spec)
        if not entropy >= 0:
            raise MethodError(f"dselect_k: entropy must be >= 0. Found {entropy}. The default is 1e-6.")
        self.experts, self.entropy = experts, entropy
        self.gate = functools.partial(DSelectGate, top_k=top_k, gamma=gamma)

    def build_network(self) -> MTLNetwork:
        """Returns the network with experts and selecting gates."""
        return MMoENetwork(self.tasks, experts=self.experts, gate=self.gate, **self.spec.model)

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the entropy of the selectors of the tasks that were run."""
        neck = outputs.representation[:, 0]  # type: ignore[index]
        terms = [selector_entropy(self.network.gates[task].selectors(neck)) for task in outputs.predictions]
        return {"selector_entropy": self.entropy * torch.stack(terms).sum()}
