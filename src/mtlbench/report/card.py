"""The card of a shared network: the README.md that the Hugging Face Hub shows. Made from plain records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtlbench.report.references import cited, methods_of

Record = Mapping[str, Any]


def card(spec: Record, result: Record, outputs: Record, files: Sequence[str], extracted: Record | None = None) -> str:
    """Returns the card as Markdown with its header of metadata.

    Args:
        spec: Specification of the run, as ``spec.json`` has it.
        result: Its ``result.json``.
        outputs: Kind, channels, class names and whether it is dense, by task that the network predicts.
        files: Names of the files in the folder.
        extracted: For the network of one task that was cut out of one with experts: ``threshold`` and ``score``.
    """
    tasks = list(outputs)
    scores = {task: result["scores"].get(task) or {} for task in tasks}
    if extracted:
        scores = {tasks[0]: extracted["score"]}
    parts = [
        _metadata(spec, result, scores),
        f"# {_text(result['run_id'])}",
        _summary(spec, result, tasks, extracted),
        "## Outputs\n\nImages are uint8, RGB, of shape (B, 3, {}, {}).\n".format(*spec["model"]["image_size"]),
        _outputs(outputs),
        f"## Scores\n\nOn the split `{_text(result['split'])}` of this one run, seed {spec['seed']}. A comparison of "
        "methods needs several seeds.\n",
        _scores(spec, scores),
        _usage(spec, files, extracted),
        _training(spec, result),
        "## Licence\n\nNone is set. Weights may inherit conditions from the data and from pretrained weights.",
        f"## Papers\n\n```bibtex\n{cited(methods_of(spec)).strip()}\n```",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _metadata(spec: Record, result: Record, scores: Mapping[str, Record]) -> str:
    """Returns the header. A JSON value is a YAML value, so quoting is JSON's."""
    results = [
        {
            "task": {"type": spec["tasks"][task]["kind"], "name": task},
            "dataset": {"type": spec["data"]["module"], "name": spec["suite"], "split": result["split"]},
            "metrics": [{"type": name, "value": value} for name, value in found.items() if math.isfinite(value)],
        }
        for task, found in scores.items()
    ]
    results = [each for each in results if each["metrics"]]
    tags = ["mtlbench", "multi-task-learning", *methods_of(spec)]
    lines = ["library_name: mtlbench", f"tags: {json.dumps(tags)}"]
    if results:
        lines.append(f"model-index: {json.dumps([{'name': result['run_id'], 'results': results}])}")
    return "\n".join(["---", *lines, "---"])


def _summary(spec: Record, result: Record, tasks: Sequence[str], extracted: Record | None) -> str:
    what = f"The network of one run of the suite `{_text(spec['suite'])}`"
    if extracted:
        what = (
            f"The experts, router rows and head of the task `{_text(tasks[0])}`, extracted at threshold "
            f"{extracted['threshold']:g} from the network of one run of the suite `{_text(spec['suite'])}`"
        )
    return f"{what}, trained with the method `{_text(result['method'])}`. Written by `mtlbench export`."


def _outputs(outputs: Record) -> str:
    lines = ["| task | kind | shape | classes |", "|:--|:--|:--|:--|"]
    for task, about in outputs.items():
        shape = f"(B, {about['channels']}, H, W)" if about["dense"] else f"(B, {about['channels']})"
        classes = ", ".join(about.get("class_names") or ())
        lines.append(f"| {_text(task)} | {_text(about['kind'])} | {shape} | {_text(classes)} |")
    return "\n".join([*lines, "", "Predictions are raw: logits for classes, the network's own values for numbers."])


def _scores(spec: Record, scores: Mapping[str, Record]) -> str:
    better = {p["id"]: p for task in spec["tasks"].values() for p in task.get("protocols") or ()}
    lines = ["| task | metric | value | better |", "|:--|:--|--:|:--|"]
    for task, found in scores.items():
        for protocol, value in found.items():
            about = better.get(protocol, {})
            unit = f" {about['unit']}" if about.get("unit") else ""
            way = {True: "higher", False: "lower"}.get(about.get("higher_is_better"), "")  # type: ignore[arg-type]
            lines.append(f"| {_text(task)} | {_text(protocol)} | {value!r}{_text(unit)} | {way} |")
    return "\n".join(lines)


def _usage(spec: Record, files: Sequence[str], extracted: Record | None) -> str:
    height, width = spec["model"]["image_size"]
    lines = ["import torch", "", f"images = torch.zeros(1, 3, {height}, {width}, dtype=torch.uint8)"]
    if "program.pt2" in files:
        lines += [
            "",
            "# PyTorch alone",
            'network = torch.export.load("program.pt2").module()',
            "found = network(images)",
        ]
    loader = "load_extracted" if extracted else "load_exported"
    lines += ["", "# With mtlbench, to train further or to look inside", "import mtlbench", ""]
    lines += [f'network = mtlbench.{loader}(".")', "found = network(images)"]
    if "model.onnx" in files:
        lines += ["", "# ONNX", "import onnxruntime", "", 'session = onnxruntime.InferenceSession("model.onnx")']
        lines += ['found = session.run(None, {"image": images.numpy()})']
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _training(spec: Record, result: Record) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in (result.get("versions") or {}).items())
    facts = {
        "suite": spec["suite"],
        "data": spec["data"]["module"],
        "method": json.dumps(spec["method"].get("arguments") or {}),
        "encoder": spec["model"]["encoder"],
        "optimiser": json.dumps(spec["optimiser"]),
        "steps": result.get("steps"),
        "seed": spec["seed"],
        "run": result["run_id"],
        "SHA-256 of the specification": result["hash"],
        "versions": versions,
    }
    return "## Training\n\n" + "\n".join(f"- {name}: {_text(str(value))}" for name, value in facts.items())


def _text(text: str) -> str:
    """Returns text on one line that Markdown shows as it is."""
    plain = " ".join(str(text).split())
    for sign, inert in {"<": "&lt;", "|": "\\|", "`": "'"}.items():
        plain = plain.replace(sign, inert)
    return plain
