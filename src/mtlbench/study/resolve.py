"""A study: a suite resolved against data, methods and versions, ready to run.

`resolve` imports methods and data modules, and so torch. Its result is stored under a key over everything that it
read, so that `mtlbench.study.record.recall` answers an unchanged study from files alone.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtlbench import __version__
from mtlbench.errors import DataError, SuiteError, foreign_code
from mtlbench.runs.plan import Case
from mtlbench.runs.spec import RunSpec
from mtlbench.study import costs
from mtlbench.study.cases import cases_of, is_floor, specs_of
from mtlbench.study.scenarios import Scenario
from mtlbench.study.search import search_of
from mtlbench.study.validation import Examined, Place, examine
from mtlbench.suite import ModelSection, Suite
from mtlbench.suite.schema import YOUNGER, OptimiserSection


@dataclass(frozen=True)
class Local:
    """Choices of the user that do not change a result.

    Attributes:
        data: Folder of the data (``DATA=``), or None for the suite's own.
        devices: Devices per run (``DEVICES=``).
        results: ``results/<suite>``, where measured costs are, or None.
    """

    data: str | None = None
    devices: int = 1
    results: str | None = None


@dataclass
class Study:
    """Everything the bench needs: the record for the report, and one case per method, seed and condition.

    Attributes:
        record: What the report reads.
        cases: What is trained.
        doubts: Warnings for the user, one sentence or more each.
        specs: The runs of methods and seeds before a scenario changes them.
    """

    record: dict[str, Any]
    cases: list[Case] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    specs: list[RunSpec] = field(default_factory=list)

    @property
    def members(self) -> list[RunSpec]:
        """The last run of every case, without its warm start, which is decided when the earlier run is done."""
        return [case.spec for case in self.cases]


def key_of(suite: Suite, local: Local) -> str:
    """Returns a key over suite, overrides, data, package and method sources, without importing any of them."""
    sha = hashlib.sha256()
    parts = [asdict(suite), local.data, __version__, [*_sources(suite)], _walk(root_of(suite, local))]
    if suite.trainer.budget.unit != "steps" and local.results:
        parts.append(costs.read(Path(local.results)))
    sha.update(json.dumps(parts, sort_keys=True).encode())
    return sha.hexdigest()[:16]


def root_of(suite: Suite, local: Local) -> str | None:
    """Returns the data folder: ``DATA=``, else the suite's own, else ``data/<suite>`` where that exists."""
    chosen = local.data or suite.data.root
    default = Path("data") / suite.name
    return chosen or (str(default) if default.is_dir() else None)


def resolve(suite: Suite, local: Local, overrides: list[str], place: Place = lambda key: key) -> Study:
    """Check a suite against data module, methods and encoder, and write out every run with its defaults.

    Args:
        suite: The suite with all overrides.
        local: Choices that do not change a result.
        overrides: As the user wrote them, for the record.
        place: Returns where a key was given, for messages.

    Raises:
        SuiteError: With every fault found.
        DataError: If data is absent, with how to obtain it.
    """
    found = examine(suite, local.devices, place)
    if found.faults or found.module is None:
        raise SuiteError("\n".join(found.faults))
    module, tasks = found.module, dict(found.tasks)
    root = root_of(suite, local)
    data = _open_data(suite, module, tasks, root)
    removed = _drop_absent(data, tasks)
    _check_counts(suite, data, place)
    scenario = _checked_scenario(found, data, tasks)
    shared, sizes = _shared_parts(suite, local, data, tasks, root), data.input_sizes()

    def parts(model: ModelSection) -> dict[str, Any]:
        return _with_model(shared, model, sizes)

    budget = suite.trainer.budget
    every = specs_of(suite, found.methods, parts)
    specs = [spec for spec in every if not is_floor(spec)]
    reference = costs.reference_of(specs or every, budget.of)
    keys = {spec.label: costs.key_of(spec, reference) for spec in specs}
    specs, shown = costs.with_budget(specs, budget.unit, budget.of, Path(local.results) if local.results else None)
    search = search_of(suite, specs, parts(suite.model), tasks, {entry.label: entry.given for entry in found.methods})
    budgeted = iter(specs)
    cases = cases_of([spec if is_floor(spec) else next(budgeted) for spec in every], tasks, scenario, search)
    for case in cases:
        data.check_rules(case.spec.data.get("labels", {}))
    record = _record(suite, local, data, tasks, removed, overrides, cases)
    record["cost_keys"] = keys
    if shown:
        record["budget"] = shown
    if search:
        record |= {"tuning": (tuning := search.described()), "search": tuning["text"]}
    if scenario:
        record["scenario"] = {**suite.scenario, **scenario.described()}
    return Study(record, cases, [doubt] if (doubt := data.unidentified()) else [], specs)


