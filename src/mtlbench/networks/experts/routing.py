"""Routers, which choose k of E experts and their weights for every token of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks.blocks import per_task, seeded
from mtlbench.networks.named import NamedModules

GATES = ("agnostic", "task", "token_task", "description", "per_task")
"""Inputs of a router, by name; see `TaskRouter`."""


EVEN = 3e-6
"""Scale of the matrices of a router whose gates are almost equal: the sum of its gates is 1e-6 from k / E, and float32
still tells the gates apart."""


@dataclass(frozen=True)
class Routing:
    """The routing of N tokens of G tasks, one task after the other.

    Attributes:
        logits: (N, E), at least float32.
        gates: (N, k), weights of the chosen experts.
        chosen: (N, k) int64, distinct experts of each token.
        tasks: Number of tasks G.
    """

    logits: Tensor
    gates: Tensor
    chosen: Tensor
    tasks: int

    @property
    def probabilities(self) -> Tensor:
        """Softmax over all experts, (N, E)."""
        return self.logits.softmax(1)


class TaskEmbedding(nn.Module):
    """One learned vector, in a module of its own so that its task can own it."""

    def __init__(self, width: int, deviation: float = 1.0) -> None:
        """Draws the vector from a normal distribution.

        Args:
            width: Number of elements.
            deviation: Standard deviation. 1 is the scale of a token after LayerNorm.
        """
        super().__init__()
        self.vector = nn.Parameter(deviation * torch.randn(width))


class TaskDescription(nn.Module):
    """A fixed vector that describes a task, such as an encoded text or other features of the task."""

    vector: Tensor

    def __init__(self, values: Sequence[float]) -> None:
        """Stores the vector.

        Args:
            values: Finite numbers, the same number for every task.
        """
        super().__init__()
        self.register_buffer("vector", torch.tensor([float(v) for v in values]), persistent=False)


class TaskRouter(nn.Module):
    """Chooses k of E experts for each token x of task t, without bias and without a capacity limit.

    Logits by gate: ``agnostic`` W x; ``task`` W e_t, equal for all tokens of a task; ``token_task`` W [x; e_t];
    ``description`` W [x; MLP(d_t)] with a given vector d_t; ``per_task`` W_t x. Embeddings e_t and matrices W_t belong
    to their task. W and the MLP are shared.

    The gates are the softmax over all experts, restricted to the chosen ones. They are divided by their sum
    ("renormalised") unless k = 1, in which case the quotient would be constant and the router would get no gradient.
    Without renormalisation the gates depend on the logits of all experts, which extraction must keep.

    Attributes:
        kept: Experts that remain after extraction, or None.
    """

    kept: Tensor | None

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        gate: str,
        tasks: Sequence[str],
        *,
        noise: float = 0.0,
        renormalise: bool | None = None,
        descriptions: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Builds the router.

        Args:
            width: Channels D of a token and of a task's embedding.
            experts: Number of experts E.
            top_k: Experts per token k, 1..E.
            gate: One of `GATES`.
            tasks: Names of all tasks.
            noise: Standard deviation of Gaussian noise on the logits, in training only.
            renormalise: Whether the gates of a token sum to 1; None means if k >= 2.
            descriptions: Vector d_t of every task, for the gate ``"description"``.

        Raises:
            MethodError: ``gate`` is unknown, ``top_k`` outside 1..E, ``noise`` negative, or a description is missing.
        """
        super().__init__()
        if gate not in GATES:
            raise MethodError(unknown_name("gate", gate, GATES))
        if not 1 <= top_k <= experts:
            raise MethodError(
                f"top_k must be in 1..experts. Found top_k={top_k}, experts={experts}. Change one of them."
            )
        if not noise >= 0:
            raise MethodError(f"The noise of a router must be >= 0. Found {noise}. Use 0 for none.")
        self.experts, self.top_k, self.noise = experts, top_k, noise
        self.renormalise = top_k > 1 if renormalise is None else renormalise
        with seeded("router token"):
            self.token = None if gate in ("task", "per_task") else _matrix(width, experts)
        # W [x; e_t] equals W_token x + W_task e_t, so the two parts are stored as separate matrices. The second term is
        # then computed once per task instead of once per token.
        with seeded("router task"):
            self.task = _matrix(width, experts) if gate in ("task", "token_task", "description") else None
        known = _descriptions(tasks, descriptions) if gate == "description" else {}
        self.descriptions = NamedModules(known)
        with seeded("router description"):
            self.encode = _description_mlp(known, width)
        learned = tasks if gate in ("task", "token_task") else ()
        self.embeddings = per_task("router embedding", learned, lambda _: TaskEmbedding(width))
        routed = tasks if gate == "per_task" else ()
        self.matrices = per_task("router matrix", routed, lambda _: _matrix(width, experts))
        self.register_buffer("kept", None)

    def owned(self, task: str) -> list[nn.Module]:
        """Returns the modules that only this task reaches."""
        return [table[task] for table in (self.embeddings, self.matrices) if task in table]

    def logits(self, tokens: Tensor, tasks: Sequence[str]) -> Tensor:
        """Returns the logits (G, M, E).

        Args:
            tokens: (G, M, D), M tokens of each task.
            tasks: Names of the G tasks.
        """
        terms = []
        if self.token is not None:
            terms.append(F.linear(tokens, self.token.weight.to(tokens)))
        if self.matrices:
            table: Any = self.matrices
            stacked = torch.stack([table[t].weight for t in tasks])  # (G, E, D)
            terms.append(torch.bmm(tokens, stacked.to(tokens).transpose(1, 2)))
        if self.task is not None:
            term = F.linear(self._vectors(tasks).to(tokens), self.task.weight.to(tokens))  # (G, E)
            terms.append(term.unsqueeze(1).expand(-1, tokens.shape[1], -1))
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    def forward(self, tokens: Tensor, tasks: Sequence[str]) -> Routing:
        """Routes tokens.

        Args:
            tokens: (G · M, D), starting with the first task, in any floating type. The router computes in at least
                float32, even under autocast.
            tasks: Names of the G tasks.
        """
        # In 16 bits many logits would be equal, and which expert is chosen would depend on rounding.
        with torch.autocast(tokens.device.type, enabled=False):
            precise = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            logits = self.logits(precise.unflatten(0, (len(tasks), -1)), tasks).flatten(0, 1)
            if self.noise and self.training:
                logits = logits + self.noise * torch.randn_like(logits)
            return Routing(logits, *self._choose(logits, self.count(tasks)), len(tasks))

    def count(self, tasks: Sequence[str]) -> int:
        """Returns the number of experts that a token of these tasks gets."""
        return self.top_k

    def only(self, task: str) -> None:
        """Forgets the other tasks, for a network of one task; `task_modules` of those are removed elsewhere."""

    @torch.no_grad()
    def even(self) -> None:
        """Makes all gates almost 1 / E: which experts a token gets still depends on the token and the task."""
        matrices: list[Any] = [m for m in (self.token, self.task, *self.matrices.values()) if m is not None]
        for linear in matrices:
            linear.weight.mul_(EVEN)

    def keep(self, experts: Sequence[int]) -> None:
        """Removes all experts except those listed. Without renormalisation the other logits stay in the denominator.

        Args:
            experts: At least k indices in 0..E - 1, ascending.
        """
        matrices: list[Any] = [m for m in (self.token, self.task, *self.matrices.values()) if m is not None]
        if not self.renormalise:
            self.kept = torch.tensor(experts, device=matrices[0].weight.device)
            return
        for linear in matrices:
            linear.weight = nn.Parameter(linear.weight.detach()[list(experts)])
        self.experts = len(experts)

    def _choose(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns gates and chosen experts, (N, k) each."""
        if self.renormalise:  # The softmax over the chosen logits equals the renormalised softmax over all.
            top, chosen = logits.topk(count, dim=1)
            return top.softmax(1), chosen
        probabilities = logits.softmax(1)
        if self.kept is not None:
            probabilities = probabilities[:, self.kept]
        return probabilities.topk(count, dim=1)

    def _vectors(self, tasks: Sequence[str]) -> Tensor:
        source: Any = self.descriptions if self.encode is not None else self.embeddings
        vectors = torch.stack([source[task].vector for task in tasks])  # (G, D)
        return vectors if self.encode is None else self.encode(vectors)


class AdaptiveRouter(TaskRouter):
    """A router whose k differs between tasks and may be changed. It routes one task at a time.

    Checkpoints carry k. Gates are raw unless `renormalise` is set, because k may become 1.
    """

    def __init__(self, width: int, experts: int, top_k: int, gate: str, tasks: Sequence[str], **options: Any) -> None:
        """Builds the router; see `TaskRouter`. All tasks start with ``top_k``."""
        raw = options.pop("renormalise", None) or False
        super().__init__(width, experts, top_k, gate, tasks, renormalise=raw, **options)
        self._counts = dict.fromkeys(tasks, top_k)

    def count(self, tasks: Sequence[str]) -> int:
        """Returns the k of a task."""
        (task,) = tasks
        return self._counts[task]

    def use(self, counts: Mapping[str, int]) -> None:
        """Sets the k of every task."""
        self._counts = {task: int(counts[task]) for task in self._counts}

    def only(self, task: str) -> None:
        """Forgets the k of other tasks."""
        self._counts = {task: self._counts[task]}

    def get_extra_state(self) -> Tensor:
        """Returns the k of every task, in their order."""
        return torch.tensor(list(self._counts.values()))

    def set_extra_state(self, state: Tensor) -> None:
        """Restores the k of every task."""
        self._counts = dict(zip(self._counts, state.tolist(), strict=True))


class JointRouter(TaskRouter):
    """A router whose last S experts serve every token: one softmax weighs them and the k chosen ones together.

    `experts` and `top_k` count them.
    """

    def __init__(
        self, width: int, experts: int, top_k: int, gate: str, tasks: Sequence[str], *, shared: int, noise: float = 0.0
    ) -> None:
        """Builds the router over ``experts`` + ``shared`` experts; see `TaskRouter`.

        Args:
            width: Channels D of a token.
            experts: Experts to choose from, E.
            top_k: Chosen experts per token k, 1..E.
            gate: One of `GATES`.
            tasks: Names of all tasks.
            shared: S, at least 1.
            noise: Standard deviation of Gaussian noise on the logits, in training only.
        """
        super().__init__(width, experts + shared, top_k + shared, gate, tasks, noise=noise, renormalise=True)
        self.shared = shared

    def _choose(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        sparse = logits.shape[1] - self.shared
        top, chosen = logits[:, :sparse].topk(count - self.shared, dim=1)
        always = torch.arange(sparse, logits.shape[1], device=logits.device).expand(len(logits), -1)
        return torch.cat([top, logits[:, sparse:]], 1).softmax(1), torch.cat([chosen, always], 1)


def _matrix(width: int, experts: int) -> nn.Linear:
    linear = nn.Linear(width, experts, bias=False)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    return linear


def _descriptions(tasks: Sequence[str], given: Mapping[str, Sequence[float]] | None) -> dict[str, TaskDescription]:
    lacking = [task for task in tasks if task not in (given or {})]
    if lacking:
        raise MethodError(
            f"gate 'description' needs a vector for every task in `descriptions`. Found none for {', '.join(lacking)}."
        )
    found = {task: TaskDescription((given or {})[task]) for task in tasks}
    if len({len(description.vector) for description in found.values()}) != 1:
        lengths = {task: len(description.vector) for task, description in found.items()}
        raise MethodError(f"All vectors in `descriptions` must have the same length. Found {lengths}.")
    return found


def _description_mlp(known: Mapping[str, TaskDescription], width: int) -> nn.Sequential | None:
    if not known:
        return None
    inputs = len(next(iter(known.values())).vector)
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))
