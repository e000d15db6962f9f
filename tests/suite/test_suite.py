"""Suites: shipped ones are whole; what is chosen by flags, overrides or make is what the suite then says."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

import pytest

from mtlbench import cli
from mtlbench import suite as suites
from mtlbench.cli.arguments import read_request
from mtlbench.errors import SuiteError
from mtlbench.study.resolve import resolve
from tests.support.command_line import mtlbench

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(suites.available()))
def test_shipped_suite(name: str) -> None:
    suite = suites.load(name)
    assert (suite.name, suite.format) == (name, 1)
    assert suite.title and suite.methods and suite.baseline in suite.methods


def test_dotted_overrides_take_yaml_values() -> None:
    suite = suites.load("digits", ["trainer.steps=7", "model.image_size=[8, 12]", "optimiser.lr=1e-2"])
    assert (suite.trainer.steps, suite.model.image_size, suite.optimiser.lr) == (7, [8, 12], 0.01)
    assert suites.load("digits", ["methods=uniform famo"]).methods == ["uniform", "famo"]
    assert suites.load("digits", ["methods=[{name: famo, lr: 0.1}]"]).methods == [{"name": "famo", "lr": 0.1}]
    assert suites.load("digits", ["tasks.sum.scale=3"]).tasks["sum"].scale == 3.0


def test_mappings_are_merged_and_lists_replaced() -> None:
    options = suites.load("digits", ["model.encoder_options.depth=1", "seeds=[4]"])
    assert options.model.encoder_options["depth"] == 1 and options.model.encoder_options["embed_dim"] == 64
    assert options.seeds == [4]


def test_suite_by_path_and_shipped_suite_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert suites.load("digits").name == "digits"
    (tmp_path / "own.yaml").write_text((ROOT / "experiments" / "digits.yaml").read_text())
    assert suites.load("own.yaml") == suites.load("digits")


def test_every_fault_is_reported() -> None:
    with pytest.raises(SuiteError) as caught:
        suites.load("digits", ["a=1", "trainer.b=2", "trainer.steps=c", "d"])
    assert len(str(caught.value).splitlines()) == 4


def planned(folder: Path, *words: str) -> list[tuple[str, str]]:
    """Returns method and seed of every run that a bench would train, without the floor, as a dry one does."""
    assert mtlbench(folder, "bench", "digits", "--dry", *words).code == 0
    asked = read_request(cli._parse(["bench", "digits", *words]))
    study = resolve(asked.suite, asked.local, asked.overrides, asked.place)
    return [(spec.label, str(spec.seed)) for spec in study.members if spec.label != "floor"]


def test_methods_and_seeds_of_the_command_line(tmp_path: Path) -> None:
    assert planned(tmp_path, "--methods", "famo uniform", "--seeds", "3") == [
        (method, seed) for method in ("famo", "uniform") for seed in "012"
    ]
    assert planned(tmp_path, "--methods", "famo,uniform", "--seeds", "0,5")[:2] == [("famo", "0"), ("famo", "5")]
    assert planned(tmp_path, "--seeds", "1", "methods=[dwa]") == [("dwa", "0")]
    assert planned(tmp_path, "trainer.steps=2", "--methods", "dwa", "seeds=[7]") == [("dwa", "7")]


def test_overrides_may_stand_after_options(tmp_path: Path) -> None:
    assert planned(tmp_path, "--methods", "dwa", "seeds=[7]", "trainer.steps=2") == [("dwa", "7")]
    assert mtlbench(tmp_path, "bench", "digits", "--nonsense").code == 2
    assert mtlbench(tmp_path, "status", "digits", "nonsense").code == 2


def test_methods_keep_the_arguments_that_the_suite_gives_them(tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "digits.yaml").read_text()
    text = text.replace("methods: [single_task,", "methods: [{name: famo, label: slow, lr: 0.5}, single_task,")
    (tmp_path / "own.yaml").write_text(text)
    answer = mtlbench(tmp_path, "bench", "own.yaml", "--dry", "--methods", "slow", "floor=false")
    assert answer.code == 0 and "1 runs: 1 to do" in answer.text


def make(*variables: str) -> str:
    """Returns the command that make would run."""
    done = subprocess.run(["make", "-n", "bench", *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "mtlbench" in line][-1]


def test_variables_of_make() -> None:
    assert make().split("mtlbench", 1)[1].split() == ["bench", '"scenes"', "--results", '"results"']
    line = make(
        "SUITE=digits",
        "METHODS=uniform famo",
        "SEEDS=3",
        "TRIALS=4",
        "SET=trainer.steps=7 seeds=[1]",
        "RESULTS=/tmp/a b",
        "JOBS=2",
        "DEVICES=1",
        "DATA=d",
        "SAMPLE=1",
        "RETRY=1",
        "DRY=1",
    )
    for part in (
        'bench "digits" trainer.steps=7 seeds=[1]',
        '--methods "uniform famo"',
        '--seeds "3"',
        "--trials 4",
        "--jobs 2",
        '--results "/tmp/a b"',
        "--devices 1",
        '--data "d"',
        "--sample",
        "--retry",
        "--dry",
    ):
        assert part in line


def test_line_of_make_is_a_command(tmp_path: Path) -> None:
    line = make("SUITE=digits", "METHODS=uniform famo", "SEEDS=2", "SET=trainer.steps=2 optimiser.lr=1", "DRY=1")
    answer = mtlbench(tmp_path, *shlex.split(line)[1:])
    assert answer.code == 0 and "5 runs: 5 to do" in answer.text, answer.text


@pytest.mark.skipif(
    not (ROOT / ".venv/bin/mtlbench").exists(),
    reason="It runs the command of the environment that `make install` creates; there is none here.",
)
def test_make_shows_the_message_of_a_wrong_request(tmp_path: Path) -> None:
    words = ["make", "-o", ".venv/.installed", "bench", "SUITE=digits", f"RESULTS={tmp_path}", "SET=trainer.stepz=2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Did you mean 'steps'" in done.stderr


@pytest.mark.parametrize("name", suites.available())
def test_a_comparison_named_beforehand_is_between_methods_of_the_suite(name):
    found = suites.load(name)
    labels = {e if isinstance(e, str) else e.get("label") or e["name"] for e in found.methods}
    assert set(found.named) <= labels


PERIODS = ("evaluate_every", "checkpoint_every", "log_every", "diagnose_every", "workers", "examples")


@pytest.mark.parametrize(
    ("key", "given", "found"),
    [("clip", "-1", "-1.0"), ("clip", ".nan", "nan"), ("clip", ".inf", "inf"), *((key, "-5", "-5") for key in PERIODS)],
)
def test_what_may_be_off_is_not_negative(key: str, given: str, found: str) -> None:
    override = f"trainer.{key}={given}"
    (fault,) = suites.read("digits", [override]).faults
    assert fault.startswith(f"override {override!r}: trainer.{key} must be at least 0 and ")
    assert fault.endswith(f", found {found}.")
    assert not suites.read("digits", [f"trainer.{key}=0"]).faults


def test_a_list_of_tasks_keeps_these_with_what_was_said_about_them(tmp_path: Path) -> None:
    found = suites.load("digits", ["tasks.ink.scale=2", "tasks=[ink, left]"])
    assert {name: task.scale for name, task in found.tasks.items()} == {"ink": 2, "left": None}
    assert len(suites.load("digits", ["tasks={left: {scale: 3}}"]).tasks) == 5, "a mapping changes tasks and keeps all"
    assert list(suites.load("grouping", ["tasks=[depth, edges]"]).tasks) == ["depth", "edges"]
    text = suites.locate("grouping").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("\nmodel:", "\ntasks: [depth, edges]\nmodel:"))
    assert list(suites.load(str(tmp_path / "mine.yaml")).tasks) == ["depth", "edges"]


def test_data_without_a_folder_says_how_to_name_it(tmp_path: Path) -> None:
    absent = mtlbench(tmp_path, "data", "pascal")
    assert absent.code == 2 and "data_modules.pascal:Pascal, no folder given" in absent.text
    assert "--data FOLDER" in absent.text and "data/pascal" in absent.text and "none needed" not in absent.text
    named = mtlbench(tmp_path, "data", "pascal", "--data", "nowhere")
    assert named.code == 2 and "folder nowhere" in named.text and "Name the folder" not in named.text
    none = mtlbench(tmp_path, "data", "digits")
    assert none.code == 0 and "which needs no folder" in none.text


@pytest.mark.parametrize(
    ("override", "fact"),
    [
        ("optimiser.lr=-1", "optimiser.lr must be above 0 and finite, found -1"),
        ("optimiser.lr=.nan", "optimiser.lr must be above 0 and finite, found nan"),
        ("optimiser.lr=.inf", "optimiser.lr must be above 0 and finite, found inf"),
        ("optimiser.weight_decay=-1", "at least 0 and finite"),
        ("optimiser.momentum=1.5", "at least 0 and at most 1"),
        ("tasks.left.scale=-1", "tasks.left.scale must be above 0 and finite, found -1"),
        ("tasks.left.scale=.nan", "tasks.left.scale must be above 0"),
        ("model.decoder_channels=0", "model.decoder_channels must be at least 1"),
        ("model.image_size=[0, 24]", "model.image_size must be at least 1"),
        ("model.image_size=[20, 99999]", "model.image_size must be at least 1 and at most 16,384"),
        ("model.image_size=[20]", "model.image_size is height and width"),
        ("trainer.steps=0", "trainer.steps must be at least 1"),
        ("trainer.batch_size=" + "9" * 1000, "trainer.batch_size must be at least 1"),
        ("trainer.batch_size=0x" + "f" * 9000, "a number of thousands of digits"),
        ("trainer.batch_size=" + "9" * 5000, "digits"),
        ("trainer.workers=-1", "trainer.workers must be at least 0"),
        ("trainer.clip=.nan", "trainer.clip must be at least 0 and finite"),
        ("seeds=[-1]", "seeds must be at least 0"),
        ("data.options=" + "[" * 20000, "nested too deeply"),
        ("name=../../x", "name must be one plain part of a path"),
        ("name=/tmp/x", "name must be one plain part of a path"),
        ("name=..", "name must be one plain part of a path"),
        ("name=''", "name must be one plain part of a path"),
        ('name="a\\nb"', "name must be one plain part of a path"),
        ('methods=[{name: uniform, label: "a/b"}]', "a label must be one plain part of a path"),
        ('methods=[{name: uniform, label: "\\e[31mred"}]', "text must not hold control characters. Found '\\x1b'"),
        ("tasks={a/b: {}}", "the name of a task must be one plain part of a path"),
    ],
    ids=lambda text: text[:30],
)
def test_values_out_of_range_are_refused(override: str, fact: str) -> None:
    found = suites.read("digits", [override])
    assert len(found.faults) == 1 and fact in found.faults[0] and "override" in found.faults[0], found.faults
    assert len(found.faults[0]) < 1000


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"name: \xff\xfe", "must be UTF-8 text; byte 6"),
        (b"name: a\x00b", "not valid YAML"),
        (b"data: " + b"[" * 20000 + b"]" * 20000, "nested too deeply"),
        (b"version: " + b"9" * 5000, "version"),
        (b"name: a\nstudy: {kind: low_resource}\n", "study was renamed to scenario"),
    ],
    ids=["not UTF-8", "NUL", "deep", "5,000 digits", "old key"],
)
def test_files_that_are_no_suite_are_refused_with_their_name(content: bytes, fact: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    found = suites.read(str(tmp_path / "mine.yaml"))
    assert any(fact in fault for fault in found.faults) and all("mine.yaml" in fault for fault in found.faults)


def test_every_number_of_a_suite_has_a_range() -> None:
    for section in (suites.ModelSection, suites.OptimiserSection, suites.TrainerSection, suites.TaskSection):
        for field in dataclasses.fields(section):
            number = str(field.type).split(" ")[0] in ("int", "float", "list[int]")
            assert ("range" in field.metadata) == number, f"{section.__name__}.{field.name}"


@pytest.mark.parametrize(
    ("override", "fact"),
    [
        ("data.options.x=2020-01-01", "no dates"),
        ("data.options={a: 1, a: 2}", "data.options.a is given twice"),
        ("methods=[{name: famo, lr: 1, lr: 2}]", "lr is given twice"),
        ("data.options={x: {1: 2}}", "keys must be text. Write 1 in quotes"),
        ("data.options.x=!!binary aGk=", "tags are not used"),
        ("title=&a b", "anchors and aliases"),
        ("data.options.x=[[" + "[" * 40, "nested too deeply"),
        ("data.options.x=.nan", "numbers must be finite"),
        ("trainer.steps=010", "010 is another number in YAML"),
        ("trainer.steps=1:30", "1:30 is another number in YAML"),
        ("optimiser.lr=1" + "0" * 400, "larger than any number"),
        ("title='???'", "stands for a value that is missing"),
        ('title="\\e[2J"', "control characters"),
        ("data={options: {a.b: 1}}", "without dots"),
        ("scenario={<<: {kind: low_resource}}", "keys must be text. Write << in quotes"),
        ("data.options={1: 2}", "keys must be text. Write 1 in quotes"),
        ("model.encoder_options..x=3", "must have the form key.key=value"),
        ("data.options.train[0]=3", "one word without brackets"),
        ("tasks.left.optional=5", "must be true or false"),
        ("seeds=[[1]]", "must be a list of single values"),
        ("seeds=[null]", "must be a list of single values"),
        ("seeds={a: 1}", "seeds must be a list, such as [value, value]. Found \"{'a': 1}\""),
        ("optimiser=[1]", "optimiser must be a mapping, such as {key: value}. Found '[1]'"),
        ("trainer=x", "trainer must be a mapping, such as {key: value}. Found 'x'"),
        ("tasks.left=3", "tasks.left must be a mapping, such as {key: value}. Found '3'"),
        ("tasks=[left, [ink]]", "tasks must be a mapping, or a list of names. Found ['left', ['ink']]"),
        ("tasks=[left, a.b]", "tasks must be a mapping, or a list of names"),
        ("tasks=[left, ink, left]", "tasks must be distinct. Found left twice"),
        ("protocol=delta_m@2", "protocol must be delta_m@1"),
        ("baseline=sinlge_task", "Did you mean 'single_task'"),
        ("named=[uniform, famoo]", "Did you mean 'famo'"),
        ("methods=[{name: uniform, label: [a]}]", "a label must be text"),
    ],
    ids=lambda text: text[:30],
)
def test_what_would_be_read_as_something_else_is_refused(override: str, fact: str) -> None:
    found = suites.read("digits", [override])
    assert len(found.faults) == 1 and fact in found.faults[0], found.faults


def test_text_is_taken_as_it_is_written(tmp_path: Path) -> None:
    words = {"title": "0x10", "baseline": "uniform", "name": "yes"}
    found = suites.load("digits", [f"{key}={word}" for key, word in words.items()])
    assert {key: getattr(found, key) for key in words} == words
    text = (ROOT / "experiments" / "digits.yaml").read_text().replace("title: Two", "title: 12:30 # Two")
    (tmp_path / "own.yaml").write_text(text)
    assert suites.load(str(tmp_path / "own.yaml")).title == "12:30"


def test_named_rows_may_be_left_out_this_time(tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "digits.yaml").read_text() + "named: [slow, uniform]\n"
    text = text.replace("methods: [single_task,", "methods: [{name: famo, label: slow}, single_task,")
    (tmp_path / "own.yaml").write_text(text)
    assert not suites.read(str(tmp_path / "own.yaml"), [], ["uniform"]).faults
    assert not suites.read(str(tmp_path / "own.yaml"), ["methods=[uniform]"]).faults


@pytest.mark.parametrize(
    ("entry", "fact"),
    [
        ("{name: famo, balancer: 5}", "balancer must be a name"),
        ("{name: single_task, balancer: {lr: 1}}", "balancer must be a name"),
        ("{name: single_task, balancer: ''}", "Unknown method ''"),
        ("{name: uniform, model: 0}", "model of a method maps keys"),
        ("{name: uniform, model: {decoder_channels: -5}}", "decoder_channels must be at least 1"),
        ("{name: uniform, model: {decoder_channels: many}}", "decoder_channels must be a whole number"),
        ("{name: uniform, model: {encoder_options: 5}}", "encoder_options must be a mapping"),
    ],
)
def test_what_a_method_changes_has_the_rules_of_the_suite(entry: str, fact: str, tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", "digits", f"methods=[{entry}]", "--dry")
    assert answer.code == 2 and fact in answer.text and "Traceback" not in answer.text, answer.text


def test_a_suite_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 5000, "x" * 5000 + ".yaml", "a\x00b", str(tmp_path)):
        with pytest.raises(SuiteError):
            suites.load(name)
