"""MAPS: modular adaptive policy selection."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.forward import RankLosses
from mtlbench.networks import maps
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.experts import global_sum
from mtlbench.runs import keys
from mtlbench.tasks.inputs import length

SELECTIONS = ("regularised", "soft", "even")
LAYER = "modules"
"""Name of the only layer in the report on experts."""


class MAPS(MTLMethod):
    """Modular adaptive policy selection for multi-task imitation learning (https://arxiv.org/abs/2203.14855, 2022).

    Rule: M modules f_m see the observation x. A selector gives s(x, t) = softmax(MLP(x, t)), and all tasks read one
    linear output of [s_1 f_1; ...; s_M f_M]. The loss is c · L + (1 − c) · (sharing · R₁ + sparsity · R₂ +
    exploration · R₃ + smoothness · R₄). R₁ is the mean of (s(x, i) − s(x, j))² over pairs of tasks, R₂ that of
    −s^(1 / ln M) · ln s, R₃ the variance of Σ_x s over the modules, divided by its squared mean, and R₄ the mean of
    (s(x_n) − s(x_n−1))².

    Symbols: M modules; s their weights, which sum to 1; t the task; x_n−1 the observation a step earlier; L the mean
    loss of the tasks.

    Args:
        modules: M, >= 1.
        hidden: Units of the selector's two hidden layers.
        selection: ``"regularised"`` for the method; ``"soft"`` for the selector without the four terms; ``"even"`` for
            s = 1 / M, which is hard sharing with the same modules.
        task_weight: c, in (0, 1].
        sharing: Coefficient >= 0: tasks choose alike.
        sparsity: Coefficient >= 0: few modules at a time.
        exploration: Coefficient >= 0: all modules are used. The term is minimised, despite its name.
        smoothness: Coefficient >= 0: selections change slowly. Without the observations before (`previous` of a batch)
            the term is 0.
        shared_output: Whether all tasks read one output. None means where they predict equally many numbers and a
            selector tells them apart.

    Cost of a step: one forward and one backward pass of M encoders instead of one, and M more selections of the small
    selector for ``sharing``.

    Differences from the official code, which we know from a description: it takes two steps of Adam per batch, the
    first for the selector; here one step moves both. The loss is divided by c and multiplied by the number of tasks, so
    that balancers weigh the tasks as usual. On images, modules are blocks behind a shared encoder, and their features
    are added up instead of read side by side.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Action
        >>> model = {"encoder": "mlp:plain", "inputs": {"features": 11}}
        >>> tasks = {name: Action(name, size=2) for name in ("reach", "push")}
        >>> method = MAPS(MethodSpec(tasks, model), modules=4)
        >>> method.configure_model()
        >>> outputs = method.network(torch.zeros(3, 11), ["push"])
        >>> outputs.predictions["push"].shape, outputs.statistics["selections"]["push"].shape
        (torch.Size([3, 2]), torch.Size([3, 4]))
    """

    TAXONOMY = "architectures/conditional"
    SEARCH: ClassVar[dict[str, Any]] = {"sparsity": [0.1, 0.5, 1.0], "sharing": [0.3, 1.0, 3.0]}

    def __init__(
        self,
        spec: MethodSpec,
        *,
        modules: int = 10,
        hidden: int = 128,
        selection: str = "regularised",
        task_weight: float = 0.75,
        sharing: float = 1.0,
        sparsity: float = 0.5,
        exploration: float = 0.1,
        smoothness: float = 1.0,
        shared_output: bool | None = None,
    ) -> None:
        super().__init__(spec)
        if selection not in SELECTIONS:
            raise MethodError("maps: " + unknown_name("selection", selection, SELECTIONS))
        if not 0 < task_weight <= 1:
            raise MethodError(
                f"maps: task_weight must be above 0 and at most 1. Found {task_weight}. The default is 0.75."
            )
        weights = {"sharing": sharing, "sparsity": sparsity, "exploration": exploration, "smoothness": smoothness}
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise MethodError(
                    f"maps: {name}, the coefficient of a loss, must be >= 0 and finite. Found {value}. 0 leaves it out."
                )
        self.count, self.hidden, self.selection, self.shared_output = modules, hidden, selection, shared_output
        factor = (1 - task_weight) / task_weight if selection == "regularised" else 0.0
        self.weights = {name: factor * value for name, value in weights.items()}
        self._passes: list[tuple[Outputs, Batch]] = []
        self._wanted = 1

    def build_network(self) -> MTLNetwork:
        """Returns the network with modules and selector."""
        return maps.MapsNetwork(
            self.tasks,
            modules=self.count,
            hidden=self.hidden,
            shared_output=self.shared_output,
            select=self.selection != "even",
            **self.spec.model,
        )

    def rank_losses(self, batch: Batch) -> RankLosses:
        """Returns losses and regularisers; the latter need the passes of all streams."""
        self._passes, self._wanted = [], len(streams(batch))
        return super().rank_losses(batch)

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the four terms, once all streams of the batch have run."""
        self._passes.append((outputs, batch))
        if len(self._passes) < self._wanted:
            return {}
        passes, self._passes = self._passes, []
        network = cast(maps.MapsNetwork, self.network)
        table, rows = self._table(passes)
        mean = table.detach() / rows.clamp_min(1)
        network.running.update(mean, mean, rows[:, 0] > 0)
        tasks = [task for found, _ in passes for task in found.predictions]
        return {name: len(tasks) * w * self._term(name, passes, table) for name, w in self.weights.items() if w}

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns the share of the selections that every module receives, over all tasks."""
        running = cast(maps.MapsNetwork, self.network).running.probability
        return {keys.LOAD.key(layer=LAYER, expert=m): share for m, share in enumerate(running.mean(0))}

    def summary(self) -> dict[str, Any]:
        """Returns the balancer's summary and the mean selections of every task, for the report on experts."""
        running = cast(maps.MapsNetwork, self.network).running.probability.to(torch.float64).tolist()
        table = [[round(share, 6) for share in row] for row in running]
        layers = {LAYER: {"probability": table, "load": table}}
        return {
            **super().summary(),
            "experts": {"tasks": list(self.tasks), "top_k": {LAYER: self.count}, "layers": layers},
        }

    def _table(self, passes: list[tuple[Outputs, Batch]]) -> tuple[Tensor, Tensor]:
        """Returns the selections (T, M) and the states (T, 1), summed over streams and ranks, by task."""
        selected = {task: s for outputs, _ in passes for task, s in outputs.statistics["selections"].items()}
        some = next(iter(selected.values()))
        nothing = some.new_zeros(self.count + 1)
        rows = [
            torch.cat([selected[task].sum(0), some.new_full((1,), float(len(selected[task])))])
            if task in selected
            else nothing
            for task in self.tasks
        ]
        whole = global_sum(torch.stack(rows))
        return whole[:, :-1], whole[:, -1:].detach()

    def _term(self, name: str, passes: list[tuple[Outputs, Batch]], table: Tensor) -> Tensor:
        """Returns a term of the loss, averaged over the pairs of state and task on this rank."""
        if name == "exploration":
            return maps.exploration(table.sum(0))
        network = cast(maps.MapsNetwork, self.network)
        terms, sizes = [], []
        for outputs, batch in passes:
            selections = outputs.statistics["selections"]
            sizes.append(length(batch) * len(selections))
            terms.append(sizes[-1] * self._of_stream(name, network, outputs, batch))
        return torch.stack(terms).sum() / sum(sizes)

    def _of_stream(self, name: str, network: maps.MapsNetwork, outputs: Outputs, batch: Batch) -> Tensor:
        state, selections = outputs.statistics["state"], outputs.statistics["selections"]
        chosen = torch.stack(list(selections.values()))
        if name == "sharing":
            return maps.sharing(torch.stack(list(network.selections(state, list(self.tasks)).values())))
        if name == "sparsity":
            return maps.sparsity(chosen.flatten(0, 1))
        if "previous" not in batch:
            return chosen.sum() * 0
        before = network.selections(network.state(batch["previous"]), list(selections))
        return maps.smoothness(chosen, torch.stack(list(before.values())))
