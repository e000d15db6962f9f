"""Whatever a user gets wrong: the rule, the fact, the remedy and the exit code; and nothing is lost by it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from mtlbench.data_modules.miniatures import write_pascal
from mtlbench.errors import StoreError
from mtlbench.runs.store import RunFolder
from mtlbench.training import checkpoint
from tests.support.command_line import (
    SMALL,
    Answer,
    ended,
    family,
    gone,
    launch,
    mtlbench,
    outcome,
    run_to_end,
    runs_of,
    specs,
    step,
    wait_for,
    write_suite,
)

SUITE = """\
name: mine
version: 1
data:
  module: {module}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {{patch_size: {patch}, embed_dim: 16, depth: 2, num_heads: 2}}
  image_size: {size}
  decoder_channels: 8
trainer: {{steps: {steps}, batch_size: 4, log_every: 1}}
floor: false
methods: {methods}
"""


def digits_suite(folder: Path, module: str = "data_modules.digits:Digits", methods: str = "[uniform]") -> str:
    text = SUITE.format(module=module, patch=4, size=[24, 32], steps=10, methods=methods)
    return write_suite(folder, "mine", text)


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["digitz"], ["Unknown suite 'digitz'", "Did you mean 'digits'", "Looked in"]),
        (["absent.yaml"], ["must exist", "absent.yaml"]),
        (["digits", "--methods", "unifrom"], ["Unknown method 'unifrom'", "Did you mean 'uniform'"]),
        (["digits", "methods=[{name: famo, balancer: pcgrat}]"], ["Unknown method 'pcgrat'", "'pcgrad'"]),
        (["digits", "trainer.stepz=3"], ["override 'trainer.stepz=3'", "Unknown key 'stepz'", "Did you mean 'steps'"]),
        (["digits", "encoder=resnet18"], ["Unknown key 'encoder'", "Perhaps model.encoder?"]),
        (["digits", "model.encoder=resnet81"], ["resnet81", "id you mean", "'resnet18'"]),
        (["digits", "methods=[{name: famo, lrr: 1}]"], ["famo: Unknown hyper-parameter 'lrr'", "'lr'"]),
        (["digits", "methods=[{name: famo, lr: much}]"], ["famo: lr must be float, found 'much'"]),
        (["digits", "data.options.trains=3"], ["'trains'", "Did you mean 'train'"]),
        (["digits", "tasks.lefd={}"], ["Unknown task 'lefd'", "'left'"]),
        (["digits", "data.module=data_modules.digits:Digit"], ["Unknown class 'Digit'", "'Digits'"]),
        (["digits", "data.module=nowhere:Digits"], ["importable module", "nowhere"]),
        (["digits", "steps"], ["override 'steps'", "must have the form key.key=value"]),
        (["digits", "trainer.steps=many"], ["override 'trainer.steps=many'", "many", "must be a whole number"]),
        (["digits", "trainer.steps=0"], ["trainer.steps must be at least 1 and"]),
        (
            ["digits", "--dry", "methods=[{name: task_moe, balancer: mgda_ub}]"],
            ["task_moe+mgda_ub: A rule on the representation", "names none (Outputs.representation)"],
        ),
        (
            ["digits", "--dry", "methods=[{name: single_task, balancer: {name: fixed, weights: [1, 2, 3, 4, 5]}}]"],
            ["on left: ", "Found 5 for 1 task"],
        ),
        (["digits", "seeds=[1, 1]"], ["seeds must be distinct"]),
        (["digits", "--seeds", "x"], ["SEEDS must be a number of seeds, or a list", "'x'"]),
        (["digits", "optimiser.name=adamv"], ["Unknown optimiser 'adamv'", "'adamw'"]),
        (["digits", "trainer.precision=16"], ["Unknown precision '16'", "16-mixed, 32-true"]),
        (["digits", "selection=best", "trainer.evaluate_every=0"], ["set trainer.evaluate_every"]),
        (
            ["scenes_scratch", "--methods", "computation_sharing", "selection=best", "trainer.evaluate_every=5"],
            ["computation_sharing is trained in phases", "Set selection: last"],
        ),
        (
            ["scenes_scratch", "--dry", "methods=[{name: computation_sharing, layers: {kqv: 1}}]"],
            ["Unknown place 'kqv'. Did you mean 'qkv'"],
        ),
        (["digits", "methods=[uniform, uniform]"], ["'uniform' stands twice", "label"]),
        (["digits", "methods=[{name: pcgrad, balancer: famo}]"], ["pcgrad", "cannot take famo"]),
        (["digits", "--devices", "3", "trainer.batch_size=8"], ["batch_size 8 is not a multiple of 3 device"]),
        (["digits", "methods=[{name: cagrad, c: 1.5}]"], ["override 'methods=", "cagrad: c must be in [0, 1)", "1.5"]),
        (["digits", "methods=[{name: task_moe, balancer: {name: fixed, weights: [1, 2]}}]"], ["fixed", "5", "2"]),
        (["digits", "--methods", "mgda_ub", "trainer.accumulate=2"], ["'representation'", "trainer.accumulate=1"]),
        (["digits", "--methods", "modo", "trainer.batch_size=2"], ["3 mini-batches", "multiple of 3"]),
        (["digits", "--methods", "graddrop pcgrad", "trainer.surgery=light"], ["graddrop: trainer.surgery=light"]),
        (["digits", "--methods", "mgda_ub", "trainer.compile=inductor"], ["hides its representation"]),
        (["digits", "methods=[{name: cagrad, c: null}]"], ["cagrad: c must be float, found None"]),
        (["digits", "--methods", "modo", "data.module=nowhere:Digits"], ["importable module"]),
        (["digits", "trainer.surgery=lite"], ["Unknown way of surgery 'lite'", "'light'"]),
        (["digits", "trainer.compile=inductr"], ["Unknown backend", "'inductor'"]),
        (["digits", "named=[uniform]"], ["named must be a pair", "uniform"]),
        (["pascal", "--data", "nowhere"], ["nowhere", "PASCAL_MT", "SAMPLE=1"]),
    ],
)  # fmt: skip
def test_request(words: list[str], facts: list[str], tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", *words)
    assert answer.code == 2
    assert [fact for fact in facts if fact not in answer.text] == [], answer.text
    assert "Traceback" not in answer.text
    assert not list(tmp_path.glob("results/*/*/spec.json"))


def test_all_faults_of_a_file_at_once_with_their_lines(tmp_path: Path) -> None:
    text = "nam: mine\nversion: one\ndata: {module: a:B}\nmodel:\n  encodr: x\n  image_size: [8, 8]\nmethods: [no]\n"
    answer = mtlbench(tmp_path, "bench", write_suite(tmp_path, "mine", text), "trainer.lr=1")
    assert answer.code == 2
    for fault in (
        "mine.yaml:1: Unknown key 'nam'",
        "mine.yaml:2: version",
        "mine.yaml:5: Unknown key 'encodr'",
        "Perhaps optimiser.lr?",
        "trainer.steps is required",
        "name is required",
    ):
        assert fault in answer.text


def test_all_faults_of_names_at_once(tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", "digits", "--methods", "unifrom famoo", "model.encoder=resnet81")
    assert [name for name in ("unifrom", "famoo", "resnet81") if repr(name) not in answer.text] == []


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("methods: [no]", "False is a truth value"),
        ("methods: [{label: x}]", "a mapping with a name"),
        ("methods: []", "at least one method"),
        ("title: ${oc.env:HOME}", "${...} is not expanded"),
        ("title: !!python/object/apply:os.system [touch hacked]", "tags are not used"),
        ("title: [unclosed", "not valid YAML"),
        ("title: a\ntitle: b", "title is given twice"),
        ("format: 7", "format must be 1, found 7"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        ), "anchors and aliases are not used"),
    ],
)  # fmt: skip
def test_hostile_or_wrong_suite_file(line: str, fact: str, tmp_path: Path) -> None:
    name = digits_suite(tmp_path)
    text = (tmp_path / name).read_text()
    if line.startswith("methods"):
        text = text.replace("methods: [uniform]\n", "")
    (tmp_path / name).write_text(text + line + "\n")
    start = time.process_time()  # A busy machine takes longer, but computes as much.
    answer = mtlbench(tmp_path, "bench", name)
    assert time.process_time() - start < 1
    assert answer.code == 2 and fact in answer.text, answer.text
    assert os.environ["HOME"] + "\n" not in answer.text and not (tmp_path / "hacked").exists()


def test_secret_of_the_environment_stays_out_of_overrides(tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", "digits", "title=${oc.env:HOME}")
    assert answer.code == 2 and "is not expanded" in answer.text


# ---- data -----------------------------------------------------------------------------------------------------------


def pascal_suite(folder: Path, tasks: str, methods: str) -> str:
    text = SUITE.format(module="data_modules.pascal:Pascal", patch=16, size=[64, 64], steps=3, methods=methods)
    text = text.replace("Pascal\n", "Pascal\n  root: mini\n  options: {size: 64}\n")
    return write_suite(folder, "mine", text + f"tasks: {tasks}\n")


def test_label_of_the_wrong_size_fails_its_runs_only(tmp_path: Path) -> None:
    root = write_pascal(tmp_path / "mini", train=4, val=2) / "PASCAL_MT"
    victim = sorted((root / "sal_distill").glob("*.png"))[1]
    Image.open(victim).resize((33, 44)).save(victim)
    suite = pascal_suite(tmp_path, "{semseg: {}, saliency: {}}", "[single_task]")
    answer = mtlbench(tmp_path, "bench", suite, "--jobs", "1")
    assert answer.code == 1, answer.text
    assert "1 run(s) failed" in answer.text and "RETRY=1" in answer.text
    assert victim.name in answer.text.split("FAILED", 1)[1]
    assert mtlbench(tmp_path, "status", "mine").code == 1


def test_unreadable_image_is_named_and_retry_goes_on_once_it_is_mended(tmp_path: Path) -> None:
    root = write_pascal(tmp_path / "mini", train=4, val=2) / "PASCAL_MT"
    victim = sorted((root / "JPEGImages").glob("*.jpg"))[1]
    content = victim.read_bytes()
    victim.write_bytes(bytes(len(content)))  # Its size stays, and with it the fingerprint of the data.
    suite = pascal_suite(tmp_path, "{semseg: {}}", "[uniform]")
    answer = mtlbench(tmp_path, "bench", suite)
    assert answer.code == 1 and victim.name in answer.text, answer.text
    victim.write_bytes(content)
    untried = mtlbench(tmp_path, "bench", suite)
    assert untried.code == 1 and victim.name in untried.text, "a failed run is not tried again unasked"
    assert mtlbench(tmp_path, "bench", suite, "--retry").code == 0


EXPLODING = """\
import torch
from mtlbench.data_modules import digits
from mtlbench.data import StepBatches

