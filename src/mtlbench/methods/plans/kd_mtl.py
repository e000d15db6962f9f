"""KD-MTL: trains one network on all tasks while its features follow those of single-task networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mtlbench import distributed, registry
from mtlbench.data import Batch
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.optimisers import set_apart
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.knowledge_distillation import Adapters, TappedNetwork, taps
from mtlbench.runs import keys
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec
from mtlbench.tasks.inputs import inputs_of


class KDMTL(MTLMethod):
    """Knowledge distillation for multi-task learning (https://arxiv.org/abs/2007.06889, 2020).

    Rule: Single-task networks are trained first, one per task, and frozen: the teachers. The multi-task network, the
    student, minimises Σ_i L_i + Σ_i λ_i ℓ_i. The distance of its features from those of teacher i is
    ℓ_i = Σ_l mean over pixels of ‖ A_il f_l / ‖A_il f_l‖ − f_il / ‖f_il‖ ‖².

    Symbols: f_l feature of the student at tap l, f_il of teacher i; taps are the end of the encoder and that of the
    decoder, before the heads; A_il a learned 1 x 1 convolution without bias; norms are over channels.

    Args:
        weight: Factor on all λ_i, >= 0; the paper's is 1.
        weights: λ_i by task, >= 0, 1 where not named; the paper has 2 for surface normals, 1 for segmentation and
            depth. None for 1 everywhere.
        adapter_lr: Learning rate of all A, > 0, independent of the suite's rate but with its schedule. The paper's is
            0.1. ℓ_i does not depend on the size of A_il, so a large rate does no harm. The network's rate is too slow.
        adapter_decay: Weight decay of all A, >= 0; the paper's is 5e-4.

    Teachers are the runs of `single_task` with the same seed: where a suite has both methods they are trained once.
    They see the student's images after augmentation, in evaluation mode and in the step's precision. Nothing of them
    is in a checkpoint; the run's identity holds their ids and hashes. A step costs T forward passes of encoder and
    decoder more than `uniform`.

    Any balancer may combine the L_i; ℓ_i is added afterwards, and no gradient of it reaches a head. It needs no label:
    a task without labels in a step is still distilled. Only a step in which no task has any changes nothing.

    Differences from the official code: all parameters have one optimiser, that of the suite, where A has an Adam of
    its own, and the suite's schedule rather than halving every 100 epochs; clipping, where it is on, sees the
    gradients of A too. All λ_i are 1 by default. The student is the suite's dense network.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = KDMTL(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> KDMTL.roles(["depth", "normals"])  # a teacher each
        {'depth': ('depth',), 'normals': ('normals',)}
        >>> method.use_sources({"depth": method.network, "normals": method.network})  # its own, for the example
        >>> batch = {"inputs": torch.zeros(2, 3, 32, 48, dtype=torch.uint8)}
        >>> outputs = method.network(batch["inputs"], ["depth", "normals"])
        >>> sorted(method.regularisation(outputs, batch))
        ['distillation/depth', 'distillation/normals']
    """

    TAXONOMY = "optimisation/knowledge distillation"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"weight": [0.3, 1.0, 3.0]}

    network: TappedNetwork

    def __init__(
        self,
        spec: MethodSpec,
        *,
        weight: float = 1.0,
        weights: dict[str, float] | None = None,
        adapter_lr: float = 0.1,
        adapter_decay: float = 5e-4,
    ) -> None:
        super().__init__(spec)
        if not (0 < adapter_lr < math.inf and 0 <= adapter_decay < math.inf):
            raise MethodError(
                "kd_mtl: adapter_lr must be positive, adapter_decay at least 0, and both finite. Found "
                f"{adapter_lr} and {adapter_decay}. The defaults are 0.1 and 5e-4."
            )
        self.weights = _weights(list(self.tasks), weight, weights or {})
        self.adapter_lr, self.adapter_decay = adapter_lr, adapter_decay
        # A plain dict, because registered modules would be trained and saved.
        self._teachers: dict[str, DenseNetwork] = {}
        self._distances: dict[str, Tensor] = {}

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the single-task run of every task, then the student's."""
        single = spec.with_method(registry.record("single_task"))
        teachers = {task: single.with_tasks(task) for task in spec.tasks}
        yield list(teachers.values())
        student = spec.with_sources(**teachers)
        yield [student]
        return dict.fromkeys(spec.tasks, student.run_id)

    @classmethod
    def roles(cls, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns one teacher per task, named by it."""
        return {task: (task,) for task in tasks}

    def use_sources(self, networks: Mapping[str, MTLNetwork]) -> None:
        """Takes the teachers, one per task.

        Raises:
            MethodError: If there is not one for each task.
        """
        if set(networks) != set(self.tasks):
            raise MethodError(
                f"kd_mtl: every task needs one teacher. Tasks are {sorted(self.tasks)}, teachers {sorted(networks)}. "
                "Start the run with `mtlbench bench`, which follows the method's plan, or name a run per task in "
                "`with_sources`."
            )
        self._teachers = {task: cast(DenseNetwork, network) for task, network in networks.items()}

    def configure_model(self) -> None:
        """Builds student and adapters."""
        if not hasattr(self, "network"):
            self.network = TappedNetwork(self.tasks, **self.spec.model)
            self.adapters = Adapters(list(self.tasks), self.network.tap_channels())
        super().configure_model()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of every method, and one of the adapters."""
        own = {"lr": self.adapter_lr, "weight_decay": self.adapter_decay}
        return set_apart(super().parameter_groups(), self.adapters.parameters(), **own)

    def on_train_start(self) -> None:
        """Moves the teachers to the device and precision of the student."""
        super().on_train_start()
        self.use_sources(self._teachers)  # Raises if the run was started without its plan.
        for teacher in self._teachers.values():
            teacher.to(next(self.network.parameters()))

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns λ_i ℓ_i for every requested task, labelled or not."""
        # Every requested task is distilled, because the distance to a teacher needs no label.
        found = {}
        for task in outputs.predictions:
            with torch.no_grad():
                target = taps(self._teachers[task], inputs_of(batch))
            distance = self.adapters(task, outputs.statistics["taps"], target)
            self._distances[task] = distance.detach()
            found[keys.DISTILLATION.key(task=task)] = self.weights[task] * distance
        return found

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns ℓ_i of the last batch over all ranks."""
        if not self._distances:
            return {}
        values = distributed.mean_(torch.stack([self._distances[task] for task in self.tasks]))
        return {
            keys.DISTILLATION.key(task=task): value for task, value in zip(self.tasks, values.unbind(), strict=True)
        }


def _weights(tasks: Sequence[str], weight: float, weights: Any) -> dict[str, float]:
    """Returns λ of every task, checked."""
    given = [weight, *weights.values()] if isinstance(weights, Mapping) else [math.nan]
    if not all(isinstance(value, (int, float)) and 0 <= value < math.inf for value in given):
        raise MethodError(
            "kd_mtl: weight must be a finite number >= 0, and weights must map tasks to such numbers. Found "
            f"{weight!r} and {weights!r}."
        )
    for task in weights:
        if task not in tasks:
            raise MethodError("kd_mtl: weights: " + unknown_name("task", task, tasks))
    return {task: weight * weights.get(task, 1.0) for task in tasks}
