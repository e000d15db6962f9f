"""Checks names and values of a suite against the data module, tasks, methods, encoder and optimiser that exist.

Imports methods and data modules, and so torch, when called. Collects every fault with the place of its key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mtlbench import registry
from mtlbench.errors import MethodError, MtlbenchError, SuiteError, foreign_code, unknown_name
from mtlbench.runs.spec import RunSpec
from mtlbench.study import scenarios, search
from mtlbench.study.costs import UNITS
from mtlbench.study.scenarios import Scenario, Scope
from mtlbench.suite import ModelSection, Suite, changed_section, takes_images

Place = Callable[[str], str]
"""Returns where a dotted key was given: ``file:line``, an override, or the key itself."""

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")

STRATEGIES = ("ddp", "fsdp")


TUNED_WEIGHTS = "tuned_weights"
"""Label of the row of fixed weights that a search adds to a table."""


@dataclass(frozen=True)
class MethodEntry:
    """One line of ``methods``.

    Attributes:
        label: Row of the leaderboard.
        record: ``name``, ``path``, ``version``, ``arguments`` with defaults, ``balancer``.
        model: The suite's model with the changes of this line.
        given: Hyper-parameters that the line itself gives; a search leaves them alone.
    """

    label: str
    record: dict[str, Any]
    model: ModelSection
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Examined:
    """The valid parts of a suite, and its faults.

    Attributes:
        module: Class of the data module, or None.
        tasks: Tasks by name with the suite's changes.
        methods: Every method.
        faults: Every fault with its place.
        scenario: What varies besides method and seed, or None.
    """

    module: Any
    tasks: Mapping[str, Any]
    methods: list[MethodEntry]
    faults: list[str]
    scenario: Scenario | None = None


def examine(suite: Suite, devices: int, place: Place) -> Examined:
    """Look up everything that a suite names.

    Args:
        suite: The suite; entries of ``methods`` without a name are skipped: the reader has reported them.
        devices: Devices per run.
        place: Returns where a key was given.
    """
    faults = _Faults(place)
    module = faults.catch("data.module", lambda: _data_module(suite.data.module))
    tasks = _tasks(suite, module, faults) if module else {}
    for option, value in suite.data.options.items() if module else ():
        faults.catch(f"data.options.{option}", lambda o=option, v=value: check_option(o, v, module))  # type: ignore[misc]
    if module:
        faults.catch("model.encoder", lambda: _check_inputs(suite, module))
    methods = [
        faults.catch(f"methods.{index}", lambda entry=entry: _method_entry(entry, suite, len(tasks), devices))  # type: ignore[misc]
        for index, entry in enumerate(suite.methods)
        if isinstance(entry, str) or isinstance(entry, dict) and isinstance(entry.get("name"), str)
    ]
    for key, check in _training_checks(suite, devices).items():
        faults.catch(key, check)
    if suite.search.trials > 0 and module:
        faults.catch("search", lambda: search.check(module.SPLITS, suite.data.module))
        methods.append(faults.catch("search", lambda: _tuned_weights(methods, suite, len(tasks), devices)))
    known = [found for found in methods if found]
    scenario = _scenario(suite, module, list(tasks), [entry.label for entry in known], faults) if tasks else None
    return Examined(module, tasks, known, faults.found, scenario)


def check_run(spec: RunSpec) -> None:
    """Check that a run's rule fits its tasks and its network, before it is started.

    Raises:
        MethodError: If the rule cannot be made for so many tasks, or looks at a part that the network does not have.
    """
    from mtlbench.balancing.base import overrides
    from mtlbench.method import MethodSpec, MTLMethod
    from mtlbench.networks.families import family_of
    from mtlbench.networks.family import Model
    from mtlbench.training.build import build_method, build_tasks, data_class

    tasks = build_tasks(spec, data_class(spec.data["module"]))
    try:
        with foreign_code("Building the method"):
            method = build_method(spec.method, MethodSpec(tasks, {**spec.model, "weights": None}, spec.optimiser))
    except MethodError as error:
        raise MethodError(f"{spec.label}, on {', '.join(tasks)}: {error}") from error
    own = any(overrides(method, MTLMethod, hook) for hook in ("build_network", "configure_model"))
    looks = method.balancer.view != "parameters"
    if own or looks:  # Refused now, not after the runs that its plan trains first.
        with foreign_code(f"Building the network of {spec.label}"):
            method.configure_model()
    if not looks:
        return
    model = Model(**{**spec.model, "weights": None})
    with foreign_code(f"Predicting with the network of {spec.label}"):
        outputs = method.network.eval()(family_of(model.encoder).example(model), list(tasks))
    for fault in method.update.view_refusals([outputs.representation]):
        raise MethodError(f"{spec.label}: {fault}")


class _Faults:
    """Collects faults, each with the place of the key that it concerns."""

    def __init__(self, place: Place):
        self.place = place
        self.found: list[str] = []

    def catch(self, key: str, action: Callable[[], Any]) -> Any:
        """Returns what the action returns, or None if it finds a fault."""
        try:
            return action()
        except MtlbenchError as error:
            self.found += [f"{self.place(key)}: {line[:2000]}" for line in str(error).splitlines()]
            return None


def _data_module(path: str) -> Any:
    from mtlbench.training.build import data_class

    return data_class(path)


def _check_inputs(suite: Suite, module: Any) -> None:
    """Refuses an encoder that does not take the inputs of the data module."""
    from mtlbench.networks.families import FAMILIES, family_of

    kind = module.inputs_kind(suite.data.options)
    if (takes := family_of(suite.model.encoder).takes) != kind:
        others = [f"{name}:..." for name, family in FAMILIES.items() if family.takes == kind]
        raise SuiteError(
            f"model.encoder must take the inputs of the data. {suite.model.encoder} takes {takes}, and "
            f"{suite.data.module} has {kind}. Choose {' or '.join(others) or 'other data'}."
        )


def _tasks(suite: Suite, module: Any, faults: _Faults) -> dict[str, Any]:
    known = faults.catch("data.options", lambda: module.tasks_of(suite.data.options)) or {}
    for name in suite.tasks if known else ():
        if name not in known:
            faults.found.append(f"{faults.place(f'tasks.{name}')}: " + unknown_name("task", name, known))
    chosen = {name: section for name, section in suite.tasks.items() if name in known}
    names = chosen or dict.fromkeys(known)
    tasks = {}
    for name in names:
        section = chosen.get(name)
        changes: dict[str, Any] = {"optional": section.optional} if section else {}
        if section and section.scale is not None:
            changes["scale"] = section.scale
        tasks[name] = known[name].with_options(**changes)
    return tasks


def _scenario(suite: Suite, module: Any, tasks: list[str], labels: list[str], faults: _Faults) -> Scenario | None:
    if not suite.scenario:
        return None
    # Methods that were not chosen this time (METHODS=) are known too.
    scope = Scope(tasks, [*labels, *registry.names()], module.SPLITS)
    scenario, found = scenarios.read(suite.scenario, scope)
    faults.found += [f"{faults.place(f'scenario.{key}'.rstrip('.'))}: {text}" for key, text in found]
    return scenario


def _method_entry(entry: Any, suite: Suite, tasks: int, devices: int) -> MethodEntry:
    """Return one line of ``methods``; build its balancer once, to see that it can be built."""
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    changes = options.pop("model", None)
    model = _changed_model(suite.model, {} if changes is None else changes)
    name, label, balancer = options.pop("name"), options.pop("label", None), options.pop("balancer", None)
    record, given = registry.record(name, **options), {f"method.{key}" for key in options}
    if balancer is not None:
        own = dict(balancer) if isinstance(balancer, Mapping) else {"name": balancer}
        rule = own.pop("name", None)
        if not isinstance(rule, str):
            raise SuiteError(
                f"balancer must be a name, or a mapping with a name and its arguments. Found {balancer!r}."
            )
        record["balancer"] = registry.record(rule, **own)
        given |= {f"balancer.{key}" for key in own}
        _check_pair(record)
    _check_balancer(record, suite, tasks, devices)
    if suite.selection == "best" and getattr(registry.find(record["path"]), "PHASES", False):
        raise SuiteError(
            f"{name} is trained in phases, and only their end is a result. The suite has selection: best, which may "
            "keep an earlier step. Set selection: last."
        )
    _check_family(record, model)
    short = record["name"] if balancer is None else f"{record['name']}+{record['balancer']['name']}"
    return MethodEntry(str(label or short), record, model, frozenset(given))


def _check_family(record: Mapping[str, Any], model: ModelSection) -> None:
    """Refuses a method whose network cannot be built on the encoder's family."""
    from mtlbench.networks.families import family_of

    family = family_of(model.encoder).name
    allowed = getattr(registry.find(record["path"]), "ENCODERS", ())
    if allowed and family not in allowed:
        raise SuiteError(
            f"{record['name']} needs an encoder of the family {' or '.join(allowed)}. Found {model.encoder}, of the "
            f"family {family}. Leave the method out."
        )