class Digits(digits.Digits):
    def samples(self, split):
        found = super().samples(split)
        return Exploding(found, self) if split == "train" else found

class Exploding:
    def __init__(self, samples, data):
        batches = list(StepBatches(len(samples), data.batch_size, data.steps, data.seed))
        self.samples, self.bad = samples, batches[7][0][1]
    def __len__(self):
        return len(self.samples)
    def __getitem__(self, index):
        sample = self.samples[index]
        if index == self.bad:
            sample["targets"]["ink"] = torch.tensor(1e30)
        return sample
"""


def test_loss_that_is_not_finite_names_task_and_step_and_keeps_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "exploding.py").write_text(EXPLODING)
    suite = digits_suite(tmp_path, module="exploding:Digits")
    options = ("data.options.train=32", "data.options.val=8", "trainer.checkpoint_every=3", "--methods", "uniform")
    answer = mtlbench(tmp_path, "bench", suite, *options)
    assert answer.code == 1
    assert "The loss or gradient of ink was not at step 7" in answer.text
    (run,) = runs_of(tmp_path, "mine").values()
    good = checkpoint.newest(run.path)
    assert good is not None and good.name == "step-00000006.ckpt"
    weights = checkpoint.load(good)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values() if isinstance(value, torch.Tensor))


# ---- methods ---------------------------------------------------------------------------------------------------------

BALANCED = """\
from mtlbench.method import MTLMethod

