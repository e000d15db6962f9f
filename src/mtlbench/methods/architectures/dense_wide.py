"""Dense network with as many parameters as another method's; the control for the size of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mtlbench import registry
from mtlbench.errors import MethodError, SuiteError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.dense import build_dense
from mtlbench.networks.families import family_of

_RULE = (
    "dense_wide widens the MLPs of a transformer. Choose a plain one as model.encoder, for example "
    "'vit_tiny_patch16_224'."
)


class DenseWide(MTLMethod):
    """Dense network as large as another method's network (a control of mtlbench's own).

    Rule: The network of `uniform`, with the MLPs of its transformer so wide that the number of trainable parameters
    is that of the reference: their hidden units per unit of a token, ``mlp_ratio``, solve P(mlp_ratio) = P_reference.
    One hidden unit of all MLPs is the step. If experts do not beat this row, what helps is the number of parameters.

    Pretrained weights fill the first hidden units of every MLP. The other units start with random incoming and zero
    outgoing weights, so the wide encoder starts with the features of the pretrained one.

    Symbols: P number of trainable parameters.

    Args:
        as_large_as: Name of the reference, a method with one network. Gates of single tasks count, so the width may
            depend on the tasks of a run. A warm start needs equal networks: in the scenario `unseen_task`, name `moe`.
        arguments: Its hyper-parameters, where a suite does not train it with the defaults.

    Differences from common practice: none; a suite could give ``uniform`` an ``mlp_ratio`` in its ``model`` by hand.

    Example:
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> tasks = {"depth": Depth("depth"), "normals": Normals("normals")}
        >>> model = {"encoder": "vit_tiny_patch16_224", "image_size": [32, 32], "encoder_options": {"depth": 2}}
        >>> method = DenseWide(MethodSpec(tasks, model), as_large_as="moe", arguments={"experts": 4})
        >>> round(method.mlp_ratio, 2)  # one block of two has four experts, each half as wide as the MLP of ratio 4
        6.01
    """

    TAXONOMY = "baseline"

    def __init__(
        self, spec: MethodSpec, *, as_large_as: str = "task_moe", arguments: dict[str, Any] | None = None
    ) -> None:
        super().__init__(spec)
        self.as_large_as, self.arguments = as_large_as, dict(arguments or {})
        cls: Any = registry.find(as_large_as)
        if not issubclass(cls, MTLMethod) or issubclass(cls, DenseWide):
            raise MethodError(
                f"dense_wide: as_large_as must name a method with a network of its own, for example task_moe. Found "
                f"{as_large_as}."
            )
        registry.check_arguments(as_large_as, cls, self.arguments)
        self._reference = cls

    @cached_property
    def mlp_ratio(self) -> float:
        """Hidden units of an MLP per unit of a token's width."""
        fresh = {**self.spec.model, "weights": None}
        reference = self._reference(replace(self.spec, model=fresh), **self.arguments)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                target = _size(reference.build_network())
                # The number of parameters is linear in the ratio, as long as it makes whole hidden units.
                one, two = (_size(build_dense(self.tasks, _widened(fresh, ratio))) for ratio in (1, 2))
        except SuiteError as error:
            raise MethodError(f"{_RULE} {error}") from error
        if one == two:
            raise MethodError(f"{_RULE} {fresh['encoder']} has none.")
        ratio = 1 + (target - one) / (two - one)
        if ratio <= 0:
            raise MethodError(
                f"dense_wide: {self.as_large_as} has fewer parameters ({target:,}) than a network without MLPs. Name a "
                "larger reference."
            )
        return ratio

    def build_network(self) -> MTLNetwork:
        """Returns the wide network.

        Raises:
            MethodError: If pretrained MLPs are wider than those of a network as small as the reference.
        """
        model = dict(self.spec.model)
        wide = build_dense(self.tasks, _widened({**model, "weights": None}, self.mlp_ratio))
        if model.get("weights"):
            pretrained = build_dense(self.tasks, model).encoder
            self._fill(wide.encoder, pretrained)
        return wide

    def _fill(self, wide: nn.Module, pretrained: nn.Module) -> None:
        state = pretrained.state_dict()
        with torch.no_grad():
            for name, value in wide.state_dict().items():
                source = state[name]
                if any(ours < theirs for ours, theirs in zip(value.shape, source.shape, strict=True)):
                    raise MethodError(
                        f"dense_wide: {self.as_large_as} is smaller than the dense network, so pretrained weights "
                        "do not fit. Name a larger reference, or set model.weights=null."
                    )
                if value.shape[1:] != source.shape[1:]:  # from hidden units: the new ones add nothing yet
                    value.zero_()
                value[tuple(slice(size) for size in source.shape)] = source

    def summary(self) -> dict[str, Any]:
        """Returns the balancer's summary, and how wide the network is."""
        return {**super().summary(), "mlp_ratio": self.mlp_ratio}


def _widened(model: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    head, colon, name = model["encoder"].rpartition(":")
    name, options = family_of(model["encoder"]).widened(name, model.get("encoder_options") or {}, ratio)
    return {**model, "encoder": f"{head}{colon}{name}", "encoder_options": options}


def _size(network: MTLNetwork) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
