"""The network of a finished run as a folder to share: weights as safetensors, and what is needed to rebuild it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtlbench import registry
from mtlbench.errors import MethodError, StoreError, shortened
from mtlbench.method import MethodSpec
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.experts.extracted import DESCRIPTION, WEIGHTS
from mtlbench.runs.spec import RunSpec
from mtlbench.training.build import build_method, build_tasks, data_class
from mtlbench.training.load import LoadedRun

FORMAT = 1


class ExportedNetwork(nn.Module):
    """A network that predicts all tasks of its run.

    Attributes:
        network: The network.
        description: Content of ``model.json``: specification and scores of the run, and the form of each output.
    """

    def __init__(self, network: MTLNetwork, description: dict[str, Any]) -> None:
        """Wraps a network.

        Args:
            network: The network.
            description: Description as stored.
        """
        super().__init__()
        self.network = network
        self.description = description

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the raw prediction of every task: (B, channels, H, W), or (B, channels) for a whole-image task.

        Args:
            image: (B, 3, H, W) uint8, RGB, of the size in the description.
        """
        return self.network(image, list(self.description["outputs"])).predictions


def save(loaded: LoadedRun, folder: Path) -> ExportedNetwork:
    """Writes weights and description of a run's network, and returns the network.

    Args:
        loaded: The run.
        folder: Folder to write to, created if absent.
    """
    spec = {key: value for key, value in loaded.spec.to_json().items() if key != "local"}
    outputs = {
        name: {
            "kind": task.kind,
            "dense": task.dense,
            "channels": task.channels,
            "class_names": list(getattr(task, "class_names", ())),
        }
        for name, task in loaded.method.tasks.items()
    }
    kept = ("run_id", "hash", "split", "scores", "versions")
    result = {key: loaded.result[key] for key in kept if key in loaded.result}
    description = {"format": FORMAT, **result, "spec": spec, "outputs": outputs}
    network = loaded.method.network
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return ExportedNetwork(network, description).eval()


def load_exported(folder: str | Path, *, allow: Collection[str] = ()) -> ExportedNetwork:
    """Loads a network written by ``mtlbench export``, in evaluation mode. Needs no data.

    Args:
        folder: The folder given as ``--to``, or a copy of it.
        allow: Modules or packages of your own that it may import. Shipped code and registered entry points need no
            permission; code inside the folder is never imported.

    Raises:
        MethodError: If the description names code that was not allowed.
        StoreError: If the files are absent, damaged, of another format, or of an extracted network.

    Example::

        model = mtlbench.load_exported("shared")
        predictions = model(images)  # uint8 (B, 3, H, W) -> {task: (B, channels, H, W)}
    """
    path = Path(folder)
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        state = load_file(path / WEIGHTS)
    except Exception as error:  # The error class of safetensors has no public base.
        raise _unreadable(path, f"{type(error).__name__}: {shortened(str(error))}") from error
    if isinstance(description, dict) and "task" in description:
        raise _unreadable(path, "it holds a network of one task: use mtlbench.load_extracted")
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = f"format {description.get('format')}" if isinstance(description, dict) else "no JSON object"
        raise _unreadable(path, f"{found}, this version reads format {FORMAT}")
    trusted = registry.Trusted((allow,) if isinstance(allow, str) else tuple(allow), path.resolve())
    try:
        network = _build(RunSpec.from_json({**description["spec"], "local": {}}), trusted)
        network.load_state_dict(state)
        return ExportedNetwork(network, description).eval()
    except MethodError:
        raise
    except Exception as error:  # Any value of the description may be of any kind.
        raise _unreadable(path, f"{type(error).__name__}: {shortened(str(error))}") from error


def _build(spec: RunSpec, trusted: registry.Trusted) -> MTLNetwork:
    """Returns the network of a specification with random weights."""
    tasks = build_tasks(spec, data_class(spec.data["module"], trusted=trusted))
    model = {**spec.model, "weights": None}
    given = MethodSpec(tasks, model, spec.optimiser, spec.trainer["steps"], seed=spec.seed)
    method = build_method(spec.method, given, trusted=trusted)
    method.configure_model()
    return method.network


def _unreadable(path: Path, fact: str) -> StoreError:
    return StoreError(
        f"A folder written by `mtlbench export` holds matching files {WEIGHTS} and {DESCRIPTION}. {path}: {fact}. Run "
        "`mtlbench export` again."
    )
