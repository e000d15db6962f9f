"""Learning over graphs: one network per task, whose trunks are pulled together along the edges of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mtlbench import registry
from mtlbench.errors import MethodError, unknown_name
from mtlbench.grouping.plans import checked_pairs
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks import graph as graphs
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.graph import GraphNetwork
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec

FORMS = ("atc", "penalty")
NAMES = ("complete", "ring", "affinity")


class GraphMTL(MTLMethod):
    """Multi-task learning over graphs (https://arxiv.org/abs/2001.02112, 2020).

    Rule: every task has its own trunk. Together they minimise Σ_i L_i(w_i) + η/4 Σ_{i,l} a_il ‖w_i - w_l‖². The form
    ``atc`` (adapt, then combine) steps on L_i alone, to ψ_i, and sets w_i = ψ_i - μη Σ_l a_il (ψ_i - ψ_l). The form
    ``penalty`` adds η Σ_l a_il (w_i - w_l) to the gradient of w_i. η = 0 is single-task training, a large η consensus.

    Symbols: w_i parameters of encoder and neck of task i; a_il weight of an edge; μ learning rate of the step. The sum
    Σ_i w_i does not change when columns are combined.

    Args:
        eta: η, >= 0. Refused if μη exceeds 1 / λ, with λ the largest eigenvalue of the graph's Laplacian (T for a
            complete graph); from 2 / λ on, columns would diverge.
        form: ``"atc"`` works with every optimiser as it does with SGD. Under Adam, ``"penalty"`` also changes how
            steps are scaled.
        graph: ``"complete"``, ``"ring"`` in the order of the tasks, ``"affinity"``, or a symmetric matrix of the a_il.
            The affinity graph comes from a run of `inter_task_affinity` before: an edge where the mean of both
            directions reaches ``threshold``.
        threshold: None for the largest threshold at which the affinity graph is connected.

    Cost of a step: T forward and T backward passes, memory for T networks, and O(T²) sums of parameters.

    Differences from the paper: its models are convex. Heads are free, because tasks differ in their outputs. Columns
    start from the same weights. Statistics of BatchNorm are not combined. The pull acts also in steps in which a task
    has no label. The weights of edges are 1, where the paper has them sum to 1. `mtlbench.method.graph_agent` trains
    the same columns with one process per task, which exchange parameters with their neighbours only.

    Example:
        >>> import torch
        >>> from mtlbench.networks.graph import disagreement, laplacian
        >>> w = torch.tensor([[1.0], [3.0]])
        >>> w - 0.1 * torch.stack(disagreement(w, laplacian([[0, 1], [1, 0]])))  # one combination with μη = 0.1
        tensor([[1.2000],
                [2.8000]])
    """

    TAXONOMY = "optimisation/regularisation"
    SEARCH: ClassVar[dict[str, Any]] = {"eta": [0.1, 1.0, 10.0, 100.0]}

    network: GraphNetwork

    def __init__(
        self,
        spec: MethodSpec,
        *,
        eta: float = 1.0,
        form: str = "atc",
        graph: str | list[list[float]] = "complete",
        threshold: float | None = None,
    ) -> None:
        super().__init__(spec)
        if not 0 <= eta < math.inf:
            raise MethodError(f"graph_mtl: eta must be a finite number >= 0. Found {eta}. The default is 1.")
        if form not in FORMS:
            raise MethodError("graph_mtl: " + unknown_name("form", form, FORMS))
        if isinstance(graph, str) and graph not in NAMES:
            raise MethodError("graph_mtl: " + unknown_name("graph", graph, NAMES))
        if threshold is not None and graph != "affinity":
            raise MethodError(
                f"graph_mtl: threshold cuts a graph of affinities. Found threshold={threshold} with graph={graph!r}. "
                "Set graph to affinity, or leave threshold out."
            )
        self.eta, self.form, self.graph = eta, form, graph
        if not isinstance(graph, str):
            self._use(graph)
        elif graph != "affinity":
            self._use(graphs.named_graph(graph, len(self.tasks)))

    def _use(self, adjacency: list[list[float]]) -> None:
        """Takes a graph after checking it and the strength of its pull."""
        graphs.check_graph(adjacency, list(self.tasks))
        self.laplacian = graphs.laplacian(adjacency)
        rate, largest = self.spec.optimiser["lr"], float(torch.linalg.eigvalsh(self.laplacian)[-1])
        if rate * self.eta * largest > 1:
            raise MethodError(
                "graph_mtl: the learning rate times eta times the largest eigenvalue of the graph must be at most 1. "
                f"Found {rate} x {self.eta} x {largest:.4g}. Set eta to at most {1 / (rate * largest):.4g}."
            )

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the run; before it, for an affinity graph, the run that measures affinities."""
        arguments = spec.method["arguments"]
        if arguments["graph"] == "affinity":
            if len(spec.tasks) < 2:
                raise MethodError("graph_mtl: affinities need two tasks. Set graph to complete for a single one.")
            (result,) = yield [spec.with_method(registry.record("inter_task_affinity"))]
            affinity = (result.get("summary") or {}).get("affinity")
            pairs = checked_pairs(list(spec.tasks), affinity, "inter_task_affinity")
            table = [[pairs[a, b] for b in spec.tasks] for a in spec.tasks]
            found = graphs.affinity_graph(table, arguments["threshold"])
            graphs.check_graph(found, list(spec.tasks))
            method = {**spec.method, "arguments": {**arguments, "graph": found, "threshold": None}}
            spec = cast(RunSpec, spec.with_method(method))
        yield [spec]
        return dict.fromkeys(spec.tasks, spec.run_id)

    def build_network(self) -> MTLNetwork:
        """Returns one column per task.

        Raises:
            MethodError: If the run was started without its plan, which measures the graph of affinities.
        """
        if self.graph == "affinity":
            raise MethodError(
                "graph_mtl: a graph of affinities is measured by a run before. Start it with `mtlbench bench`, which "
                "follows the method's plan, or give the matrix as `graph`."
            )
        return GraphNetwork(self.tasks, **self.spec.model)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds the gradient of the penalty before clipping. It is equal on all ranks."""
        super().on_before_optimizer_step(optimizer)
        if self.form == "penalty" and self.eta:
            for values, pulls in self._pulls():
                for parameter, pull in zip(values, pulls, strict=True):
                    pull *= self.eta
                    parameter.grad = pull if parameter.grad is None else parameter.grad + pull

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps every column, then combines it with its neighbours."""
        super().optimizer_step(*args, **kwargs)
        if self.form == "atc" and self.eta:
            rates = {id(p): group["lr"] for group in self.trainer.optimizers[0].param_groups for p in group["params"]}
            with torch.no_grad():
                for values, pulls in self._pulls():
                    for parameter, pull in zip(values, pulls, strict=True):
                        parameter.sub_(pull, alpha=rates[id(parameter)] * self.eta)

    def _pulls(self) -> Iterator[tuple[tuple[torch.nn.Parameter, ...], list[Tensor]]]:
        """Yields each parameter of all columns, with Σ_l a_il (w_i - w_l)."""
        for values in zip(*(self.network.trunk(task) for task in self.tasks), strict=True):
            yield values, graphs.disagreement([value.detach() for value in values], self.laplacian)

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns the root of the mean squared distance of a parameter from its mean over columns."""
        with torch.no_grad():
            apart = [
                torch.stack(v).var(0, correction=0) for v in zip(*map(self.network.trunk, self.tasks), strict=True)
            ]
        return {"graph/distance": torch.cat([value.flatten() for value in apart]).mean().sqrt()}