def _checked_scenario(found: Examined, data: Any, tasks: Mapping[str, Any]) -> Scenario | None:
    """Returns the scenario after checking that the data has its task and as many images as it asks for.

    Raises:
        DataError: If not.
    """
    scenario = found.scenario
    if scenario is None:
        return None
    if scenario.task and scenario.task not in tasks:
        raise DataError(f"A scenario needs the data of its task. {scenario.task}: absent in {data.root}.")
    needed = scenario.images_needed()
    if needed and needed > (size := len(data.samples("train"))):
        raise DataError(f"A scenario cannot ask for more images than there are: {needed} of {size} training images.")
    return scenario


def _open_data(suite: Suite, module: Any, tasks: Mapping[str, Any], root: str | None) -> Any:
    trainer = suite.trainer
    with foreign_code(f"Opening the data of {suite.data.module}"):
        data = module(
            root,
            tasks=tasks,
            batch_size=trainer.batch_size,
            steps=trainer.steps,
            micro=trainer.accumulate,
            **suite.data.options,
        )
        missing = data.missing()
    if missing:
        raise DataError("\n".join(missing))
    if root is not None and not os.path.isdir(root):  # Of data that reads no folder nothing is missing.
        raise DataError(f"The data folder must exist. There is no {root}. Correct DATA= (--data), or leave it out.")
    return data


def _drop_absent(data: Any, tasks: dict[str, Any]) -> list[dict[str, str]]:
    """Remove optional tasks without any data, here and in the data module; other tasks without data are an error."""
    absent = data.absent_tasks() & set(tasks)
    required = [name for name in absent if not tasks[name].optional]
    if required:
        raise DataError(
            f"A task needs data. {', '.join(sorted(required))}: absent in {data.root}. "
            "Get it, or mark the task optional (tasks.<name>.optional=true)."
        )
    for name in absent:
        del tasks[name]
    data.tasks = dict(tasks)
    return [{"task": name, "reason": f"optional, and absent in {data.root}"} for name in sorted(absent)]


def _check_counts(suite: Suite, data: Any, place: Place) -> None:
    """Refuse empty splits and a batch larger than the training set, if the data module knows its sizes.

    Raises:
        DataError: If a split is empty.
        SuiteError: If the batch is too large.
    """
    counts = {split: data.sample_count(split) for split in data.SPLITS}
    empty = [split for split, count in counts.items() if count is not None and count < 1]
    if empty:
        raise DataError(
            f"Every split needs at least one sample. {', '.join(empty)} of {suite.data.module} "
            f"{'have' if len(empty) > 1 else 'has'} none. Change data.options, or the lists of the splits."
        )
    size = counts.get("train")
    if size is not None and suite.trainer.batch_size > size:
        raise SuiteError(
            f"{place('trainer.batch_size')}: A batch is drawn without repetition, so trainer.batch_size is at most the "
            f"size of the training set. Found {suite.trainer.batch_size} of {size} samples. Lower it."
        )


def _shared_parts(suite: Suite, local: Local, data: Any, tasks: Mapping[str, Any], root: str | None) -> dict[str, Any]:
    trainer = asdict(suite.trainer)
    own = (
        "checkpoint_every", "log_every", "diagnose_every", "workers", "examples", "surgery", "compile",
        "gradient_checkpointing", "strategy",
    )  # fmt: skip
    module = type(data)
    read_from = {name: value for name, value in suite.data.options.items() if name in module.PLACES}
    places = {"data": _plain(read_from)} if read_from else {}
    return {
        "tasks": {name: _plain(task.describe()) for name, task in tasks.items()},
        "data": _plain(
            {
                "module": suite.data.module,
                "version": module.VERSION,
                "options": module.identity_options(suite.data.options),
                "fingerprint": data.fingerprint(),
            }
        ),
        "optimiser": _used(asdict(suite.optimiser), OptimiserSection()),
        "trainer": {
            **{key: value for key, value in trainer.items() if key not in (*own, "budget")},
            "selection": suite.selection,
            "protocol": suite.protocol,
            "suite_version": suite.version,
        },
        "local": {**{key: trainer[key] for key in own}, "root": root, "devices": local.devices, **places},
    }


def _used(section: dict[str, Any], defaults: Any) -> dict[str, Any]:
    """Returns a section without those keys that are younger than stored runs and have no effect at their default."""
    return {key: value for key, value in section.items() if key not in YOUNGER or value != getattr(defaults, key)}


