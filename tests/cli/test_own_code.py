"""Methods and data modules of a user that are at fault: a line with the form or the place, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench import registry
from mtlbench.errors import ExitCode
from tests.support.command_line import SMALL, mtlbench

OWN = """
import torch
from mtlbench import Balancer, MTLMethod
from mtlbench.data_modules.digits import Digits

class Wide(MTLMethod):
    def __init__(self, width=16, **common):
        super().__init__(**common)

class NoSpec(MTLMethod):
    def __init__(self):
        super().__init__(None)

class Positional(MTLMethod):
    def __init__(self, spec, width=16, /):
        super().__init__(spec)

class Needs(MTLMethod):
    def __init__(self, spec, *, width):
        super().__init__(spec)

class Unplain(MTLMethod):
    def __init__(self, spec, *, scale=torch.ones(2)):
        super().__init__(spec)

class Falls(MTLMethod):
    def __init__(self, spec, *, width=16):
        super().__init__(spec)
        self.rows = self.columns

class NoNetwork(MTLMethod):
    def build_network(self):
        return 1 / 0

class WrongNetwork(MTLMethod):
    def build_network(self):
        return "a network"

class NoPlan(MTLMethod):
    @classmethod
    def plan(cls, spec):
        return spec.no_such_thing

class LatePlan(MTLMethod):
    @classmethod
    def plan(cls, spec):
        yield [spec.no_such_thing]

class Rule(Balancer):
    def __init__(self, strength, /):
        super().__init__()

class FallingRule(Balancer):
    def __init__(self, *, strength=1.0):
        super().__init__()
        raise ValueError("no strength")

class Good(MTLMethod):
    def __init__(self, spec, *, width=16, **more):
        super().__init__(spec, **more)

class NoOptions(Digits):
    def __init__(self, root=None):
        super().__init__(root)

class FallingData(Digits):
    def __init__(self, root=None, **common):
        super().__init__(root, **common)
        raise KeyError("pictures")
"""
SPEC_FORM = "`__init__(self, spec, *, name=default, ...)`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of a user, and the results of a bench with one finished run."""
    place = tmp_path_factory.mktemp("own")
    (place / "own.py").write_text(OWN)
    (place / "unclosed.py").write_text("def f(:\n")
    (place / "leaves.py").write_text("import sys\nsys.exit(7)\n")
    (place / "lacks.py").write_text("from mtlbench import Nothing\n")
    answer = mtlbench(place, "run", "digits", "--method", "uniform", *SMALL, "trainer.steps=1")
    assert answer.code == ExitCode.DONE, answer.text
    return place


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("own:Wide", [SPEC_FORM, "Wide.__init__(self, width=16, **common)", "`super().__init__(spec)`"]),
        ("own:NoSpec", [SPEC_FORM, "NoSpec.__init__(self)"]),
        ("own:Positional", [SPEC_FORM, "Positional.__init__(self, spec, width=16, /)"]),
        ("own:Needs", ["width has no default", "write width: VALUE"]),
        ("own:Unplain", ["scale must be a plain value", "Tensor"]),
        ("own:Falls", ["Building the method raised AttributeError", "'columns'", "(own.py:"]),
        ("own:NoNetwork", ["Building the network of NoNetwork raised ZeroDivisionError", "(own.py:"]),
        ("own:WrongNetwork", ["Building the network of WrongNetwork raised", "'str'"]),
        ("own:NoPlan", ["The plan of NoPlan raised AttributeError", "no_such_thing", "(own.py:"]),
        ("own:LatePlan", ["LatePlan: AttributeError in the plan", "no_such_thing", "(own.py:"]),
        ("own:Rule", ["`__init__(self, *, name=default, ...)`", "Rule.__init__(self, strength, /)"]),
        ("own:FallingRule", ["Building FallingRule raised ValueError: no strength (own.py:"]),
        ("unclosed:A", ["Importing unclosed raised SyntaxError", "unclosed.py, line 1"]),
        ("leaves:A", ["Importing leaves raised SystemExit: 7 (leaves.py:2)"]),
        ("lacks:A", ["Importing lacks raised ImportError", "(lacks.py:1)"]),
    ],
)
def test_a_method_at_fault_is_one_line_and_nothing_is_lost(name: str, facts: list[str], folder: Path) -> None:
    (done,) = folder.glob("results/digits/*/result.json")
    answer = mtlbench(folder, "bench", "digits", f"methods=[uniform, '{name}']", *SMALL, "trainer.steps=1")
    assert answer.code == ExitCode.REFUSED and "Traceback" not in answer.text
    assert [fact for fact in facts if fact not in answer.text] == [], answer.text
    assert len([line for line in answer.text.splitlines() if line.startswith("mtlbench: ")]) == 1
    assert list(folder.glob("results/digits/*/result.json")) == [done]


@pytest.mark.parametrize(
    ("module", "facts"),
    [
        ("own:NoOptions", ["`__init__(self, root, *, name=default, ...)`", "`super().__init__(root, **common)`"]),
        ("own:FallingData", ["Opening the data of own:FallingData raised KeyError: 'pictures' (own.py:"]),
        ("unclosed:A", ["Importing unclosed raised SyntaxError"]),
    ],
)
@pytest.mark.parametrize("command", ["bench", "data"])
def test_a_data_module_at_fault_is_one_line(command: str, module: str, facts: list[str], folder: Path) -> None:
    answer = mtlbench(folder, command, "digits", f"data.module={module}", "--set", "seeds=[0]")
    assert answer.code == ExitCode.REFUSED and "Traceback" not in answer.text
    assert [fact for fact in facts if fact not in answer.text] == [], answer.text


def test_the_contract_check_names_the_form(folder: Path) -> None:
    answer = mtlbench(folder, "check", "own:Wide")
    assert answer.code == ExitCode.REFUSED and SPEC_FORM in answer.text, answer.text


def test_a_value_for_a_hyper_parameter_without_default_is_enough(folder: Path) -> None:
    words = ("bench", "digits", "--dry", "methods=[{name: 'own:Needs', width: 3}, 'own:Good']")
    assert mtlbench(folder, *words).code == ExitCode.DONE


def test_every_shipped_method_has_the_form() -> None:
    for name in registry.shipped():
        registry.record(name)
