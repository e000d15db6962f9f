"""Sparse experts: a task-aware router, dropless dispatch, and expert MLPs with stacked weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.errors import MethodError, unknown_name

GATES = ("agnostic", "task", "token_task", "per_task")
"""What a router's logits depend on; see `TaskRouter`."""


@dataclass(frozen=True)
class Routing:
    """Where N tokens go.

    Attributes:
        probabilities: (N, E), softmax over all experts, at least float32.
        gates: (N, k), weights of the chosen experts.
        chosen: (N, k) int64, distinct experts of each token.
    """

    probabilities: Tensor
    gates: Tensor
    chosen: Tensor

    def statistics(self) -> dict[str, Tensor]:
        """Returns ``probability`` (E,), the mean over tokens with gradient, and ``load`` (E,), the share of choices."""
        experts = self.probabilities.shape[1]
        load = torch.bincount(self.chosen.flatten(), minlength=experts).to(self.probabilities)
        return {"probability": self.probabilities.mean(0), "load": load / max(1, self.chosen.numel())}


class TaskEmbedding(nn.Module):
    """One learned vector, a module of its own so that its task can own it."""

    def __init__(self, width: int) -> None:
        """Draws the vector from N(0, 1), the scale of a token after LayerNorm.

        Args:
            width: Elements of the vector.
        """
        super().__init__()
        self.vector = nn.Parameter(torch.randn(width))


