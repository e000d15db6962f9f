"""ESMM: chained probabilities for events that can only follow one another, such as click and purchase."""

from __future__ import annotations

from collections.abc import Sequence

from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.chained import ChainedNetwork
from mtlbench.tasks import Task


class ESMM(MTLMethod):
    """Entire-space multi-task model (https://arxiv.org/abs/1804.07931, SIGIR 2018).

    Rule: tasks 1, 2, ... of a chain are events, each of which can only follow the one before. The head of task k gives
    q_k, the probability of event k where event k − 1 has happened. The prediction of task k is p_k = q_1 · ... · q_k,
    which is trained on all samples. A later q_k has no loss of its own, so that it does not suffer from being observed
    only on those samples on which the event before has happened.

    Symbols: q_k = σ(a − b) with the outputs a of class 1 and b of class 0 of head k.

    Args:
        chain: Tasks of two classes in the order of their events; empty for all such tasks, in the suite's order.

    Cost of a step: that of `uniform`. Any balancer may be used; heads that later tasks read count as shared.

    Differences from the paper: the chain has any length, and trunk, neck and heads are those of the suite, where the
    paper shares embeddings only and gives each task an MLP of its own. With fewer than two tasks in the chain, the
    method is `uniform`.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Classification
        >>> model = {"encoder": "mlp:plain", "inputs": {"features": 5}}
        >>> tasks = {name: Classification(name, classes=2) for name in ("click", "purchase")}
        >>> method = ESMM(MethodSpec(tasks, model))
        >>> method.configure_model()
        >>> scores = method.network(torch.zeros(3, 5), ["click", "purchase"]).predictions
        >>> click, purchase = (scores[name].softmax(1)[:, 1] for name in tasks)
        >>> bool((purchase <= click).all())
        True
    """

    TAXONOMY = "architectures/computer vision/shared trunk"

    def __init__(self, spec: MethodSpec, *, chain: Sequence[str] = ()) -> None:
        super().__init__(spec)
        self.chain = list(chain) or [name for name, task in self.tasks.items() if _binary(task)]
        for name in self.chain:
            if name not in self.tasks:
                raise MethodError("esmm: chain: " + unknown_name("task", name, self.tasks))
            if not _binary(self.tasks[name]):
                raise MethodError(f"esmm: a chain holds tasks of two classes. {name} is none. Leave it out.")
        if len(set(self.chain)) < len(self.chain):
            raise MethodError(f"esmm: a task stands once in the chain. Found {', '.join(self.chain)}.")

    def build_network(self) -> MTLNetwork:
        """Returns the network with chained heads."""
        return ChainedNetwork(self.tasks, chain=self.chain, **self.spec.model)


def _binary(task: Task) -> bool:
    return task.kind == "classification" and task.channels == 2
