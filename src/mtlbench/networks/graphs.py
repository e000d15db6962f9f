"""The family `graph`: message passing on small graphs, such as molecules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.networks.blocks import per_task
from mtlbench.networks.decoder import VectorHead
from mtlbench.networks.family import Family, InputEncoder, Model, Parts
from mtlbench.networks.vectors import LinearBlock
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import GRAPHS

DEFAULTS: Mapping[str, Mapping[str, int]] = {"nnconv": {"width": 64, "hidden": 128, "steps": 3, "readouts": 3}}
"""Encoders of the family with their options; the values are those of the network on QM9 in the paper of Nash-MTL."""


class EdgeConvolution(nn.Module):
    """Messages whose matrix depends on the edge (Gilmer et al., arXiv:1704.01212), averaged over neighbours.

    Node i receives x_i R + b + mean over j of x_j W(e_ij), with W(e) a two-layer perceptron of the edge. W(e) is linear
    in the hidden units h of the perceptron, so Σ_j x_j W(e_ij) is computed as Σ_j Σ_k h_ijk (x_j W_k): one matrix
    product per graph in place of one matrix per edge, with the same result.
    """

    def __init__(self, width: int, features: int, hidden: int) -> None:
        """Builds the layer.

        Args:
            width: Features D of a node, of input and output.
            features: Features of an edge.
            hidden: Hidden units K of the perceptron.
        """
        super().__init__()
        self.width = width
        self.edge = nn.Linear(features, hidden)
        self.matrix = nn.Linear(hidden, width * width)
        self.root = nn.Linear(width, width)

    def coefficients(self, edges: Tensor, linked: Tensor) -> Tensor:
        """Returns what W(e_ij) is made of, (B, N, N (K + 1)): hidden units and 1, divided by the neighbours of i.

        Args:
            edges: (B, N, N, E); entry [i, j] is the edge from j to i.
            linked: bool (B, N, N): whether there is that edge.
        """
        hidden = self.edge(edges).relu()
        weights = linked.to(hidden)
        weights = weights / weights.sum(2, keepdim=True).clamp(min=1)
        return (torch.cat([hidden, torch.ones_like(hidden[..., :1])], 3) * weights[..., None]).flatten(2)

    def forward(self, nodes: Tensor, coefficients: Tensor) -> Tensor:
        """Returns the messages (B, N, D) to nodes (B, N, D)."""
        matrices = torch.cat([self.matrix.weight, self.matrix.bias[:, None]], 1)
        # (D, D (K + 1)): every x_j W_k at once.
        stacked = matrices.view(self.width, self.width, -1).transpose(1, 2).flatten(1)
        parts = (nodes @ stacked).view(len(nodes), -1, self.width)
        return self.root(nodes) + torch.bmm(coefficients, parts)


class Set2Set(nn.Module):
    """Reads a set of nodes by attention, several times (Vinyals et al., arXiv:1511.06391)."""

    def __init__(self, width: int, times: int) -> None:
        """Builds the readout.

        Args:
            width: Features D of a node.
            times: How often the nodes are read.
        """
        super().__init__()
        self.cell, self.width, self.times = nn.LSTMCell(2 * width, width), width, times

    def forward(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """Returns (B, 2 D): the last question and its answer, the attended mean of the nodes in ``mask`` (B, N)."""
        read = nodes.new_zeros(len(nodes), 2 * self.width)
        state = None
        for _ in range(self.times):
            state = self.cell(read, state)
            scores = (nodes * state[0][:, None]).sum(2).masked_fill(~mask, -torch.inf)
            answer = (scores.softmax(1)[..., None] * nodes).sum(1)
            read = torch.cat([state[0], answer], 1)
        return read


class GraphEncoder(InputEncoder):
    """A linear layer, steps of `EdgeConvolution` and GRU with the same weights, and `Set2Set`.

    Attributes:
        features: Features of a node and of an edge that it takes.
        steps: How often messages are passed.
    """

    def __init__(self, features: tuple[int, int], *, width: int, hidden: int, steps: int, readouts: int) -> None:
        """Builds the encoder.

        Args:
            features: Features of a node, and of an edge.
            width: Features D of a node inside.
            hidden: Hidden units of the perceptron that maps an edge to a matrix.
            steps: How often messages are passed.
            readouts: How often the nodes are read.
        """
        super().__init__()
        self.features, self.steps, self.channels = features, steps, [2 * width]
        self.embed = nn.Linear(features[0], width)
        self.message = EdgeConvolution(width, features[1], hidden)
        self.update = nn.GRUCell(width, width)
        self.readout = Set2Set(width, readouts)

    def normalise(self, inputs: Any) -> Any:
        """Returns a batch of graphs in the precision of the weights.

        Raises:
            DataError: The inputs are no batch of graphs, or their features are others than in training.
        """
        if fault := graph_fault(inputs):
            raise DataError(fault)
        found = inputs["nodes"].shape[2], inputs["edges"].shape[3]
        if found != self.features:
            raise DataError(
                f"This encoder takes {self.features[0]} features per node and {self.features[1]} per edge. Found "
                f"{found[0]} and {found[1]}. Give the features that the network was trained on, in their order."
            )
        dtype = next(self.parameters()).dtype
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}

    def forward(self, inputs: Any) -> list[Tensor]:
        """Returns one feature (B, 2 D) of a batch of graphs."""
        nodes = self.embed(inputs["nodes"]).relu()
        coefficients = self.message.coefficients(inputs["edges"], inputs["linked"])
        for _ in range(self.steps):
            messages = self.message(nodes, coefficients).relu()
            nodes = self.update(messages.flatten(0, 1), nodes.flatten(0, 1)).view_as(nodes)
        return [self.readout(nodes, inputs["mask"])]


class GraphNeck(nn.Module):
    """Maps the encoder's features to the width that all heads read. All tasks share it."""

    def __init__(self, inputs: int, width: int) -> None:
        """Builds the neck.

        Args:
            inputs: Channels of the encoder.
            width: Features of the result.
        """
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())

    def forward(self, features: list[Tensor]) -> Tensor:
        """Returns (B, width)."""
        return self.mix(features[-1])