class Own(MTLMethod):
    def combine_losses(self, losses, ctx):
        return losses.sum()

class Broken(MTLMethod):
    def combine_losses(self, losses, ctx):
        raise RuntimeError("I am broken")
"""


def test_method_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "own_methods.py").write_text(BALANCED)
    suite = digits_suite(tmp_path)
    refused = mtlbench(tmp_path, "bench", suite, "methods=[{name: 'own_methods:Own', balancer: pcgrad}]")
    assert refused.code == 2
    assert "Own overrides combine_losses" in refused.text and "Drop one" in refused.text
    small = ("data.options.train=32", "data.options.val=8")
    both = mtlbench(tmp_path, "bench", suite, "--methods", "own_methods:Broken uniform own_methods:Own", *small)
    assert both.code == 1
    assert "RuntimeError: I am broken" in both.text and "1 run(s) failed" in both.text
    states = {label: run.state() for label, run in runs_of(tmp_path, "mine").items()}
    assert states == {"Broken": "failed", "uniform": "done", "Own": "done"}


# ---- the results folder ----------------------------------------------------------------------------------------------


def test_results_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = mtlbench(tmp_path, "bench", "digits", "--results", "file/results")
    assert answer.code == 2
    assert "Results must be writable. file/results/digits" in answer.text and "RESULTS=" in answer.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(
            "A full disk is a small one that this test mounts, which needs the rights of root. What a write does that "
            "does not fit is tested without them, by a limit on file sizes: test_checkpoint_that_does_not_fit_..."
        )
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(32 * 2**20 - 400_000))
    words = ("bench", "digits", "--methods", "uniform", "--results", str(small_disk), *SMALL, "trainer.steps=30")
    full = mtlbench(tmp_path, *words, "trainer.checkpoint_every=5")
    assert full.code in (1, 2) and "No space left" in full.text and "Free space" in full.text, full.text
    filler.unlink()
    again = mtlbench(tmp_path, *words, "trainer.checkpoint_every=0", "--retry")
    assert again.code == 0, again.text


def test_checkpoint_that_does_not_fit_leaves_the_older_one(tmp_path: Path) -> None:
    older, newer = checkpoint.path_of(tmp_path, 1), checkpoint.path_of(tmp_path, 2)
    checkpoint.save({"weights": torch.ones(1000)}, older)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="The last good checkpoint is kept. Free space"):
            checkpoint.save({"weights": torch.ones(100_000)}, newer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoint.newest(tmp_path) == older
    assert sorted(path.name for path in tmp_path.iterdir()) == [older.name, f"{older.name}.sha256"]


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (spec,) = specs(*SMALL, "methods=[uniform]", "trainer.steps=2")
    run = run_to_end(tmp_path, spec)
    weights = run.path / "final.ckpt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    Image.new("RGB", (24, 20)).save(tmp_path / "photo.png")
    answer = mtlbench(tmp_path, "predict", str(run.path), "photo.png")
    assert answer.code == 2
    assert "must match their sha256" in answer.text and "again to train it anew" in answer.text


def test_torn_result_is_no_result(tmp_path: Path) -> None:
    (spec,) = specs(*SMALL, "methods=[uniform]", "trainer.steps=2")
    run = run_to_end(tmp_path, spec)
    result = run.path / "result.json"
    whole = result.read_text()
    result.write_text(whole[: len(whole) // 2])
    assert run.state() != "done"
    result.write_text(json.dumps({**json.loads(whole), "hash": "of another specification"}))
    assert run.state() != "done"
    assert run.state() == "failed" and "does not match its digest" in (run.error() or {})["message"]
    assert outcome(run_to_end(tmp_path, spec))["steps"] == 2


# ---- interruption ----------------------------------------------------------------------------------------------------


def interrupted(folder: Path, number: int, *words: str) -> tuple[Answer, list[int]]:
    process = launch(folder, *words)
    wait_for(lambda: process.poll() is not None or any(step(run) > 5 for run in running(folder)))
    members = family(process.pid)
    os.killpg(process.pid, number)
    return ended(process, 30), members


def running(folder: Path) -> list[RunFolder]:
    return [RunFolder(path.parent.parent, path.parent.name) for path in folder.glob("results/*/*/lock.json")]


def test_interrupted_bench_leaves_true_states_and_the_next_one_finishes(tmp_path: Path) -> None:
    words = ("bench", "digits", "--methods", "uniform pcgrad", *SMALL, "trainer.steps=100", "trainer.workers=1")
    answer, members = interrupted(tmp_path, signal.SIGINT, *words)
    assert answer.code == 130 and "the same command resumes" in answer.text, answer.text
    wait_for(lambda: gone(members), seconds=10)
    states = {run.state() for run in runs_of(tmp_path).values()}
    assert "stale" in states and states <= {"stale", "todo"}
    assert "stale" in mtlbench(tmp_path, "status", "digits").text
    again = mtlbench(tmp_path, *words)
    assert again.code == 0 and "to resume" in again.text, again.text
    for run in runs_of(tmp_path).values():
        assert [row["step"] for row in outcome(run)["rows"] if "lr" in row] == list(range(1, 101))


def test_interrupted_run_resumes(tmp_path: Path) -> None:
    words = ("run", "digits", "--method", "uniform", *SMALL, "trainer.steps=100")
    answer, members = interrupted(tmp_path, signal.SIGTERM, *words)
    assert answer.code == 130, answer.text
    assert gone(members) and runs_of(tmp_path)["uniform"].state() == "stale"
    assert mtlbench(tmp_path, *words).code == 0
    assert outcome(runs_of(tmp_path)["uniform"])["steps"] == 100


@pytest.mark.parametrize("words", [["predict", "results/digits/absent", "image.png"], ["extract", "results/absent"]])
def test_a_run_that_is_not_there(words: list[str], tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, *words)
    assert answer.code == 2 and "absent is not a run's folder" in answer.text