def _tuned_weights(
    methods: Collection[MethodEntry | None], suite: Suite, tasks: int, devices: int
) -> MethodEntry | None:
    """Returns the row of tuned fixed weights, which no tuned table lacks; None if the suite has one itself."""
    if any(m and m.record["name"] == "fixed" and "method.weights" not in m.given for m in methods):
        return None
    if any(m and m.label == TUNED_WEIGHTS for m in methods):
        raise SuiteError(
            f"A tuned table has a row of fixed weights that are searched, and its label is {TUNED_WEIGHTS}. Another "
            "entry of methods has this label. Give that one another label."
        )
    return _method_entry({"name": "fixed", "label": TUNED_WEIGHTS}, suite, tasks, devices)


def _changed_model(model: ModelSection, changes: Any) -> ModelSection:
    """Returns the suite's model with the changes of one method; encoder options are added to the suite's."""
    from mtlbench.networks.families import family_of

    if not isinstance(changes, Mapping):
        raise SuiteError(f"model of a method maps keys of the suite's model section to values; found {changes!r}.")
    if not changes:
        return model
    known = {field.name for field in fields(ModelSection)} - {"image_size"}
    faults = [unknown_name("key of a method's model", str(key), known) for key in changes if key not in known]
    if faults:
        raise SuiteError("\n".join(faults))
    changed = changed_section(model, changes)
    family = family_of(changed.encoder)
    if takes_images(changed.encoder) != takes_images(model.encoder):
        raise SuiteError(
            f"All methods of a suite take the same inputs. Its encoder is {model.encoder}, and this method has "
            f"{changed.encoder}. Choose another of its family."
        )
    name = changed.encoder.rpartition(":")[2]
    if changed.encoder != model.encoder:
        family.check_encoder(name)
    family.check_options(name, changed.encoder_options)
    return changed