class Graphs(Family):
    """Graphs and message-passing networks."""

    name = "graph"
    takes = GRAPHS

    def check_encoder(self, name: str) -> None:
        """Checks a name against `DEFAULTS`."""
        if name not in DEFAULTS:
            raise SuiteError(unknown_name("encoder of the family graph", name, DEFAULTS))

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks names and values of options against `DEFAULTS`."""
        for key, value in options.items() if name in DEFAULTS else ():
            if key not in DEFAULTS[name]:
                raise SuiteError(unknown_name(f"option of the encoder graph:{name}", key, DEFAULTS[name]))
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SuiteError(f"{key} of the encoder graph:{name} is a whole number from 1. Found {value!r}.")

    def parts(self, tasks: Mapping[str, Task], model: Model) -> Parts:
        """Returns a message-passing encoder, a layer as neck, and one linear head per task."""
        self.check_encoder(model.name)
        self.check_options(model.name, model.options)
        self.weights_identity(model.name, model.weights)
        if dense := [name for name, task in tasks.items() if task.dense]:
            raise SuiteError(
                f"Dense tasks need images, because they predict a value for every pixel. {', '.join(dense)} are dense, "
                f"and {model.encoder} takes graphs. Leave these tasks out."
            )
        sizes = _sizes(model)
        encoder = GraphEncoder(
            (sizes["node_features"], sizes["edge_features"]), **{**DEFAULTS[model.name], **model.options}
        )
        neck, width = GraphNeck(encoder.channels[-1], model.decoder_channels), model.decoder_channels
        return Parts(encoder, neck, per_task("head", tasks, lambda name: VectorHead(width, tasks[name].channels)))

    def block(self, width: int) -> nn.Module:
        """Returns a `LinearBlock`."""
        return LinearBlock(width, width)

    def example(self, model: Model, count: int = 1) -> dict[str, Tensor]:
        """Returns complete graphs of the largest size."""
        sizes = _sizes(model)
        nodes = sizes["nodes"]
        return {
            "nodes": torch.zeros(count, nodes, sizes["node_features"]),
            "edges": torch.zeros(count, nodes, nodes, sizes["edge_features"]),
            "linked": ~torch.eye(nodes, dtype=torch.bool).expand(count, nodes, nodes),
            "mask": torch.ones(count, nodes, dtype=torch.bool),
        }

    def check(self, inputs: Any) -> None:
        """Checks that inputs are a batch of graphs."""
        if fault := graph_fault(inputs):
            raise DataError(fault)


def _sizes(model: Model) -> Mapping[str, int]:
    sizes = model.inputs or {}
    if not {"nodes", "node_features", "edge_features"} <= set(sizes):
        raise SuiteError(
            f"{model.encoder} must know the sizes of its graphs. The data module gives none: return them from "
            "input_sizes as {'nodes': most nodes of a graph, 'node_features': f, 'edge_features': e}."
        )
    return sizes


def graph_fault(inputs: Any) -> str | None:
    """Finds why inputs are not a batch of graphs; None if they are one."""
    rule = (
        "A batch of graphs is a mapping with `nodes`, floating point (B, N, F), `edges`, floating point (B, N, N, E), "
        "`linked`, bool (B, N, N), and `mask`, bool (B, N)"
    )
    hint = "Make one of samples with mtlbench.tasks.inputs.stacked."
    keys = ("nodes", "edges", "linked", "mask")
    found: list[Any] = [inputs.get(key) for key in keys] if isinstance(inputs, Mapping) else []
    if not found or not all(isinstance(value, Tensor) for value in found):
        have = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        return f"{rule}. Found {have}. {hint}"
    nodes, edges, linked, mask = found
    shape = nodes.shape[:2]
    sound = nodes.ndim == 3 and nodes.is_floating_point() and edges.ndim == 4 and edges.is_floating_point()
    sound = sound and mask.shape == shape and edges.shape[:3] == linked.shape == (*shape, shape[-1])
    if not sound or linked.dtype != torch.bool or mask.dtype != torch.bool or not nodes.numel():
        have = ", ".join(f"{key}: {value.dtype} {tuple(value.shape)}" for key, value in zip(keys, found, strict=True))
        return f"{rule}. Found {have}. {hint}"
    if not mask.any(1).all():
        empty = int((~mask.any(1)).nonzero()[0])
        return f"A graph has a node or more. Graph {empty} of the batch has none. Leave it out."
    return None
