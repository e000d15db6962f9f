"""RCM: reparameterised convolutions, with a frozen filter bank for all tasks and modulators for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from mtlbench.data.contract import streams
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.flops import counting
from mtlbench.networks.rcm import RCMNetwork


class RCM(MTLMethod):
    """Reparameterised convolutions for incremental multi-task learning (https://arxiv.org/abs/2007.12540, ECCV 2020).

    Rule: every convolution of the encoder becomes W_t^i (W_s * x). The filter bank W_s holds the initial weights and is
    frozen; task i learns the 1 x 1 modulator W_t^i, its norms, neck and head. No trainable parameter reaches two tasks.
    Tasks therefore cannot disturb each other: training them together or one after another is the same, a new task
    changes no prediction of an old one, and every balancer on gradients equals the plain sum.

    Symbols: response initialisation takes the principal components U of the responses W * x of each layer and starts
    from W_s = Uᵀ W and W_t = U, whose product is W. Normalised feature fusion writes row c of W_t as g_c v_c / ‖v_c‖.

    Args:
        response_init: Whether banks are rotated before training; otherwise W_t starts as the identity.
        normalised: Whether rows of W_t have a direction and a length of their own.
        calibration: Batches whose responses are measured, at least 1; fewer if the run has fewer steps.

    Cost of a step: T forward and T backward passes; before the first, a forward pass per batch of the calibration,
    which the training FLOPs count. A modulator has 1/9 of the weights of a 3 x 3 convolution with as many channels in
    and out.

    Differences from the official code: the bank is useful only with pretrained weights, which the suite chooses
    (``model.weights``). Basis and bank are exact inverses, so no mean has to be folded into BatchNorm. Decoders are the
    suite's, one per task, where the paper has ASPP. Grouped convolutions are modulated but not rotated. Linear layers
    and embeddings of an encoder that has them stay frozen, so a transformer learns little but its norms. The scenario
    `incremental` adds tasks one after another.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = RCM(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> method.network.shared_parameters(["depth", "normals"])
        []
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])["normals"].shape
        torch.Size([2, 3, 32, 48])
    """

    VERSION = 2  # 2: training FLOPs count the calibration.
    TAXONOMY = "architectures/computer vision/single tasking"
    SEARCH: ClassVar[dict[str, Any]] = {"response_init": [True, False]}

    network: RCMNetwork

    def __init__(
        self, spec: MethodSpec, *, response_init: bool = True, normalised: bool = True, calibration: int = 10
    ) -> None:
        super().__init__(spec)
        if calibration < 1:
            raise MethodError(f"rcm: calibration must be at least 1 batch. Found {calibration}. The default is 10.")
        self.response_init, self.normalised, self.calibration = response_init, normalised, calibration
        self._prepared = 0

    def build_network(self) -> MTLNetwork:
        """Returns banks, and modulators per task.

        Raises:
            MethodError: The encoder has no convolution.
        """
        return RCMNetwork(self.tasks, normalised=self.normalised, **self.spec.model)

    def on_train_start(self) -> None:
        """Rotates the banks, unless a checkpoint or the run that this one starts from has done so."""
        super().on_train_start()
        if self.response_init:
            with counting(self.network) as counter:
                self.network.start_from_responses(self._images())
            self._prepared = counter.flops

    def preparation_flops(self) -> int:
        """Returns the FLOPs of the passes whose responses were measured."""
        return self._prepared

    def _images(self) -> Iterator[Tensor]:
        """Yields the images of the first batches."""
        trainer: Any = self.trainer
        for batch in itertools.islice(trainer.datamodule.train_dataloader(), self.calibration):
            for stream in streams(trainer.strategy.batch_to_device(batch)):
                yield stream["image"]
