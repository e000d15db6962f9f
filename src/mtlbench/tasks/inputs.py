"""The inputs of samples and batches: an 8-bit image, or any nesting of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.errors import DataError

IMAGES, VECTORS, TOKENS, GRAPHS = "images", "vectors", "tokens", "graphs"
"""Kinds of inputs, which data modules have and encoders take.

A text is a mapping with ``tokens``, int64 (L,), and for two texts ``segments``, int64 (L,), which is 0 or 1. A batch of
texts holds them padded with zeros, (B, N), and ``mask``, bool (B, N), which is True for the tokens of a text.

A graph is a mapping with ``nodes``, floating point (n, F), n > 0; ``edges``, floating point (n, n, E), whose entry
[i, j] describes the edge from node j to node i; and ``linked``, bool (n, n): whether there is that edge. A batch of
graphs holds them padded with zeros to the N nodes of the largest, and ``mask``, bool (B, N), which is True for nodes.
"""


def inputs_of(holder: Mapping[str, Any]) -> Any:
    """Returns the inputs of a sample or of a batch, which may be called ``image`` if they are images.

    Raises:
        DataError: There are none.
    """
    for key in ("inputs", "image"):
        if key in holder:
            return holder[key]
    raise DataError(
        f"A sample holds `inputs`, or `image` if it is an 8-bit image. Found {', '.join(holder) or 'none'}."
    )


def extent(inputs: Any) -> tuple[int, int]:
    """Returns height and width of an image (3, H, W); (0, 0) for inputs without pixels."""
    if isinstance(inputs, Tensor) and inputs.ndim == 3:
        return inputs.shape[1], inputs.shape[2]
    return 0, 0


def is_image(inputs: Any) -> bool:
    """Returns whether inputs are an 8-bit image (3, H, W) or a batch of them."""
    return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim >= 3 and inputs.shape[-3] == 3


def leaves(inputs: Any) -> list[Any]:
    """Returns the leaves of nested mappings and sequences, in order."""
    if isinstance(inputs, Mapping):
        return [leaf for value in inputs.values() for leaf in leaves(value)]
    if isinstance(inputs, list | tuple):
        return [leaf for value in inputs for leaf in leaves(value)]
    return [inputs]


def length(batch: Mapping[str, Any]) -> int:
    """Returns the number of samples of a batch."""
    return len(batch["id"]) if "id" in batch else len(leaves(inputs_of(batch))[0])


def rows_of(inputs: Any, rows: Tensor) -> Any:
    """Returns some samples of a batch's inputs, by their indices."""
    if isinstance(inputs, Mapping):
        return {key: rows_of(value, rows) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return [rows_of(value, rows) for value in inputs]
    return inputs[rows.to(inputs.device)]


def input_fault(sample: Mapping[str, Any], kind: str = "") -> str | None:
    """Finds what is wrong with the inputs of a sample: the rule and the fact; None if nothing is.

    Args:
        sample: A sample.
        kind: What the data module says that its inputs are, for example `IMAGES`; ``""`` if that is not known.
    """
    inputs = inputs_of(sample)
    if kind == IMAGES or "image" in sample:
        good = is_image(inputs) and inputs.ndim == 3
        return None if good else f"an image is uint8 (3, H, W). Found {_form(inputs)}"
    for leaf in leaves(inputs):
        if not isinstance(leaf, Tensor):
            return f"inputs are tensors, in any nesting. Found {_form(leaf)}"
        if leaf.is_floating_point() and not leaf.isfinite().all():
            return f"inputs are finite. Found {float(leaf[~leaf.isfinite()][0])}"
    if kind == VECTORS and not (isinstance(inputs, Tensor) and inputs.ndim == 1 and inputs.is_floating_point()):
        return f"a vector is floating point (features,). Found {_form(inputs)}"
    if kind == TOKENS and not (is_text(inputs) and len(inputs["tokens"])):
        return f"a text is a mapping with `tokens`, int64 (L,), L > 0. Found {_form(inputs)}"
    if kind == GRAPHS and not is_graph(inputs):
        form = "`nodes`, floating point (n, F), n > 0; `edges`, floating point (n, n, E); `linked`, bool (n, n)"
        return f"a graph is a mapping with {form}. Found {_form(inputs)}"
    return None


def is_graph(inputs: Any) -> bool:
    """Returns whether the inputs of a sample are a graph."""
    if not isinstance(inputs, Mapping) or set(inputs) != {"nodes", "edges", "linked"}:
        return False
    nodes, edges, linked = inputs["nodes"], inputs["edges"], inputs["linked"]
    if not all(isinstance(value, Tensor) for value in inputs.values()) or nodes.ndim != 2 or edges.ndim != 3:
        return False
    square = edges.shape[:2] == linked.shape == (len(nodes), len(nodes))
    floating = nodes.is_floating_point() and edges.is_floating_point()
    return square and len(nodes) > 0 and floating and linked.dtype == torch.bool


def is_text(inputs: Any) -> bool:
    """Returns whether the inputs of a sample are the tokens of a text."""
    tokens = inputs.get("tokens") if isinstance(inputs, Mapping) else None
    return isinstance(tokens, Tensor) and tokens.ndim == 1 and tokens.dtype == torch.int64


def stacked(samples: Sequence[Mapping[str, Any]]) -> Any:
    """Returns the inputs of a batch: those of its samples, with a new first axis on every tensor.

    Texts are padded to the longest of them, and graphs to the one with the most nodes.

    Raises:
        DataError: The inputs of the samples differ in form.
    """
    found = [inputs_of(sample) for sample in samples]
    image = "image" in samples[0]
    if all(is_text(one) for one in found) and len({tuple(one) for one in found}) == 1:
        return padded(found)
    if (
        all(is_graph(one) for one in found)
        and len({(one["nodes"].shape[1], one["edges"].shape[2]) for one in found}) == 1
    ):
        return padded_graphs(found)
    forms = {str(tuple(one.shape)) if image else _form(one) for one in found}
    if len(forms) > 1:
        what, ids = "Images" if image else "Inputs", ", ".join(sample["id"] for sample in samples[:4])
        raise DataError(f"{what} of one batch must have one size. Found {', '.join(sorted(forms))} among {ids}.")
    return _stack(found)


def padded(texts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns texts as a batch: every entry (B, N) with zeros after the end of a text, and ``mask``."""
    counts = torch.tensor([len(text["tokens"]) for text in texts])
    batch = {key: torch.nn.utils.rnn.pad_sequence([text[key] for text in texts], batch_first=True) for key in texts[0]}
    return {**batch, "mask": torch.arange(int(counts.max())) < counts[:, None]}


def padded_graphs(graphs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns graphs as a batch: every entry with zeros, or False, where a graph has no further nodes, and ``mask``."""
    counts = torch.tensor([len(graph["nodes"]) for graph in graphs])
    most = int(counts.max())

    def filled(key: str, axes: int) -> Tensor:
        first = graphs[0][key]
        whole = first.new_zeros(len(graphs), *(most,) * axes, *first.shape[axes:])
        for row, graph in zip(whole, graphs, strict=True):
            row[(slice(len(graph["nodes"])),) * axes] = graph[key]
        return whole

    batch = {"nodes": filled("nodes", 1), "edges": filled("edges", 2), "linked": filled("linked", 2)}
    return {**batch, "mask": torch.arange(most) < counts[:, None]}


def _stack(found: Sequence[Any]) -> Any:
    first = found[0]
    if isinstance(first, Mapping):
        return {key: _stack([one[key] for one in found]) for key in first}
    if isinstance(first, list | tuple):
        return [_stack(parts) for parts in zip(*found, strict=True)]
    return torch.stack(list(found))


def _form(inputs: Any) -> str:
    """Returns type and shape in words, which are equal for inputs that can be stacked."""
    if isinstance(inputs, Mapping):
        return f"{{{', '.join(f'{key}: {_form(value)}' for key, value in inputs.items())}}}"
    if isinstance(inputs, list | tuple):
        return f"[{', '.join(map(_form, inputs))}]"
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}"
    return type(inputs).__name__