def _check_pair(record: Mapping[str, Any]) -> None:
    """Refuses a balancer on a method that balances by itself, and one that is no balancer."""
    from mtlbench.balancing import Balancer
    from mtlbench.balancing.base import BALANCING_HOOKS
    from mtlbench.method import MTLMethod

    method: Any = registry.find(record["path"])
    balancer = registry.find(record["balancer"]["path"])
    if not issubclass(balancer, Balancer):
        raise SuiteError(f"balancer: {record['balancer']['name']!r} is a method, not a balancer.")
    if not issubclass(method, MTLMethod):
        raise SuiteError(f"{record['name']} is a balancer itself and cannot take {record['balancer']['name']} too.")
    own = [hook for hook in BALANCING_HOOKS if getattr(method, hook) is not getattr(MTLMethod, hook)]
    if own:
        raise SuiteError(f"{record['name']} overrides {', '.join(own)} and cannot take a balancer too. Drop one.")


def _check_balancer(record: Mapping[str, Any], suite: Suite, tasks: int, devices: int) -> None:
    """Refuses a balancer whose arguments are out of range, or that cannot work with the suite's trainer."""
    from mtlbench.balancing import Balancer
    from mtlbench.balancing.base import overrides
    from mtlbench.balancing.gradients.update import needs_of, refusals
    from mtlbench.data import check_division

    entry = record.get("balancer") or record
    cls: Any = registry.find(entry["path"])
    if not issubclass(cls, Balancer):
        return
    trainer = suite.trainer
    with foreign_code(f"Building {entry['name']}"):
        balancer = cls(**entry["arguments"])
    needs = needs_of(lambda hook: overrides(balancer, Balancer, hook), balancer)
    if tasks:  # None if the data module is at fault.
        with foreign_code(f"Configuring {entry['name']}"):
            balancer.configure(tasks)
    if needs.batches > 1:
        check_division(trainer.batch_size, devices, trainer.accumulate, needs.batches)
    faults = list(refusals(needs.chosen(trainer.surgery), trainer.accumulate))
    if needs.view == "representation" and trainer.compile:
        faults.append("A compiled network hides its representation: trainer.compile must be empty.")
    if needs.hook is not None and trainer.strategy == "fsdp" and devices > 1:
        faults.append("A gradient rule needs whole gradients on every rank. Set trainer.strategy=ddp, or leave it out.")
    if faults:
        raise SuiteError("\n".join(f"{entry['name']}: {fault}" for fault in faults))


