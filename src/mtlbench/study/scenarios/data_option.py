"""Data option: the same runs under several values of one option of the data, such as how streams are mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtlbench.errors import SuiteError, unknown_name
from mtlbench.runs.plan import Case
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import Fault, Scenario, Scope, is_count


@dataclass(frozen=True)
class DataOption(Scenario):
    """What a choice about the data is worth to each method.

    Inputs and tasks must keep their form: the value may change which samples a step sees, not what a network reads.

    Attributes:
        task: The task whose score is shown; ``""`` for the mean over all tasks.
        option: Name of an option of the data module.
        values: At least two values of the option. Without ``task``, the first one is what others are compared with.
        examples: Training samples that keep their label of ``task``; None for all.
    """

    task: str = ""
    option: str = ""
    values: Sequence[Any] = ()
    examples: int | None = None

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        if self.task:
            yield from super().faults(scope)
        if not isinstance(self.option, str) or not self.option:
            yield "option", f"option names an option of the data module. Found {self.option!r}."
        if not isinstance(self.values, (list, tuple)) or len(self.values) < 2:
            yield "values", f"values must be a list of at least two values of the option; found {self.values!r}."
        elif len(set(self._columns)) < len(self.values):
            yield "values", f"values must be distinct; found {self.values!r}."

        if self.examples is not None and not (self.task and is_count(self.examples)):
            found = f"found {self.examples!r}" + ("" if self.task else " and no task")
            yield "examples", f"examples must be a whole number of at least 1 for the option task, or null; {found}."

    def images_needed(self) -> int:
        """Returns the number of labelled samples; 0 for all."""
        return self.examples or 0

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields one case per value.

        Raises:
            SuiteError: The data module lacks the option, or tasks depend on its value.
        """
        self._check(spec)
        for value, name in zip(self.values, self._columns, strict=True):
            options = {**spec.data["options"], self.option: value}
            changed = replace(spec, data={**spec.data, "options": options})
            labels = {self.task: {"count": self.examples}} if self.examples and self.task in spec.tasks else {}
            yield Case(changed.with_labels(labels) if labels else changed, name)

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the score of the task, or the mean drop of all tasks against the first value."""
        if self.task:
            text = f"the score of {self.task} under each value of the data's option {self.option}"
            text += f"; the task keeps {self.examples} labels" if self.examples else ""
            found = {"columns": self._columns, "target": self.task, "text": text}
            return {**found, "difference": "second − first"} if len(self.values) == 2 else found
        first, *others = self._columns
        return {
            "columns": others,
            "base": first,
            "ignored": [],
            "text": f"the data's option {self.option} has another value; drop: the mean relative loss of all tasks, "
            f"each against the same method with {first}",
        }

    @property
    def _columns(self) -> list[str]:
        return [f"{self.option}={value if isinstance(value, str) else json.dumps(value)}" for value in self.values]

    def _check(self, spec: RunSpec) -> None:
        from mtlbench import registry

        module = registry.load(spec.data["module"])
        known = registry.arguments_of(module)
        if self.option not in known:
            raise SuiteError("scenario.option: " + unknown_name(f"option of {spec.data['module']}", self.option, known))
        given, wanted = spec.data["options"], ", ".join(spec.tasks)
        pairs = zip(self._columns, self.values, strict=True)
        forms = {name: sorted(module.tasks_of({**given, self.option: value})) for name, value in pairs}
        if any(not set(spec.tasks) <= set(found) for found in forms.values()):
            raise SuiteError(f"scenario.option: every value must keep the tasks {wanted}. Found {forms}.")
