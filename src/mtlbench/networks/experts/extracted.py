"""Stores networks of one task as safetensors, with a description from which the network is rebuilt.

Loading needs torch and timm but no training code. A program written by `export` needs only torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtlbench.errors import StoreError, shortened
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.experts.extraction import Kept
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.trunk import ExpertOptions
from mtlbench.networks.programs import PROGRAM, write_program
from mtlbench.networks.pruned_files import PRUNED, packed, unpacked
from mtlbench.networks.pruning import PrunedNetwork
from mtlbench.networks.text_encoder import unpadded

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class _Head:
    """The properties of a task that its head needs."""

    name: str
    dense: bool
    channels: int
    per_token: bool = False


class ExtractedNetwork(nn.Module):
    """A network that predicts one task.

    Attributes:
        description: Content of the file: task, kind, channels, class names, source and, where it has any, kept experts.
    """

    def __init__(self, network: MTLNetwork, description: dict[str, Any]) -> None:
        """Wraps a network of one task.

        Args:
            network: Network of the task.
            description: Description as stored.
        """
        super().__init__()
        self.network = network
        self.description = description

    def forward(self, image: Any) -> Tensor:
        """Returns the raw prediction: (B, channels, H, W), (B, channels, N) per token, or (B, channels) per sample.

        Args:
            image: Images (B, 3, H, W) uint8, RGB, of the size in the description; or what else the encoder takes, such
                as a batch of texts.
        """
        task = self.description["task"]
        tokenwise = {task: self.description["kind"]} if self.description.get("per_token") else {}
        return unpadded(self.network(image, [task]).predictions, tokenwise, image)[task]


def describe(task: Any, model: Mapping[str, Any], options: ExpertOptions, kept: Kept, source: Any) -> dict[str, Any]:
    """Returns the description of an extracted network.

    Args:
        task: The `Task` that the network predicts.
        model: Section ``model`` of the run. Names of weights are left out.
        options: Expert options of the whole network.
        kept: Kept experts by name of the layer.
        source: Origin of the network: run and threshold.
    """
    known = asdict(options)
    if known["descriptions"] is not None:
        known["descriptions"] = {task.name: list(known["descriptions"][task.name])}
    return {**_common(task, model), "options": known, "kept": kept, "source": source}


def describe_pruned(task: Any, model: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """Returns the description of the network of one task from a pruned network; arguments as for `describe`."""
    return {**_common(task, model), "form": PRUNED, "source": source}


def _common(task: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": task.name,
        "kind": task.kind,
        "dense": task.dense,
        "per_token": task.per_token,
        "channels": task.channels,
        "class_names": list(getattr(task, "class_names", ())),
        "model": {key: value for key, value in model.items() if key not in ("weights", "weights_identity")},
    }


def save(network: ExpertNetwork, description: Mapping[str, Any], folder: str | Path) -> None:
    """Writes the weights and the description.

    Args:
        network: Result of `extraction.extract`.
        description: Result of `describe`.
        folder: Folder to write to, created if absent.
    """
    _write({key: value.contiguous().clone() for key, value in network.state_dict().items()}, description, Path(folder))


def save_pruned(network: PrunedNetwork, description: Mapping[str, Any], folder: str | Path) -> None:
    """Writes the network of one task without its pruned weights.

    Args:
        network: The whole pruned network.
        description: Result of `describe_pruned`.
        folder: Folder to write to, created if absent.
    """
    _write(packed(network, description["task"]), description, Path(folder))


def _write(weights: dict[str, Tensor], description: Mapping[str, Any], path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / WEIGHTS)
    (path / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def export(folder: str | Path) -> Path:
    """Exports an extracted network as a program of PyTorch's own operators and returns the program's path.

    See `mtlbench.networks.programs.write_program`.

    Args:
        folder: Folder written by `save`. The program is added to it.

    Raises:
        StoreError: See `load_extracted`.
        MethodError: See `mtlbench.networks.programs.write_program`.
    """
    model = load_extracted(folder)
    path = Path(folder) / PROGRAM
    write_program(model, model.description["model"]["image_size"], path)
    return path


def load_extracted(folder: str | Path) -> ExtractedNetwork:
    """Loads a network written by ``mtlbench extract``, in evaluation mode.

    Args:
        folder: The folder given as ``--out``.

    Raises:
        StoreError: The files are absent, damaged or of another format.

    Example::

        model = mtlbench.load_extracted("parts")
        prediction = model(images)  # uint8 (B, 3, H, W) -> (B, channels, H, W)
    """
    path = Path(folder)
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        state = load_file(path / WEIGHTS)
    except Exception as error:  # The error class of safetensors has no public base.
        raise _unreadable(path, f"{type(error).__name__}: {shortened(str(error))}") from error
    if isinstance(description, dict) and "outputs" in description:
        raise _unreadable(path, "it holds a network of all tasks: use mtlbench.load_exported")
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = f"format {description.get('format')}" if isinstance(description, dict) else "no JSON object"
        raise _unreadable(path, f"{found}, this version reads format {FORMAT}")
    try:
        head = _Head(
            description["task"], description["dense"], description["channels"], description.get("per_token", False)
        )
        model = {key: value for key, value in description["model"].items() if key != "weights"}
        if description.get("form") == PRUNED:
            return ExtractedNetwork(unpacked(state, head, model), description).eval()
        network = ExpertNetwork({head.name: head}, _options(description["options"]), **model)  # type: ignore[dict-item]
        for name, layer in network.layers.items():
            layer.keep(description["kept"][name])
        network.load_state_dict(state)
    except Exception as error:  # Any value of the description may be of any kind.
        raise _unreadable(path, f"{type(error).__name__}: {shortened(str(error))}") from error
    return ExtractedNetwork(network, description).eval()


def _options(values: Mapping[str, Any]) -> ExpertOptions:
    known = {key: value for key, value in values.items() if key not in ("init", "start")}
    # Earlier folders use the key "start". Weights come from the file, so "init" only sets the width of the experts,
    # which differs for "copy" alone.
    init = values["init"] if "init" in values else values["start"]
    return ExpertOptions(**known, init="random" if init == "split" else init)


def _unreadable(path: Path, fact: str) -> StoreError:
    return StoreError(
        f"A folder written by `mtlbench extract` holds matching files {WEIGHTS} and {DESCRIPTION}. {path}: {fact}. Run "
        "`mtlbench extract` again."
    )
