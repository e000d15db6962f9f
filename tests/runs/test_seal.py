"""What a seal covers: the content of a record and the files that it names; and which records have a form at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mtlbench.runs import seal
from mtlbench.runs.store import RunFolder, read_json, write_json
from tests.runs.test_store import SPEC

SCORES = {"t": {"rmse@1": 0.1, "other@1": float("nan")}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run with three files."""
    folder = RunFolder(tmp_path, SPEC.run_id)
    assert folder.claim(SPEC)
    for name, content in {"final.ckpt": b"weights", "summary.json": b"{}", "examples.npz": b"pictures"}.items():
        (folder.path / name).write_bytes(content)
    folder.finish({"hash": SPEC.hash, "scores": SCORES, "steps": 3}, ("final.ckpt", "summary.json", "examples.npz"))
    return folder


def test_the_digest_is_that_of_the_canonical_content() -> None:
    found = seal.sealed({"b": 1, "a": {"d": 0.1, "c": (True, None)}})
    canonical = b'{"a":{"c":[true,null],"d":0.1},"b":1}'
    assert found["digest"] == hashlib.sha256(canonical).hexdigest() and not seal.broken(found)


def test_a_result_names_its_files(run: RunFolder) -> None:
    found = read_json(run.path / "result.json") or {}
    assert found["files"]["final.ckpt"] == {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert list(found["files"]) == ["final.ckpt", "summary.json", "examples.npz"]
    assert run.state() == "done" and run.result() is not None and run.damage() == ""


def test_a_seal_survives_its_file(run: RunFolder) -> None:
    """Order of keys and white space are not content; NaN is a value like any other."""
    record = json.loads((run.path / "result.json").read_text())
    turned = dict(reversed(record.items()))
    (run.path / "result.json").write_text(json.dumps(turned, indent=7))
    assert run.state() == "done"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"rmse@1": 0.1', '"rmse@1": 0.2'),
        ('"rmse@1": 0.1', '"rmse@1": 0.1000000000000001'),
        ('"steps": 3', '"steps": 4'),
        ('"other@1": NaN', '"other@1": Infinity'),
        ('"rmse@1"', '"rmse@2"'),
        ('"digest"', '"digest_"'),
        ('"files"', '"files_"'),
        ('"bytes": 7', '"bytes": 8'),
    ],
)
def test_one_changed_sign_is_noticed(before: str, after: str, run: RunFolder) -> None:
    path = run.path / "result.json"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    assert run.result() is None and run.state() == "failed"
    assert "does not match its digest" in run.damage() and "--retry" in (run.error() or {})["message"]
    path.write_text(text)
    assert run.state() == "done", "nothing else was touched"


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"a":' * 200 + "1" + "}" * 200])
def test_a_torn_result_is_a_failure_and_no_missing_run(content: str, run: RunFolder) -> None:
    (run.path / "result.json").write_text(content)
    assert run.state() == "failed" and "no" in run.damage()


@pytest.mark.parametrize("name", ["final.ckpt", "summary.json", "examples.npz"])
@pytest.mark.parametrize("damage", ["absent", "shorter", "other"])
def test_damaged_files_of_a_result(name: str, damage: str, run: RunFolder) -> None:
    """Another content of the same size costs a whole read, so only small files are looked at every time."""
    path = run.path / name
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "shorter" else b"x" * path.stat().st_size)
    cheap = damage != "other" or name == "summary.json"
    assert run.state() == ("failed" if cheap else "done")
    found = list(seal.files_faults(read_json(run.path / "result.json") or {}, run.path, deep=True))
    assert len(found) == 1 and found[0].startswith(name)


def test_a_result_of_an_earlier_version_counts(run: RunFolder) -> None:
    record = read_json(run.path / "result.json") or {}
    write_json(run.path / "result.json", {k: v for k, v in record.items() if k not in ("digest", "files")})
    (run.path / "final.ckpt").unlink()
    found = run.result()
    assert run.state() == "done" and found is not None and not seal.is_sealed(found)


def test_a_result_names_no_file_outside_its_folder(run: RunFolder) -> None:
    record = read_json(run.path / "result.json") or {}
    record["files"] = {"../secret.json": {"bytes": 1, "sha256": ""}}
    write_json(run.path / "result.json", seal.sealed(record))
    assert "outside its folder" in run.damage()


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"suite": 1}', None])
def test_a_damaged_specification_beside_a_whole_result_costs_no_training(text: str | None, run: RunFolder) -> None:
    path = run.path / "spec.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert run.spec() is None and run.state() == "done" and not run.claim(SPEC)
    assert run.mend(SPEC) and run.spec() == SPEC and not run.mend(SPEC)


def test_a_specification_that_hashes_to_something_else_is_damaged(run: RunFolder) -> None:
    record = read_json(run.path / "spec.json") or {}
    write_json(run.path / "spec.json", {**record, "trainer": {"steps": 9}})
    assert run.spec() is None
    write_json(run.path / "spec.json", {**record, "local": {"workers": 9}})
    assert run.spec() is not None, "what does not decide the result is not hashed"


def test_training_anew_keeps_the_damaged_result(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.path / "result.json"
    path.write_text(path.read_text().replace("0.1", "0.9"))
    damaged = path.read_bytes()
    assert run.claim(SPEC) and run.state() == "running", "a retry claims it"
    assert not path.exists() and (run.path / "result.damaged.json").read_bytes() == damaged
    assert "is kept as result.damaged.json" in capsys.readouterr().out
    run.release()
    assert run.state() != "failed", "an interrupted retry resumes without being asked again"


@pytest.mark.parametrize("content", ["", "{", "[]", "\0", '"E"'])
def test_a_failure_whose_reason_is_lost_stays_a_failure(content: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    assert run.claim(SPEC)
    run.fail({"type": "E", "message": "m"})
    (run.path / "error.json").write_text(content)
    assert run.state() == "failed" and "the reason is lost" in (run.error() or {})["message"]
    (run.path / "error.json").write_text("{}")
    assert run.state() == "failed"
