"""μ2Net: introduces tasks one by one; evolution decides which components of earlier tasks a new one shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.evolution import Evolution
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.paths import PathNetwork, layout
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec


class Mu2Net(MTLMethod):
    """μ2Net: an evolutionary approach to dynamic introduction of tasks (https://arxiv.org/abs/2205.12755, 2022).

    Rule: a network is a path of components: embedding, blocks of the encoder, adapters, neck and head. A child has the
    path of its parent. With probability μ each, a component is copied and trained, otherwise it is shared as it is; an
    adapter is inserted after a stage; a hyper-parameter moves to a neighbouring value. The head is always trained. The
    child with the largest q · b ^ (p / P) is kept for its task, and its components never change again.

    Symbols: q validation score; p parameters of the path, each divided by the number of paths of tasks that use it; P
    parameters of a path without adapters. The parent is the best path of the task so far that is accepted with
    probability 0.5 ^ (its children for this task), then one of the other tasks' paths, which are offered in turn with
    the same probabilities, otherwise any of them. The first task starts from the initial weights.

    Args:
        order: Tasks in the order of their introduction; empty for the suite's.
        children: Children per generation, at least 1. The paper has 8.
        generations: Generations per task, at least 1. The paper has 8, in each of two rounds over the tasks.
        share: Share of the suite's steps that a child is trained for, in (0, 1]; the default is ours.
        mutation: μ of the initial weights, in [0, 1]; μ itself mutates. The paper's is 0.1.
        base: b, in (0, 1]; 1 ignores parameters. The paper's is 0.95.
        width: Width of adapters, at least 1; the default is ours.
        trained: Components that a run trains besides the head; the plan sets it. None for all.
        adapters: Stages with an adapter; the plan sets it.

    Every child is an ordinary run on one task: what was trained is not trained again, and a task that is added later
    changes no bit of an earlier one. The scenario `incremental` adds tasks in this way. Cost: ``children`` times
    ``generations`` times ``share`` of a single-task run per task. The column of parameters counts what the serving
    runs train; the report draws what all paths store together, and the lineage. A child that diverges ends the row.

    Differences from the official code: the learning rate, weight decay, warm-up, schedule and μ mutate, images and
    their augmentation do not. A generation is trained together, and each task is visited once. Components are blocks of
    any encoder that runs stage by stage, and the neck. All random initial weights are copied, because frozen ones are
    of no use; the paper starts from a pretrained network. The divisor of p is unverified. Errors, of which less is
    better, are divided by b ^ (p / P). If the data has no further split, children are chosen by the reported scores.

    Example:
        >>> from mtlbench.method.evolution import penalised
        >>> round(penalised(0.8, share=0.5, base=0.95), 4)  # half of a network for a score of 0.8
        0.7797
    """

    TAXONOMY = "architectures/computer vision/task routing"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    ARRIVALS: ClassVar[str] = "plan"
    SEARCH: ClassVar[dict[str, Any]] = {"mutation": [0.05, 0.1, 0.2]}

    network: PathNetwork

    def __init__(
        self,
        spec: MethodSpec,
        *,
        order: Sequence[str] = (),
        children: int = 8,
        generations: int = 2,
        share: float = 0.25,
        mutation: float = 0.1,
        base: float = 0.95,
        width: int = 16,
        trained: list[str] | None = None,
        adapters: Sequence[int] = (),
    ) -> None:
        super().__init__(spec)
        _check_counts(children=children, generations=generations, width=width)
        if not (0 < share <= 1 and 0 <= mutation <= 1 and 0 < base <= 1):
            raise MethodError(
                "mu2net: share and base must be in (0, 1], and mutation in [0, 1]. Found "
                f"{share}, {base} and {mutation}. The defaults are 0.25, 0.95 and 0.1."
            )
        self.trained, self.adapters, self.width = trained, adapters, width

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the generations of every task in turn, and returns the best child of each."""
        arguments = registry.defaults(cls, spec.method["arguments"])
        cls(MethodSpec({}, spec.model), **arguments)  # Raises if an argument is out of range.
        return (yield from Evolution.of(spec, lambda: layout(spec.model), **arguments).plan())

    def build_network(self) -> MTLNetwork:
        """Returns the path.

        Raises:
            MethodError: There is no such component or stage.
        """
        return PathNetwork(
            self.tasks, trained=self.trained, adapters=self.adapters, width=self.width, **self.spec.model
        )

    def use_sources(self, networks: Mapping[str, MTLNetwork]) -> None:
        """Takes the components of the parent."""
        self.network.take(networks["parent"])

    def summary(self) -> dict[str, Any]:
        """Returns the parameters of every component of the path, and which are shared."""
        return {**super().summary(), "components": dict(self.network.sizes), "shared": sorted(self.network.frozen)}


def _check_counts(**values: int) -> None:
    if wrong := {name: value for name, value in values.items() if not value >= 1 or math.isinf(value)}:
        name, value = next(iter(wrong.items()))
        raise MethodError(
            f"mu2net: {name} must be a whole number of at least 1. Found {value}. Leave it out for the default."
        )
