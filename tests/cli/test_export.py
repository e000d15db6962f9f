"""A finished run becomes a folder to share, which loads without data, and nothing is uploaded without being asked."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import onnxruntime
import pytest
import torch

import mtlbench
from mtlbench.errors import MethodError, StoreError
from mtlbench.training.hub import check_hub
from tests.support.command_line import SMALL
from tests.support.command_line import mtlbench as command
from tests.support.hub_server import hub as serving


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of `uniform` and one of `mod_squad`."""
    folder = tmp_path_factory.mktemp("export")
    for method in ("uniform", "mod_squad"):
        answer = command(folder, "run", "digits", *SMALL, "trainer.steps=2", "--method", method, "--seeds", "1")
        assert answer.code == 0, answer.text
    return folder


def run_of(project: Path, label: str) -> str:
    (found,) = (project / "results" / "digits").glob(f"{label}-s0-*")
    return str(found)


@pytest.fixture(scope="module")
def shared(project: Path) -> Path:
    """The exported network of `uniform`, with both programs."""
    answer = command(project, "export", run_of(project, "uniform"), "--to", "shared/uniform", "--onnx")
    assert answer.code == 0 and "model.onnx predicts what the network predicts" in answer.text, answer.text
    return project / "shared" / "uniform"


def images(count: int) -> Any:
    return torch.randint(0, 256, (count, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_every_form_predicts_what_the_run_predicts(project: Path, shared: Path) -> None:
    wanted = mtlbench.load_run(run_of(project, "uniform")).method(images(3))
    rebuilt = mtlbench.load_exported(shared)(images(3))
    program = torch.export.load(shared / "program.pt2").module()(images(3))
    for found in (rebuilt, program):
        assert list(found) == list(wanted)
        assert all(torch.equal(found[task], wanted[task]) for task in wanted)
    session = onnxruntime.InferenceSession(str(shared / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    assert names == [f"prediction.{task}" for task in wanted]
    for value, task in zip(session.run(None, {"image": images(3).numpy()}), wanted, strict=True):
        assert torch.allclose(torch.as_tensor(value), wanted[task], atol=1e-5)


def test_the_card_is_one_that_the_hub_reads(project: Path, shared: Path) -> None:
    result = json.loads((Path(run_of(project, "uniform")) / "result.json").read_text())
    card = huggingface_hub.ModelCard.load(shared / "README.md")
    assert card.data.library_name == "mtlbench" and "uniform" in card.data.tags
    told = {(x.task_name, x.metric_type): x.metric_value for x in card.data.eval_results}
    scores = {(task, name): value for task, found in result["scores"].items() for name, value in found.items()}
    assert told == scores
    assert "@inproceedings{kurin2022defense," in card.content and "seed 0" in card.content
    for code in card.content.split("```python\n")[1:]:
        compile(code.split("```")[0], "card", "exec")


def test_no_path_of_this_machine_leaves_it(project: Path, shared: Path) -> None:
    for name in ("README.md", "model.json"):
        assert str(project) not in (shared / name).read_text()
    assert "local" not in json.loads((shared / "model.json").read_text())["spec"]


def test_a_task_leaves_alone_with_its_experts(project: Path) -> None:
    words = ("--to", "shared/segments", "--task", "segments", "--threshold", "0.3", "--weights-only")
    answer = command(project, "export", run_of(project, "mod_squad"), *words)
    assert answer.code == 0, answer.text
    out = project / "shared" / "segments"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    assert mtlbench.load_extracted(out)(images(2)).shape == (2, 3, 24, 32)
    card = (out / "README.md").read_text()
    assert "extracted at threshold 0.3" in card and "chen2023mod" in card and "mtlbench.load_extracted" in card
    with pytest.raises(StoreError, match="use mtlbench.load_extracted"):
        mtlbench.load_exported(out)


def test_a_later_export_leaves_no_program_of_an_earlier_one(project: Path, shared: Path) -> None:
    other = project / "shared" / "again"
    other.mkdir()
    for path in shared.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    answer = command(project, "export", run_of(project, "mod_squad"), "--to", "shared/again", "--weights-only")
    assert answer.code == 0, answer.text
    assert sorted(path.name for path in other.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    assert list(mtlbench.load_exported(other)(images(1))) == ["left", "right", "sum", "ink", "segments"]


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["results/digits/absent", "--to", "new"], "is not a run's folder"),
        (["{uniform}", "--to", "results"], "holds other files"),
        (["{uniform}", "--to", "{uniform}/spec.json"], "is a file"),
        (["{uniform}", "--to", "new", "--threshold", "0.1"], "Give --task with --threshold"),
        (["{uniform}", "--to", "new", "--task", "segments"], "needs a network with experts"),
        (["{mod_squad}", "--to", "new", "--task", "segment"], "Did you mean 'segments'"),
        (["{uniform}", "--to", "new", "--onnx", "--weights-only"], "Leave out one of the two"),
        (["{uniform}", "--to", "new", "--push", "no-owner"], "owner/name"),
        (["{uniform}", "--to", "new", "--push", "a/b c"], "owner/name"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value[2:]),
)
def test_what_cannot_be_shared_is_refused(project: Path, words: list[str], fact: str) -> None:
    runs = {label: run_of(project, label) for label in ("uniform", "mod_squad")}
    answer = command(project, "export", *(word.format(**runs) for word in words))
    assert answer.code == 2 and fact in answer.text, answer.text
    assert not (project / "new").exists()


def test_an_unfinished_run_is_refused(project: Path, tmp_path: Path) -> None:
    source = Path(run_of(project, "uniform"))
    run = tmp_path / source.name
    run.mkdir()
    (run / "spec.json").write_bytes((source / "spec.json").read_bytes())
    answer = command(project, "export", str(run), "--to", "new")
    assert answer.code == 2 and "A run must be done to be loaded" in answer.text, answer.text


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Records calls of the hub's client, which must have the form that the real client takes."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def stand_in(name: str, answer: str) -> None:
        real = inspect.signature(getattr(huggingface_hub.HfApi, name))

        def call(*args: Any, **kwargs: Any) -> str:
            calls.append((name, dict(real.bind(*args, **kwargs).arguments)))
            return answer

        monkeypatch.setattr(huggingface_hub.HfApi, name, call)

    stand_in("create_repo", "https://hub.test/me/net")
    stand_in("upload_folder", "")
    return calls


def test_nothing_is_uploaded_unless_asked(project: Path, hub: list[tuple[str, dict[str, Any]]]) -> None:
    run = run_of(project, "uniform")
    quiet = command(project, "export", run, "--to", "shared/pushed", "--weights-only")
    assert quiet.code == 0 and hub == []
    loud = command(project, "export", run, "--to", "shared/pushed", "--weights-only", "--push", "me/net")
    assert loud.code == 0 and "Uploaded to https://hub.test/me/net" in loud.text, loud.text
    (created, made), (uploaded, sent) = hub
    assert (created, made["repo_id"], made["private"], made["exist_ok"]) == ("create_repo", "me/net", True, True)
    assert (uploaded, sent["repo_id"], str(sent["folder_path"])) == ("upload_folder", "me/net", "shared/pushed")
    assert sent["allow_patterns"] == ["model.safetensors", "model.json", "README.md"]


def test_after_a_failed_upload_the_command_fails_and_the_folder_is_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        server.trouble = {"create": 500}
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        words = ("--to", "shared/lost", "--weights-only", "--push", "me/net")
        answer = command(project, "export", run_of(project, "uniform"), *words)
    assert answer.code == 2 and "shared/lost is complete" in answer.text and "Uploaded" not in answer.text, answer.text
    assert list(mtlbench.load_exported(project / "shared" / "lost")(images(1)))


def test_without_the_client_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub.utils", None)
    with pytest.raises(StoreError, match=r"pip install 'mtlbench\[hub\]'"):
        check_hub("me/net")


@pytest.mark.parametrize(
    ("change", "error", "fact"),
    [
        (lambda d: d | {"format": 9}, StoreError, "format 9"),
        (lambda d: {k: v for k, v in d.items() if k != "spec"}, StoreError, "KeyError"),
        (
            lambda d: d | {"spec": d["spec"] | {"data": d["spec"]["data"] | {"module": "evil:Data"}}},
            MethodError,
            "evil",
        ),
        (
            lambda d: d | {"spec": d["spec"] | {"model": d["spec"]["model"] | {"decoder_channels": 4}}},
            StoreError,
            "size",
        ),
    ],
)
def test_a_folder_of_others_is_read_with_care(
    shared: Path, tmp_path: Path, change: Any, error: type, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes((shared / "model.safetensors").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(change(json.loads((shared / "model.json").read_text()))))
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=fact):
        mtlbench.load_exported(tmp_path, allow=["evil"] if error is MethodError else ())