class TaskRouter(nn.Module):
    """Chooses k of E experts for each token x of task t. Without bias, noise and capacity.

    Logits by gate: ``agnostic`` W x; ``task`` W e_t, equal for all tokens of a task; ``token_task`` W [x; e_t];
    ``per_task`` W_t x. The embeddings e_t and the matrices W_t are owned by their task, W is shared.

    The gates are the softmax over all experts at the chosen ones, divided by their sum if k >= 2. For k = 1 that
    quotient is constant, and the router would get no gradient.
    """

    def __init__(self, width: int, experts: int, top_k: int, gate: str, tasks: Sequence[str]) -> None:
        """Builds the router.

        Args:
            width: Channels D of a token, and of a task's embedding.
            experts: E.
            top_k: k, 1..E.
            gate: One of `GATES`.
            tasks: Names of all tasks.

        Raises:
            MethodError: ``gate`` is unknown or ``top_k`` outside 1..E.
        """
        super().__init__()
        if gate not in GATES:
            raise MethodError(unknown_name("gate", gate, GATES))
        if not 1 <= top_k <= experts:
            raise MethodError(f"top_k must be in 1..experts; found top_k={top_k}, experts={experts}. Change one.")
        self.top_k = top_k
        self.token = _matrix(width, experts) if gate in ("agnostic", "token_task") else None
        self.task = _matrix(width, experts) if gate in ("task", "token_task") else None
        # W [x; e_t] is W_token x + W_task e_t: two matrices, one rule.
        self.embeddings = nn.ModuleDict({t: TaskEmbedding(width) for t in tasks} if self.task is not None else {})
        self.matrices = nn.ModuleDict({t: _matrix(width, experts) for t in tasks} if gate == "per_task" else {})

    def owned(self, task: str) -> list[nn.Module]:
        """Returns the modules that only this task reaches."""
        return [table[task] for table in (self.embeddings, self.matrices) if task in table]

    def logits(self, tokens: Tensor, task: str) -> Tensor:
        """Returns (N, E).

        Args:
            tokens: (N, D).
            task: Task of all tokens.
        """
        terms = []
        matrix: Any = self.matrices[task] if task in self.matrices else self.token
        if matrix is not None:
            terms.append(F.linear(tokens, matrix.weight.to(tokens)))
        if self.task is not None:
            embedding: Any = self.embeddings[task]
            term = F.linear(embedding.vector.to(tokens), self.task.weight.to(tokens))  # (E,)
            terms.append(term.expand(len(tokens), -1))
        return torch.stack(terms).sum(0)

    def forward(self, tokens: Tensor, task: str) -> Routing:
        """Routes the tokens of one task.

        Args:
            tokens: (N, D) in any floating type; the router computes in float32 at least, also under autocast.
            task: Task of all tokens.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            precise = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            probabilities = self.logits(precise, task).softmax(1)
            gates, chosen = probabilities.topk(self.top_k, dim=1)
            if self.top_k > 1:
                gates = gates / gates.sum(1, keepdim=True)
        return Routing(probabilities, gates, chosen)


class ExpertMlp(nn.Module):
    """E two-layer MLPs of width h, of which each token runs through k. Dropless: no token is left out.

    The weights are stacked, so an expert without tokens gets a gradient of zero and not None. Note that weight
    decay still shrinks it, its biases included: an optimiser that spares vectors sees matrices here.
    """

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        """Builds the experts, initialised as timm's vision transformers are.

        Args:
            width: D.
            hidden: h.
            experts: E.
        """
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(experts, width, hidden))
        self.weight2 = nn.Parameter(torch.empty(experts, hidden, width))
        self.bias1 = nn.Parameter(torch.zeros(experts, hidden))
        self.bias2 = nn.Parameter(torch.zeros(experts, width))
        for weight in (self.weight1, self.weight2):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, tokens: Tensor, routing: Routing) -> Tensor:
        """Returns Σ_k gate · expert(token): (N, D).

        Args:
            tokens: (N, D).
            routing: Of the same tokens.
        """
        count, top_k = routing.chosen.shape
        experts = routing.chosen.flatten()  # (N·k,)
        order = experts.argsort(stable=True)
        sizes = torch.bincount(experts, minlength=len(self.weight1)).tolist()
        # Copy then permute, instead of one gather: no backward adds to one row twice, so the order of sums is fixed.
        rows = tokens.unsqueeze(1).expand(-1, top_k, -1).flatten(0, 1)[order]  # (N·k, D)
        # `unbind`: its backward is one stack, where indexing would fill E tensors of full size.
        weights = zip(*(p.unbind() for p in (self.weight1, self.bias1, self.weight2, self.bias2)), strict=True)
        results = [
            torch.addmm(b2, F.gelu(torch.addmm(b1, group, w1)), w2)
            for group, (w1, b1, w2, b2) in zip(rows.split(sizes), weights, strict=True)
        ]
        outputs = torch.cat(results)[order.argsort()].unflatten(0, (count, top_k))
        return (outputs * routing.gates.to(outputs.dtype).unsqueeze(2)).sum(1)


def load_balance(probability: Tensor, load: Tensor) -> Tensor:
    """Returns Switch's load balance E · Σ_e f_e · P_e of the mixture of tasks, 1 when balanced, summed over layers.

    f and P are averaged over tasks *before* they are multiplied, and over all ranks: balancing each task by itself
    would spread every task over all experts.

    Args:
        probability: (L, T, E), mean router probability per layer and task.
        load: (L, T, E), share of choices, detached.
    """
    mean_probability, mean_load = global_mean(torch.stack((probability.mean(1), load.mean(1))))  # (L, E) each
    return probability.shape[-1] * (mean_load.detach() * mean_probability).sum()


def global_mean(tensor: Tensor) -> Tensor:
    """Returns the mean over ranks, with gradient; the tensor itself where there is one process.

    A loss of the result has the one-process gradient once parameter gradients are averaged over ranks: backward
    *sums* ∂loss/∂mean over the R ranks and divides by R, and the average over ranks supplies the other 1/R. Ranks
    count alike, whatever their batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return _Sum.apply(tensor) / dist.get_world_size()


class _Sum(torch.autograd.Function):
    """Sum over ranks, whose backward is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _matrix(width: int, experts: int) -> nn.Linear:
    linear = nn.Linear(width, experts, bias=False)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    return linear
