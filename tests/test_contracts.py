"""Every shipped method, data module and suite keeps the contract, and the checks notice who does not."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from pathlib import Path

import pytest
import torch

from mtlbench import registry, suite
from mtlbench.data import MTLDataModule
from mtlbench.method import MTLMethod
from mtlbench.runs.plan import Ending
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.study.resolve import Local, resolve
from mtlbench.tasks.inputs import GRAPHS, IMAGES, TOKENS, VECTORS
from mtlbench.testing import TOLERANCE, check_data_module, check_method, contracts, difference, toy_spec, trained
from mtlbench.training.run import train
from tests.support import faults
from tests.support.faults import trained_with
from tests.support.text_encoders import write_encoder

ROOT = Path(__file__).resolve().parents[1]
COMPOSITIONS = [
    ("task_moe", "pcgrad"),
    ("mod_squad", "graddrop"),
    ("mmoe", "mgda_ub"),
    ("mtan", "uncertainty"),
    ("mtlora", "pcgrad"),  # It amplifies rounding, see `TOLERANCE`.
    ("kd_mtl", "mgda_ub"),
]

ON_IMAGES = ["uniform", "pcgrad", "famo", "mgda_ub"]
"""Balancers that are checked on images, too: one of every kind of step. All others see losses and gradients
only, whatever the inputs are."""

ON_VECTORS = ["mmoe", "ple", "maps", "task_moe"]
"""Networks that are not built on feature maps."""


ON_TEXTS = ["pcgrad", "task_moe"]
"""Ranks and micro-batches see texts of different lengths."""


ON_GRAPHS = ["pcgrad", "mmoe"]
"""Ranks and micro-batches see graphs of different sizes."""


def failures(findings):
    return [f"{finding.check}: {finding.detail}" for finding in findings if not finding.ok]


@pytest.mark.parametrize("name", registry.shipped())
def test_method(name, pool):
    findings = check_method(name, pool, inputs=IMAGES if issubclass(registry.find(name), MTLMethod) else VECTORS)
    assert len(findings) == 4 and not failures(findings)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_balancer_on_images(name, pool):
    assert not failures(check_method(name, pool))


@pytest.mark.parametrize("name", ON_VECTORS)
def test_method_on_vectors(name, pool):
    assert not failures(check_method(name, pool, inputs=VECTORS))


@pytest.mark.parametrize("name", ON_TEXTS)
def test_method_on_texts(name, pool):
    assert not failures(check_method(name, pool, inputs=TOKENS))


@pytest.mark.parametrize("name", ON_GRAPHS)
def test_method_on_graphs(name, pool):
    assert not failures(check_method(name, pool, inputs=GRAPHS))


@pytest.mark.parametrize(("name", "balancer"), COMPOSITIONS)
def test_composition(name, balancer, pool):
    assert not failures(check_method(name, pool, balancer=balancer))


# ---- methods that break the contract --------------------------------------------------------------------------------


def test_own_random_numbers_are_noticed(pool):
    assert [text.split(":")[0] for text in failures(check_method("tests.support.faults:OwnDraws", pool))] == [
        "two ranks equal one process"
    ]


def test_own_random_numbers_are_noticed_where_training_amplifies_rounding(pool):
    found = failures(check_method("mtlora", pool, balancer="tests.support.faults:OwnDraws"))
    assert [text.split(":")[0] for text in found] == ["two ranks equal one process"]


def test_only_rounding_is_excused(pool, tmp_path):
    """In one process, a change of the size of rounding grows beyond the difference of two ranks; in `uniform` not."""
    gaps = {}
    for name, balancer, steps in (("mtlora", "pcgrad", 28), ("uniform", None, 12)):
        spec = toy_spec(name, balancer=balancer, local={"regularise": True}, steps=steps)
        one = trained(spec, str(tmp_path / name / "one"))
        near = trained(spec, str(tmp_path / name / "near"), nudge=contracts.ROUNDING)
        two = pool.call(trained, spec, str(tmp_path / name / "two"), world=2)[0]
        gaps[name] = difference(one, near), difference(one, two)
    grown, ranks = gaps["mtlora"]
    assert grown > TOLERANCE and ranks <= contracts.AMPLIFIED * grown < 1e-3
    grown, ranks = gaps["uniform"]
    assert grown < TOLERANCE and ranks < TOLERANCE


def test_forgotten_state_is_noticed(pool):
    assert [text.split(":")[0] for text in failures(check_method("tests.support.faults:Forgetful", pool))] == [
        "stop and resume is bit-identical"
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Weights of PCGrad after eight steps in one process; steps 2 and 3, 6 and 7 lack labels of one task."""
    return trained(toy_spec("pcgrad", steps=8), str(tmp_path_factory.mktemp("straight")))


@pytest.mark.parametrize("name", faults.FAULTS)
def test_wrong_gradients_are_noticed(name, straight, pool, tmp_path):
    two = pool.call(trained_with, name, toy_spec("pcgrad", steps=8), str(tmp_path), world=2)[0]
    gap = difference(straight, two)
    assert gap <= TOLERANCE if name == "none" else gap > 1e-4