def check_option(option: str, value: Any, module: Any) -> None:
    """Check one of ``data.options`` against the constructor of a data module.

    Raises:
        SuiteError: If the module has no such option, or the value has another type than its default.
    """
    from mtlbench.data import MTLDataModule

    for today, old in module.RENAMED.items():
        if option == old:
            raise SuiteError(f"The option {old} is called {today} now. Write data.options.{today} instead.")
    known = registry.arguments_of(module)
    _known("option", option, known.keys() - registry.arguments_of(MTLDataModule))
    if fault := registry.value_fault(value, known[option].default):
        raise SuiteError(f"data.options.{option} {fault}")


def _training_checks(suite: Suite, devices: int) -> dict[str, Callable[[], None]]:
    """Returns the checks of model, optimiser and trainer by the key that they concern."""
    from mtlbench.balancing.gradients.update import WAYS
    from mtlbench.data import check_division
    from mtlbench.method.optimisers import OPTIMISERS, SCHEDULES
    from mtlbench.networks.decoder import UPSAMPLING
    from mtlbench.networks.families import family_of

    trainer, optimiser = suite.trainer, suite.optimiser

    def best_needs_evaluation() -> None:
        if suite.selection == "best" and not trainer.evaluate_every:
            raise SuiteError("selection: best needs evaluations during training: set trainer.evaluate_every.")

    def shards_are_not_diagnosed() -> None:
        if trainer.strategy == "fsdp" and devices > 1 and trainer.diagnose_every:
            raise SuiteError(
                "Gradient conflict is measured on whole gradients, which trainer.strategy=fsdp does not have. Found "
                f"trainer.diagnose_every={trainer.diagnose_every}. Set it to 0."
            )

    name = suite.model.encoder.rpartition(":")[2]

    def encoder_takes_options() -> None:
        family_of(suite.model.encoder).check_options(name, suite.model.encoder_options)

    def budget_is_known() -> None:
        _known("unit of trainer.budget", trainer.budget.unit, UNITS)
        if trainer.budget.of not in _labels(suite):
            registry.find(trainer.budget.of)

    return {
        "trainer.budget": budget_is_known,
        "model.encoder": lambda: family_of(suite.model.encoder).check_encoder(name),
        "model.encoder_options": encoder_takes_options,
        "model.upsampling": lambda: _known("upsampling", suite.model.upsampling, UPSAMPLING),
        "optimiser.name": lambda: _known("optimiser", optimiser.name, OPTIMISERS),
        "optimiser.schedule": lambda: _known("schedule", optimiser.schedule, SCHEDULES),
        "trainer.surgery": lambda: _known("way of surgery", trainer.surgery, WAYS),
        "trainer.compile": lambda: _check_backend(trainer.compile),
        "trainer.strategy": lambda: _known("strategy", trainer.strategy, STRATEGIES),
        "trainer.diagnose_every": shards_are_not_diagnosed,
        "trainer.precision": lambda: _known("precision", trainer.precision, PRECISIONS),
        "trainer.batch_size": lambda: check_division(trainer.batch_size, devices, trainer.accumulate),
        "selection": best_needs_evaluation,
    }


def _labels(suite: Suite) -> set[str]:
    return {str(m if isinstance(m, str) else m.get("label") or m.get("name")) for m in suite.methods}


def _check_backend(name: str) -> None:
    import torch

    if name:
        _known("backend of torch.compile", name, torch._dynamo.list_backends(exclude_tags=()))


def _known(what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise SuiteError(unknown_name(what, name, names))
