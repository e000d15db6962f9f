"""Find methods and balancers by name: a file in `methods/`, an entry point, a subclass, or `module:Class`."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.errors import MethodError, foreign_code, shortened, unknown_name

ENTRY_POINTS = "mtlbench.methods"

FLOOR = "floor"
"""The method that predicts without the image. Every study has its row, and reports compare every score with it."""

_METHODS = Path(__file__).parent / "methods"

TAXONOMY = (
    "baseline",
    "architectures/computer vision/shared trunk",
    "architectures/computer vision/cross-talk",
    "architectures/computer vision/prediction distillation",
    "architectures/computer vision/task routing",
    "architectures/computer vision/single tasking",
    "architectures/conditional",
    "architectures/learned",
    "optimisation/loss weighting/by uncertainty",
    "optimisation/loss weighting/by learning speed",
    "optimisation/loss weighting/by performance",
    "optimisation/loss weighting/by reward magnitude",
    "optimisation/loss weighting/geometric mean",
    "optimisation/loss weighting/other",
    "optimisation/regularisation",
    "optimisation/task scheduling",
    "optimisation/gradient modulation",
    "optimisation/knowledge distillation",
    "optimisation/multi-objective",
    "relationships/grouping",
    "relationships/transfer",
    "relationships/embeddings",
)
"""Leaves of Crawshaw's survey of multi-task learning (https://arxiv.org/abs/2009.09796) that concern images, in its
order. ``baseline`` and ``optimisation/loss weighting/other`` are added for methods without a leaf in the survey."""


@dataclass(frozen=True)
class PerTask:
    """Search space of a list with one number per task: log-uniform, then scaled to sum to the number of tasks.

    Attributes:
        low, high: Bounds before scaling.
    """

    low: float
    high: float


class Registered:
    """Base of what a suite may name as a method: `MTLMethod` and `Balancer`. Every subclass is found by name.

    Attributes:
        VERSION: Raise it when the same hyper-parameters give another result; it enters every run's identity.
        TAXONOMY: Leaf of the survey that the method belongs to, one of `TAXONOMY`. It has no part in the identity.
            Empty if a method of your own does not declare it.
        TAKES: What the constructor receives by position: ``("spec",)`` for a method. Hyper-parameters are keywords.
        LATER: Hyper-parameters added after runs were stored. At their default they stay out of a run's identity.
        SEARCH: Search space per hyper-parameter, for equal tuning: a list of values, or `PerTask`.
    """

    VERSION: ClassVar[int] = 1
    TAXONOMY: ClassVar[str] = ""
    TAKES: ClassVar[tuple[str, ...]] = ()
    LATER: ClassVar[tuple[str, ...]] = ()
    SEARCH: ClassVar[Mapping[str, list[Any] | PerTask]] = {}


@dataclass(frozen=True)
class Trusted:
    """What a specification that was read from disk may import besides shipped code and registered entry points.

    Whoever wrote the file chose the names in it. Python imports from the current folder, and a results folder is
    importable as a namespace package, so a name alone can run code that came with the results.

    Attributes:
        names: Modules or packages that the user allows on this call; a package allows what it contains.
        never: Folder of the results, whose files are never imported.
    """

    names: tuple[str, ...] = ()
    never: Path | None = None

    def check(self, path: str) -> None:
        """Check a ``module:Class`` without importing it.

        Raises:
            MethodError: If it is neither shipped, registered nor allowed, or lies in the folder of the results.
        """
        module = path.partition(":")[0]
        home = _home_of(module)
        if home.startswith("mtlbench.") and not home.endswith("__main__"):
            return
        allowed = any(module == name or module.startswith(f"{name}.") for name in self.names)
        if not allowed and not any(point.module == module for point in _entry_points()):
            top = module.partition(".")[0]
            raise MethodError(
                f"A stored run imports only shipped code, entry points, and what you allow by name. It names {path!r}. "
                f"If you trust that code, allow it: --allow {top}, in Python load_run(..., allow=[{top!r}])."
            )
        inside = [place for place in _places(module) if self.never and place.is_relative_to(self.never.resolve())]
        if inside:
            raise MethodError(
                f"A stored run never imports code from a results folder. {path!r} is {inside[0]}. Move the code "
                "elsewhere, read it, and allow it there."
            )


def _places(module_name: str) -> list[Path]:
    """Return the files and folders that importing a module would run or look into, without importing any."""
    search: list[str] | None = None
    found: list[Path] = []
    for part in module_name.split("."):
        # The bare name of each part: a dotted one would look for its parent among the imported modules.
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            break
        search = list(spec.submodule_search_locations or [])
        found += [Path(place).resolve() for place in ([spec.origin] if spec.origin else search)]
    return found


def shipped() -> dict[str, str]:
    """Returns the names of the shipped methods with the first line of their docstring, without importing them."""
    return {
        name: (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0] for name, path in _files().items()
    }


def _files() -> dict[str, Path]:
    """Returns the file of every shipped method by name, sorted by name."""
    return {path.stem: path for path in sorted(_METHODS.glob("*/[!_]*.py"), key=lambda path: path.stem)}


@functools.cache
def _entry_points() -> tuple[metadata.EntryPoint, ...]:
    """Return the methods of installed packages; looking through all packages takes longer than reading a suite."""
    return tuple(metadata.entry_points(group=ENTRY_POINTS))


def names() -> list[str]:
    """Return every name that `find` accepts, without importing torch."""
    return sorted({*_files(), *(point.name for point in _entry_points())})


def load(path: str, *, trusted: Trusted | None = None) -> Any:
    """Return the object that ``module:Name`` stands for; the current folder counts as importable.

    ``data_modules.digits:Digits`` names a shipped data module, wherever mtlbench is installed.

    Args:
        path: ``module:Name``.
        trusted: Limits of what may be imported, where the name comes from a stored file. None where the user gave it.

    Raises:
        MethodError: If the module or the name does not exist, or must not be imported.
    """
    module_name, _, attribute = path.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if trusted is not None:
        trusted.check(path)
    try:
        with foreign_code(f"Importing {module_name}"):
            module = importlib.import_module(_home_of(module_name))
    except MethodError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise MethodError(
            f"{path!r} must name an importable module: {error.__cause__}. Looked in the current folder and the "
            "environment."
        ) from error
    if not hasattr(module, attribute):
        raise MethodError(f"In {module_name}: " + unknown_name("class", attribute, _classes(module)))
    return getattr(module, attribute)


def _home_of(module_name: str) -> str:
    """Returns where a module is imported from: a shipped data module from within the package.

    Raises:
        MethodError: If the current folder has a module of the same name as a shipped one.
    """
    package, _, name = module_name.partition(".")
    shipped_file = _module_file(Path(importlib.import_module("mtlbench.data_modules").__path__[0]), name)
    if package != "data_modules" or shipped_file is None:
        return module_name
    own = _module_file(Path.cwd() / "data_modules", name)
    if own is not None and not own.samefile(shipped_file):
        raise MethodError(
            f"A data module of your own needs a name of its own. {own} has the name of the shipped {module_name}. "
            "Rename your file."
        )
    return f"mtlbench.{module_name}"


def _module_file(folder: Path, name: str) -> Path | None:
    """Returns the file of a module ``a.b`` below a folder, or None."""
    base = folder.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if name and path.is_file()), None)


def find(name: str, *, trusted: Trusted | None = None) -> type:
    """Return the class of a method or balancer.

    Args:
        name: Name, or ``module:Class``.
        trusted: See `load`.

    Raises:
        MethodError: If there is none of that name, or it must not be imported.
    """
    if ":" in name:
        cls = load(name, trusted=trusted)
        if not (inspect.isclass(cls) and issubclass(cls, Registered)):
            raise MethodError(f"{name!r} must name a subclass of MTLMethod or Balancer; found {cls!r}.")
        return cls
    if path := _files().get(name):
        module = importlib.import_module(f"mtlbench.methods.{path.parent.name}.{name}")
        own = [
            cls
            for cls in vars(module).values()
            if inspect.isclass(cls) and cls.__module__ == module.__name__ and issubclass(cls, Registered)
        ]
        return own[0]
    for point in _entry_points():
        if point.name == name:
            with foreign_code(f"Importing {point.value}"):
                return point.load()
    # Shipped methods are found by file name; their shared base classes are no methods.
    found = [cls for cls in _below(Registered) if not cls.__module__.startswith("mtlbench.")]
    subclasses = {_snake(cls.__name__): cls for cls in found}
    if name in subclasses:
        return subclasses[name]
    raise MethodError(unknown_name("method", name, {*names(), *subclasses}))


def arguments_of(cls: type) -> dict[str, inspect.Parameter]:
    """Returns the hyper-parameters of a method, balancer or data module: its keyword arguments.

    A constructor that passes ``**`` on has those of the next class too.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        named = {p.name: p for p in parameters if p.name not in ("self", "spec") and p.kind not in kinds}
        found = {**named, **found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def defaults(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the given hyper-parameters completed by their defaults."""
    return {name: arguments.get(name, parameter.default) for name, parameter in arguments_of(cls).items()}


def record(name: str, **arguments: Any) -> dict[str, Any]:
    """Return the method's part of a run's identity: a suite's entry with all defaults written out.

    Args:
        name: Name of a method or balancer, or ``module:Class``.
        **arguments: Hyper-parameters that differ from the defaults.

    Raises:
        MethodError: If there is no such method, or a hyper-parameter is unknown or of the wrong type.
    """
    cls: Any = find(name)
    check_arguments(name, cls, arguments)
    known = arguments_of(cls)
    written = {k: v for k, v in defaults(cls, arguments).items() if k not in cls.LATER or v != known[k].default}
    return {
        "name": name.rpartition(":")[2],
        "path": name,
        "version": cls.VERSION,
        "arguments": written,
    }


def check_arguments(name: str, cls: Any, arguments: Mapping[str, Any]) -> None:
    """Check the form of a method's or balancer's constructor, and names and simple types of hyper-parameters.

    Raises:
        MethodError: With every fault found.
    """
    form = form_fault(cls, cls.TAKES, defaults(cls, {}))
    faults = [form] if form else list(argument_faults(cls, arguments))
    if faults:
        raise MethodError("\n".join(f"{name}: {fault}" for fault in faults))


def form_fault(cls: type, positions: tuple[str, ...], keywords: Mapping[str, Any]) -> str | None:
    """Return why a class cannot be built with these arguments, or None if it can; nothing is built.

    Args:
        cls: A method, balancer or data module.
        positions: Names of what it receives by position.
        keywords: What it receives by keyword.
    """
    try:
        inspect.signature(cls).bind(*positions, **keywords)
    except TypeError as error:
        first = "".join(f", {name}" for name in positions)
        passed = f" Take {first[2:]} first, and pass it on: `super().__init__({first[2:]})`." if first else ""
        return (
            f"a constructor must have the form `__init__(self{first}, *, name=default, ...)`. Found "
            f"`{cls.__name__}.__init__{inspect.signature(cls.__init__)}`: {error}.{passed}"  # type: ignore[misc]
        )
    return None


def argument_faults(cls: type, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for every hyper-parameter that is unknown, of the wrong type, or absent without a default."""
    known = arguments_of(cls)
    for key in (key for key in arguments if key not in known):
        yield unknown_name("hyper-parameter", str(key), known)
    for key, parameter in known.items():
        value = arguments.get(key, parameter.default)
        if value is inspect.Parameter.empty:
            yield f"{key} has no default, so the suite must give it a value. Give it a default, or write {key}: VALUE."
        elif fault := value_fault(value, parameter.default):
            yield f"{key} {fault}"


def value_fault(value: Any, default: Any) -> str | None:
    """Return the end of a sentence that says why a value cannot stand for an argument with this default, or None."""
    if not _fits(value, default):
        return f"must be {type(default).__name__}, found {shortened(repr(value))} ({type(value).__name__})."
    if not _plain(value):
        return f"must be a plain value of YAML, because it identifies the run. Found {type(value).__name__}."
    return None


def _plain(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _fits(value: Any, default: Any) -> bool:
    if default is None or default is inspect.Parameter.empty:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default)) or isinstance(default, (str, list, tuple)) and isinstance(value, list)


def _classes(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isclass(value)]


def _below(base: type) -> set[type]:
    children: set[type] = set(base.__subclasses__())
    return children.union(*(_below(child) for child in children))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
