"""Data sets and encoders of a stand-in for the Hub: complete, absent, broken off, and without a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from data_modules.glue import PARTS
from data_modules.miniatures.glue import saved
from mtlbench.data import hub
from mtlbench.data.hub import HubSet, encoder_folder, is_repository
from mtlbench.errors import DataError, SuiteError
from tests.support.hub_reader import COMMIT, ReadableHub, readable_hub, repository_of, use

NEEDED = ("config.json", "model.safetensors")
SST2 = HubSet("nyu-mll/glue", "sst2", "none")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return repository_of({config: saved(PARTS[config], 60, 20) for config in ("sst2", "stsb")})


@pytest.fixture
def server(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadableHub]:
    encoder = {"config.json": b"{}", "model.safetensors": b"weights " * 99, "tokenizer.json": b"{}"}
    with readable_hub({"datasets/nyu-mll/glue": files, "models/me/small": encoder}) as server:
        use(monkeypatch, server.url, tmp_path / "cache")
        yield server


def kept(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*")] if root.exists() else []


def test_a_data_set_is_fetched_once_and_stored(server: ReadableHub, tmp_path: Path) -> None:
    assert SST2.obtain(tmp_path / "data")
    folder = SST2.path(tmp_path / "data")
    assert folder == tmp_path / "data" / "hub" / "nyu-mll--glue" / "sst2"
    found = datasets.load_from_disk(str(folder))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 60, "validation": 20, "test": 3}
    assert found["train"].features["label"].names == ["negative", "positive"]
    assert found["train"]["sentence"][1] == "train 0 1: 1 words" and found["test"]["label"][0] == -1
    asked = len(server.asked)
    assert not SST2.obtain(tmp_path / "data") and len(server.asked) == asked
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["hub"]


@pytest.mark.parametrize(
    ("repository", "config", "message"),
    [
        ("nyu-mll/gleu", "sst2", "has no data set 'nyu-mll/gleu'.*Did you mean 'nyu-mll/glue'.*hf auth login"),
        ("nyu-mll/glue", "sst", "Unknown configuration of nyu-mll/glue 'sst'. Did you mean 'sst2'"),
        ("nyu-mll/glue", "", "Unknown configuration of nyu-mll/glue ''.*Known: sst2, stsb"),
        ("../glue", "", "name owner/name. Found '../glue'"),
    ],
)
def test_a_data_set_that_is_not_there(
    repository: str, config: str, message: str, server: ReadableHub, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as found:
        HubSet(repository, config).obtain(tmp_path / "data")
    assert "\n" not in str(found.value) and not kept(tmp_path / "data")


def test_a_connection_that_breaks_off_leaves_nothing_and_the_next_attempt_succeeds(
    server: ReadableHub, tmp_path: Path
) -> None:
    server.broken = {"validation-00000-of-00001.parquet": 500}
    with pytest.raises(DataError, match="nyu-mll/glue sst2 must come whole from http.*Nothing of it is kept") as found:
        SST2.obtain(tmp_path / "data")
    assert "save_to_disk" in str(found.value) and not kept(tmp_path / "data")
    server.broken = {}
    assert SST2.obtain(tmp_path / "data")
    assert len(datasets.load_from_disk(str(SST2.path(tmp_path / "data")))["validation"]) == 20


def closed() -> str:
    """Returns an address that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_without_a_network_the_message_says_how_to_bring_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, closed(), tmp_path / "cache")
    target = SST2.path(tmp_path / "data")
    with pytest.raises(DataError, match="comes from http://127.0.0.1:.*which does not answer") as found:
        SST2.obtain(tmp_path / "data")
    assert "load_dataset('nyu-mll/glue', 'sst2').save_to_disk('saved')" in str(found.value)
    assert str(found.value).endswith(f"copy the folder saved to {target}.") and not kept(tmp_path / "data")
    # What the message says works.
    saved(PARTS["sst2"], 60, 20).save_to_disk(str(target))
    assert not SST2.obtain(tmp_path / "data")
    with pytest.raises(SuiteError, match="does not answer. .*hf download me/small config.json model.safetensors"):
        encoder_folder("me/small", NEEDED)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked again at once"))
    with pytest.raises(SuiteError, match="does not answer"):
        encoder_folder("me/other", NEEDED)


def test_the_files_of_an_encoder_are_fetched_once_and_completed(server: ReadableHub) -> None:
    server.broken = {"model.safetensors": 100}
    with pytest.raises(SuiteError, match="model.safetensors of me/small must come whole.*Try again"):
        encoder_folder("me/small", NEEDED)
    server.broken = {}
    folder = encoder_folder("me/small", NEEDED)
    assert folder.name == COMMIT and (folder / "model.safetensors").read_bytes() == b"weights " * 99
    asked = len(server.asked)
    assert encoder_folder("me/small", NEEDED) == folder and len(server.asked) == asked
    assert encoder_folder("me/small", ["tokenizer.json"]) == folder and len(server.asked) > asked


def test_an_encoder_that_is_not_there(server: ReadableHub) -> None:
    with pytest.raises(SuiteError, match="no encoder 'google-bert/bert-base'.*Did you mean 'google-bert/bert-base-unc"):
        encoder_folder("google-bert/bert-base", NEEDED)
    with pytest.raises(SuiteError, match="holds vocab.txt. me/small has no vocab.txt"):
        encoder_folder("me/small", ["vocab.txt"])


def test_a_folder_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    names = ["me/small", "models/small", "./me/small", "small", "/me/small", "a/b/c", "me/"]
    assert [name for name in names if is_repository(name)] == ["me/small"]


def test_a_library_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r'datasets, which is not installed.*pip install "mtlbench\[text\]"'):
        SST2.obtain(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(SuiteError, match=r'huggingface_hub, which is not installed.*pip install "mtlbench\[text\]"'):
        hub.encoder_folder("me/small", NEEDED)
