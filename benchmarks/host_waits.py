"""Finds the places where the host waits for the device in training steps.

On a GPU, CUDA reports every operation that waits. Without one, operations that bring a value to Python, and copies of
numbers to the device, are noted as far as code of this project asked for them: the same code would wait on a GPU.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.pairs import DEVICE

ROOT = Path(__file__).resolve().parents[1]
FIRST, LAST = 2, 10
"""Steps that are watched. The ones before them warm up."""

WANTED = {
    ("balancing/gradients/update.py", "_weights"): "the T x T Gramian of a gradient rule, once per step",
}
"""Places at which a step may wait, and why."""

NOT_ON_A_GPU = {("balancing/gradients/surgery.py", "_divide")}
"""Places that read a value only where it lies on the host."""

VALUES = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount",
    "aten::_unique2",
}  # fmt: skip
"""Operators whose result, or the size of it, the host must know."""


class Waits:
    """Counts waits by place while it is entered."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self.wanted: Counter[str] = Counter()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Waits:
        if DEVICE.type == "cuda":
            self._open.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            warnings.showwarning = self._warned  # type: ignore[assignment]
            self._open.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode("warn")
        else:
            self._open.enter_context(_Copies(self))
            self._open.enter_context(_Values(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def note(self, what: str) -> None:
        """Counts one wait at the innermost line of this project, or of whoever called."""
        frames = traceback.extract_stack()[:-2]
        own = [frame for frame in frames if _is_own(frame.filename)]
        if DEVICE.type == "cpu":
            # Step counters of an optimiser lie on the host, also on a GPU.
            counter = any("/torch/optim/" in frame.filename for frame in frames[-8:])
            if counter or own and any(own[-1].filename.endswith(f) and own[-1].name == n for f, n in NOT_ON_A_GPU):
                return
        for frame in own:
            for (file, function), reason in WANTED.items():
                if frame.filename.endswith(file) and frame.name == function:
                    self.wanted[reason] += 1
                    return
        if own or DEVICE.type == "cuda":
            frame = (own or frames)[-1]
            self.places[f"{Path(frame.filename).name}:{frame.lineno} {frame.name} ({what})"] += 1

    def _warned(self, message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            self.note("cuda")


class _Values(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition(".")[0]
        lists = [a for a in args if isinstance(a, list | tuple)] if name.startswith("aten::index") else []
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for a in lists for i in a)
        if name in VALUES or by_mask:
            self.waits.note(name)
        return function(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    """Notes numbers and lists of the host that PyTorch would copy to the device, and wait."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None or function is torch.Tensor.new_tensor:
            self.waits.note(function.__name__)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                self.waits.note("a list as an index")
        return function(*args, **kwargs)


class Watch(L.Callback):
    """Watches steps `FIRST` to `LAST` of a training."""

    def __init__(self) -> None:
        self.waits = Waits()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == FIRST - 1:
            self.waits.__enter__()
        elif trainer.global_step == LAST:
            self.waits.__exit__()


def _is_own(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts and path.name != Path(__file__).name