def test_zeros_for_absent_heads_are_noticed_without_surgery(pool, tmp_path):
    spec = toy_spec("uniform", steps=8)
    one = trained(spec, str(tmp_path / "one"))
    two = pool.call(trained_with, "zeros for absent heads", spec, str(tmp_path / "two"), world=2)[0]
    assert difference(one, two) > 1e-4


def test_the_regulariser_of_the_check_counts(tmp_path):
    plain = trained(toy_spec("uniform", steps=2), str(tmp_path / "plain"))
    more = trained(toy_spec("uniform", steps=2, local={"regularise": True}), str(tmp_path / "more"))
    assert difference(plain, more) > 1e-4


def test_a_difference_sees_what_is_missing_or_not_finite():
    one = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor(2)}
    assert difference(one, dict(one)) == 0
    assert difference(one, {**one, "a": torch.tensor([1.5, float("nan")])}) == 0.5
    for other in ({**one, "a": torch.ones(2)}, {"a": one["a"]}, {}, None):
        assert difference(one, other) == difference(other, one) == float("inf")


# ---- data modules ---------------------------------------------------------------------------------------------------


DESCRIBED = {f"data_modules.{name}:{name.capitalize()}" for name in ("folder", "hub", "table", "text", "union")}
DESCRIBED |= {"data_modules.mt10:MT10"}
"""Data modules that a suite describes or that need a simulator; their own tests run the checks."""


def data_modules():
    """Returns ``module:Class`` of every data module that data_modules/*.py defines."""
    found = []
    for path in sorted((ROOT / "data_modules").glob("[!_]*.py")):
        module = importlib.import_module(f"mtlbench.data_modules.{path.stem}")
        for name, value in vars(module).items():
            target = f"data_modules.{path.stem}:{name}"
            own = inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
            if own and issubclass(value, MTLDataModule) and target not in DESCRIBED:
                found.append(target)
    return found


def miniature(name, folder):
    """Returns the folder of a rendered miniature of a data set, or None for data that needs no files."""
    from mtlbench.data_modules.miniatures import MINIATURES

    return str(MINIATURES[name](folder, train=4, val=2)) if name in MINIATURES else None


def small(module, **more):
    """Returns options that make a data module tiny, of those that it knows."""
    wanted = {"train": 8, "val": 3, "test": 3, "molecules": 24, **more}
    return {name: value for name, value in wanted.items() if name in registry.arguments_of(module)}


def test_data_modules_are_found():
    assert {"data_modules.digits:Digits", "data_modules.pascal:Pascal", "data_modules.scenes:Scenes"} <= {
        *data_modules()
    }


