"""Uploads with the real client to a stand-in for the Hugging Face Hub: complete, refused, broken, silent and absent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from mtlbench.errors import StoreError
from mtlbench.training import hub
from tests.support.hub_server import HubServer
from tests.support.hub_server import hub as serving

FILES = {
    "README.md": b"---\nlibrary_name: mtlbench\n---\n# A network\n",
    "model.json": b"{}",
    "model.safetensors": b"1" * 99,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # Its protocol is that of a library in Rust.
        monkeypatch.setattr(hub, "SILENCE", 0.3)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("not part of the export")
    return folder


def test_an_upload_is_one_commit_of_the_exported_files_to_a_private_repository(server: HubServer, shared: Path) -> None:
    assert hub.push(shared, "me/net", list(FILES)) == f"{server.url}/me/net"
    assert server.files == FILES and server.commits == ["Upload shared"]
    assert server.made == [{"name": "net", "organization": "me", "visibility": "private"}]
    assert "Bearer hf_test" in server.tokens


@pytest.mark.parametrize(
    ("trouble", "facts"),
    [
        ({"create": 401, "api/models": 401}, ("may write to me/net", "401 Unauthorized", "hf auth login")),
        ({"preupload": 403}, ("may write to me/net", "403 Forbidden", "hf auth login")),
        ({"create": 500}, ("did not take the files", "500 Internal Server Error")),
        ({"commit": 500}, ("did not take the files", "500 Internal Server Error")),
        ({"create": 0}, ("did not take the files", "timed out")),
        ({"commit": 0}, ("did not take the files", "timed out")),
    ],
    ids=str,
)
def test_a_failed_upload_says_why_and_loses_nothing(
    server: HubServer, shared: Path, trouble: dict[str, int], facts: tuple[str, ...]
) -> None:
    server.trouble = trouble
    with pytest.raises(StoreError) as failed:
        hub.push(shared, "me/net", list(FILES))
    for fact in (*facts, server.url, f"{shared} is complete", f"hf upload me/net {shared} --private"):
        assert fact in str(failed.value)
    assert ("hf auth login" in str(failed.value)) == facts[0].startswith("may write")
    assert not server.files and all((shared / name).read_bytes() == content for name, content in FILES.items())


def test_no_server_at_all_is_an_error_of_its_own(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match="did not take the files. ConnectError: .*refused.* is complete"):
        hub.push(shared, "me/net", list(FILES))
