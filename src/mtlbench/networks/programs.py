"""Networks as programs that run without this package: torch.export and ONNX, each compared with the network.

Sizes in a graph cannot depend on routes, so every expert multiplies as many rows as there are tokens. Sparse layers
therefore do E / k times the work of the network itself.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError, shortened

PROGRAM, ONNX = "program.pt2", "model.onnx"

TOLERANCE = 1e-3
"""Largest difference of a program's outputs from the network's, relative to the largest output."""

_INSTEAD = "Share the weights alone: mtlbench export --weights-only."

_CHECKED = (1, 3)
"""Numbers of images on which a program is compared; neither is the one that it was traced with."""


def write_program(network: nn.Module, size: Sequence[int], path: Path) -> float:
    """Writes a network as a program of PyTorch's own operators, for any number of images.

    ``torch.export.load(path).module()(images)`` runs it.

    Args:
        network: Maps uint8 images (B, 3, H, W) to a tensor or to a dictionary of tensors.
        size: Height and width of images.
        path: File to write, ``*.pt2``.

    Returns:
        The largest difference of an output from the network's, relative to the largest output.

    Raises:
        MethodError: If the network cannot be exported, or the program predicts something else.
    """
    with _tracing(network, "torch.export"):
        program = _traced(network, size)
        torch.export.save(program, path)
        written = torch.export.load(path).module()
    return _compared(network, size, path, lambda images: _tensors(written(images)))


def write_onnx(network: nn.Module, size: Sequence[int], path: Path, names: Sequence[str]) -> float:
    """Writes a network as an ONNX file with the input ``image``; as `write_program` otherwise.

    Args:
        network: As for `write_program`.
        size: Height and width of images.
        path: File to write, ``*.onnx``. Weights are inside it.
        names: Names of the outputs, in the order of the dictionary.

    Raises:
        MethodError: As `write_program`, or if a package of the extra ``onnx`` is absent.
    """
    needs_onnx()
    import onnxruntime

    with _tracing(network, "ONNX"), contextlib.redirect_stdout(io.StringIO()):
        program: Any = torch.onnx.export(
            network,
            (_blank(2, size),),
            dynamo=True,
            dynamic_shapes={"image": {0: torch.export.Dim("images")}},
            input_names=["image"],
            output_names=list(names),
            custom_translation_table=_translations(),
            verbose=False,
        )
        program.save(str(path), external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _compared(
        network,
        size,
        path,
        lambda images: [torch.as_tensor(x) for x in session.run(list(names), {"image": images.numpy()})],
    )


def needs_onnx() -> None:
    """Checks that the packages of the extra ``onnx`` are there.

    Raises:
        MethodError: With the command that installs them.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MethodError(
            f"ONNX needs onnx, onnxscript and onnxruntime, and {error.name} is not installed. Install them with: "
            "pip install 'mtlbench[onnx]' (in a clone: pip install -e '.[onnx]'), or leave out --onnx."
        ) from error


def _translations() -> dict[Any, Callable[..., Any]]:
    """Returns ONNX forms of two operators of the dispatch to experts, which the exporter of PyTorch lacks."""
    import onnxscript

    op: Any = onnxscript.opset18

    def stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # `TopK` puts the lower index first where values are equal, so it is stable.
        size = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, op.Reshape(size, op.Constant(value_ints=[1])), axis=dim, largest=descending, sorted=1)

    def searchsorted(
        ordered: Any, values: Any, out_int32: bool = False, right: bool = False, side: Any = None, sorter: Any = None
    ) -> Any:
        """Counts the entries before each value; ``ordered`` (M,), ``values`` (E,)."""
        columns, rows = (op.Unsqueeze(x, op.Constant(value_ints=[i])) for i, x in enumerate((ordered, values)))
        before = op.LessOrEqual(columns, rows) if right else op.Less(columns, rows)
        return op.ReduceSum(op.Cast(before, to=7), op.Constant(value_ints=[1]), keepdims=0)  # 7: int64.

    aten = torch.ops.aten
    return {aten.sort.stable: stable_sort, aten.searchsorted.Tensor: searchsorted}


def _traced(network: nn.Module, size: Sequence[int]) -> Any:
    with torch.no_grad():
        # Two images, because the export treats a size of one as a constant.
        return torch.export.export(
            network, (_blank(2, size),), dynamic_shapes={"image": {0: torch.export.Dim("images")}}
        )


def _blank(count: int, size: Sequence[int]) -> Tensor:
    return torch.zeros(count, 3, *size, dtype=torch.uint8)


@contextlib.contextmanager
def _tracing(network: nn.Module, what: str) -> Iterator[None]:
    """Turns whatever tracing raises into an error of this package; silences its advice to developers of PyTorch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # Tracing and conversion have no common class of errors.
        raise MethodError(
            f"A network must be free of control flow that depends on values to become a program. {what} of "
            f"{type(network).__name__} raised {type(error).__name__}: {shortened(str(error))}. {_INSTEAD}"
        ) from error
    finally:
        logger.setLevel(level)


def _compared(network: nn.Module, size: Sequence[int], path: Path, run: Callable[[Tensor], Sequence[Tensor]]) -> float:
    """Returns the largest relative difference on random images; removes a program that predicts something else."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for count in _CHECKED:
        images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            wanted, found = _tensors(network(images)), run(images)
        if [x.shape for x in wanted] != [x.shape for x in found]:
            worst = float("inf")
            break
        worst = max([worst, *(_distance(a, b) for a, b in zip(wanted, found, strict=True))])
    if not worst <= TOLERANCE:
        path.unlink(missing_ok=True)
        raise MethodError(
            f"A program must predict what its network predicts, within {TOLERANCE:g} of the largest output. "
            f"{path.name} differs by {worst:.2g}, so it was removed. {_INSTEAD}"
        )
    return worst


def _distance(wanted: Tensor, found: Tensor) -> float:
    wanted, found = wanted.double(), found.double()
    return float((wanted - found).abs().max() / wanted.abs().max().clamp(min=1e-12))


def _tensors(found: Any) -> list[Tensor]:
    return list(found.values()) if isinstance(found, dict) else [found]