def _with_model(shared: Mapping[str, Any], model: ModelSection, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns the parts of a run with its model and the sizes of its inputs.

    The content of the weights is identity; their path is local.
    """
    from mtlbench.networks.families import family_of

    name, used = model.encoder.rpartition(":")[2], _used(asdict(model), ModelSection())
    identity = {**used, "weights": family_of(model.encoder).weights_identity(name, model.weights)}
    if sizes:
        identity["inputs"] = dict(sizes)
    if not model.image_size:
        del identity["image_size"]
    return {**shared, "model": _plain(identity), "local": {**shared["local"], "weights": model.weights}}


def _record(
    suite: Suite,
    local: Local,
    data: Any,
    tasks: Mapping[str, Any],
    removed: list[dict[str, str]],
    overrides: list[str],
    cases: list[Case],
) -> dict[str, Any]:
    commit, dirty = _commit()
    described = {
        name: {
            **_plain(task.describe()),
            "in_delta_m": task.in_delta_m,
            "class_names": list(getattr(task, "class_names", ())),
            "best": task.protocols[0].attainable,
            "floor": task.blind() is not None,
        }
        for name, task in tasks.items()
    }
    return {
        "format": 1,
        "key": key_of(suite, local),
        "suite": suite.name,
        "version": suite.version,
        "title": suite.title,
        "overrides": overrides,
        "baseline": suite.baseline,
        "selection": suite.selection,
        "split": data.SPLITS[-1],
        "named": list(suite.named),
        "search": "none: methods ran with their declared defaults; no tuning",
        "seeds": list(suite.seeds),
        "confirm": list(suite.confirm),
        "tasks": described,
        "removed": removed,
        "encoders": list(dict.fromkeys(_encoder(case.spec) for case in cases if not is_floor(case.spec))),
        "rows": [
            {
                "label": case.spec.label,
                "method": case.spec.method["name"],
                "seed": case.spec.seed,
                **({"condition": case.condition} if case.condition else {}),
                "runs": [],
                "serving": {},
            }
            for case in cases
        ],
        "commit": commit,
        "dirty": dirty,
        "package": __version__,
        "data": f"{suite.data.module}, fingerprint {data.fingerprint() or 'none'}",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def _encoder(spec: RunSpec) -> str:
    return f"{spec.model['encoder']}, weights: {spec.model['weights']}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _commit() -> tuple[str | None, bool]:
    """Return the commit of mtlbench's own checkout and whether it has changes; (None, False) if it was installed.

    The repository of the current folder is the user's, and an environment may lie inside it: neither says which
    mtlbench ran. Only an editable installation has a commit; others have the version of the package.
    """
    package = Path(__file__).resolve().parents[1]
    # A hook of the user's repository sets GIT_DIR, which would answer for that repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True, env=environment
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "mtlbench" != package:
            return None, False
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "--short", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return None, False


def _sources(suite: Suite) -> Iterator[str]:
    """Yields a hash of every source file that may decide a result: the package, data modules, the user's own."""
    package = Path(__file__).parents[1]
    entries = [{"name": m} if isinstance(m, str) else m for m in suite.methods]
    rules = [m["balancer"] for m in entries if m.get("balancer")]
    entries += [{"name": rule} if isinstance(rule, str) else rule for rule in rules]
    names = [suite.data.module, *(str(entry["name"]) for entry in entries)]
    places: list[Any] = [package, *importlib.import_module("mtlbench.data_modules").__path__]
    files = {path for place in places for path in Path(place).rglob("*.py")}
    for name in names:
        if ":" in name:
            files |= _files_of(name.partition(":")[0])
    for path in sorted(files):
        yield hashlib.sha256(path.read_bytes()).hexdigest()


def _files_of(module: str) -> set[Path]:
    """Returns the sources of a module's top-level package, or of the module, without importing them."""
    top = module.partition(".")[0]
    here = Path.cwd() / f"{top}.py"
    if os.path.isfile(here):
        return {here}
    # The current folder is importable once a module is loaded from it, which the key is made before.
    places = [str(Path.cwd() / top)]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec and spec.submodule_search_locations:
        places += spec.submodule_search_locations
    elif spec and spec.origin and spec.has_location:  # What is built into the interpreter has no file.
        return {Path(spec.origin)}
    return {path.resolve() for place in places if os.path.isdir(place) for path in Path(place).rglob("*.py")}


def _walk(root: str | None) -> str:
    """Return a hash over names and sizes of all files of the data folder, which is cheap to compute."""
    if root is None:
        return ""
    sha = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            size = os.path.getsize(path) if os.path.exists(path) else -1  # A dead link, or a file that just vanished.
            sha.update(f"{os.path.relpath(folder, root)}/{name}:{size}\n".encode())
    return sha.hexdigest()