@pytest.mark.parametrize("target", data_modules())
def test_data_module(target, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = registry.load(target)
    assert issubclass(module, MTLDataModule)
    root = miniature(target.split(".")[1].split(":")[0], tmp_path)
    findings = check_data_module(target, root, **small(module, size=32))
    assert len(findings) >= 4 and not failures(findings)


@pytest.mark.parametrize(("target", "message"), [
    ("OwnNoise", "different inputs"), ("OwnCrop", "different"), ("Unstable", "two readings"),
])  # fmt: skip
def test_data_module_with_a_state_is_noticed(target, message):
    (found,) = failures(check_data_module(f"tests.support.faults:{target}"))
    assert message in found


# ---- suites ---------------------------------------------------------------------------------------------------------


BRIEF = ("demonstrations=3", "episodes=2")
FEW = "{name: mu2net, children: 1, generations: 1}"

LINEAR = [
    f"data.options.streams.{name}.options.{split}=4"
    for name in ("target", "same", "second", "third", "fourth", "fifth")
    for split in ("val", "test")
]
THREE = "tasks=[semseg,normals,depth]"
ONE_TARGET = ["scenario.examples=4", "scenario.steps=1", "trainer.steps=1", "trainer.evaluate_every=0"]
SHORTER = {
    "active_linear": ["trainer.batch_size=4", *LINEAR],
    "active_text": ["scenario.examples=4"],
    "control": [f"data.options.{each}" for each in (*BRIEF, "streams=[reach,gate,push]")],
    "control_mixing": [f"data.options.{each}" for each in (*BRIEF, "streams=[reach,gate,push]", "slots=3")],
    "control_sequences": [f"data.options.{each}" for each in (*BRIEF, "streams=[deliver,relay,tidy]")],
    "computation_sharing": ["tasks=[semseg,depth,edges]"],  # 2 sub-tasks per row instead of 5.
    "experts": [THREE],
    "glue": ["tasks=[cola,stsb,mnli]"],
    "grouping": ["tasks=[depth,edges,normals]"],  # 7 subsets instead of 63.
    "grouping_digits": ["tasks=[left,sum,ink]"],
    "incremental": [f"methods=[uniform,rcm,{FEW}]"],
    "low_resource": ["scenario.fractions=[0.5,1.0]"],
    "nyud_invpt": [THREE],
    "pascal_invpt": ["tasks=[semseg,parts,normals]"],
    "systems": [
        "tasks=[semseg,depth,detection]",
        "methods=[uniform,{name: disparse, sparsity: 0.7},mcn,graph_mtl,ties]",  # More: `incremental`.
    ],
    "transfer": ["scenario.targets=[normals]", *ONE_TARGET],  # 8 second runs instead of 24.
    "transfer_text": ["scenario.targets=[condition]", *ONE_TARGET],
    "text_unseen_task": ["scenario.examples=[4]", "scenario.steps=2", "scenario.related=[tweets_valence]"],
    "unseen_task": ["scenario.examples=[4]", "scenario.steps=2", "scenario.related=[depth]"],
    "video": [THREE],
}
"""Suites whose runs are many, with fewer of the same kinds."""

whole = functools.cache(suite.load)
"""A shipped suite as it is; each test asks for those before its own."""


def tiny(name, folder):
    """Returns a shipped suite, resolved with two steps on a few small images."""
    about = whole(name)
    module = registry.load(about.data.module)
    overrides = ["trainer.steps=2", "trainer.batch_size=3", "trainer.evaluate_every=1", "trainer.workers=0"]
    overrides += ["trainer.checkpoint_every=0", "trainer.log_every=1", "seeds=[0]"]
    if not (about.model.encoder_options or about.model.weights):  # of full size
        overrides += ["model.encoder=test_resnet", "model.decoder_channels=8"]
    overrides += SHORTER.get(name, [])
    overrides += [f"data.options.{key}={value}" for key, value in small(module).items() if key != "size"]
    if "size" in registry.arguments_of(module):
        overrides += ["data.options.size=32", "model.image_size=[32,32]"]
    root = miniature(about.data.module.partition(":")[0].rpartition(".")[2], folder)
    if about.model.encoder.startswith("transformers:"):
        more, root = texts(name, folder)
        overrides += more
    return resolve(suite.load(name, overrides), Local(data=root), overrides)


def plan_of(spec):
    cls = registry.find(spec.method["path"])
    return (cls if issubclass(cls, MTLMethod) else MTLMethod).plan(spec)


def follow(plan, root):
    """Drives a plan to its end, training each of its runs; returns which run serves which task."""
    results = None
    while True:
        try:
            specs = plan.send(results)
        except StopIteration as end:
            return end.value
        results = [finished(spec, root) for spec in specs]


def finished(spec: RunSpec, root):
    folder = RunFolder(root, spec.run_id)
    assert folder.result() or (folder.claim(spec) and train(spec, folder))
    return folder.outcome()


NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))


def texts(name, folder):
    """Returns overrides for a suite of texts: a small encoder and hashed words; and the folder of its data."""
    options = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16}"
    words = ["model.encoder=transformers:bert", "model.weights=null", f"model.encoder_options={options}"]
    about = whole(name)
    streams = about.data.options["streams"]
    describer = {"describer": str(write_encoder(folder / "describer"))}
    rows = [{**row, **describer} if "descriptions" in row else row for row in about.methods]
    words += [f"methods={json.dumps(rows)}"]
    words += [f"data.options.streams.{stream}.options.tokenizer=words" for stream in streams]
    (module,) = {stream["module"].partition(":")[0].rpartition(".")[2] for stream in streams.values()}
    return ["trainer.batch_size=4", *words], miniature(module, folder)


def trained_elsewhere(name):
    """Returns labels of the rows that an earlier suite trains, or that are balancers (see `test_method`)."""
    earlier = [row for other in NAMES[: NAMES.index(name)] for row in rows_of(other)]
    return {
        row.get("label", row["name"])
        for row in rows_of(name)
        if row in earlier or row.keys() == {"name"} and not issubclass(registry.find(row["name"]), MTLMethod)
    }


def rows_of(name):
    """Returns the rows of a shipped suite as mappings."""
    return [{"name": row} if isinstance(row, str) else row for row in whole(name).methods]


@pytest.mark.parametrize("name", NAMES)
def test_suite_trains(name, tmp_path, monkeypatch):
    """Every row of every suite is resolved, and trained unless it is known to train.

    A scenario changes data and tasks between its conditions: `uniform` trains under all of them, other rows under one.
    Only the scenario of an unrelated task trains like a suite without one, so that rows of earlier suites are left out.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    study = tiny(name, tmp_path)
    assert "uniform" in {case.spec.label for case in study.cases}
    scenario = whole(name).scenario
    own = scenario and scenario["kind"] != "unrelated_task"
    known = set() if own else trained_elsewhere(name) - {"uniform"}
    for case in study.cases:
        label = case.spec.label
        if label in known:
            continue
        known |= {label} - {"uniform"}
        serving = follow(case.begin(plan_of), tmp_path / "results")
        assert set(Ending.of(serving).serving) == set(case.spec.tasks)
