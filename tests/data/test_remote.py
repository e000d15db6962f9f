"""Files below a URL over a loopback server: another attempt after a passing fault, an error with the remedy else."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtlbench.data import remote as module
from mtlbench.data.remote import Remote, checksum
from mtlbench.errors import DataError

CONTENT = bytes(range(256)) * 20


class Server(http.server.ThreadingHTTPServer):
    """Answers requests with what ``answers`` holds, the last one again and again: a status, or bytes that break off."""

    answers: list[int | bytes]
    asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        self.send_response(answer if isinstance(answer, int) else 200)
        body = CONTENT if answer == 200 else b"" if isinstance(answer, int) else answer
        self.send_header("Content-Length", str(len(CONTENT) if body else 0))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with Server(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield found
        found.shutdown()


def read(server: Server, *answers: int | bytes) -> bytes:
    server.answers, server.asked = list(answers), 0
    return Remote(f"http://127.0.0.1:{server.server_port}/").read("train/a.npy", checksum(CONTENT))


WRONG = CONTENT[:-1] + b"?"


def test_a_passing_fault_is_tried_again(server: Server) -> None:
    assert read(server, 503, CONTENT[:100], WRONG, 429, 200) == CONTENT
    assert server.asked == 5


@pytest.mark.parametrize(
    ("answer", "asked", "fact"),
    [
        (404, 1, r"train/a.npy: FileNotFoundError.*\(1 attempt"),
        (403, 1, r"403.*\(1 attempt"),
        (503, 5, r"503.*\(5 attempt"),
        (CONTENT[:100], 5, r"\(5 attempt"),
        (WRONG, 5, r"5120 bytes came, whose SHA-256 is not the one that was written, [0-9a-f]{12}….*\(5 attempt"),
    ],
    ids=["absent", "forbidden", "overloaded", "truncated", "changed"],
)
def test_a_lasting_fault_names_file_fact_and_remedy(server: Server, answer: int | bytes, asked: int, fact: str) -> None:
    with pytest.raises(DataError, match=r"must be there, complete and unchanged. http.*" + fact + ".*Check address, c"):
        read(server, answer)
    assert server.asked == asked


def test_a_url_that_nothing_opens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'nowhere://x: Protocol not known: nowhere.*"mtlbench\[s3\]"'):
        Remote("nowhere://x").read("index.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Check address, rights and space; the same command goes on"):
        Remote(str(tmp_path / "file")).write("train/index.json", b"")


def test_written_files_are_read(tmp_path: Path) -> None:
    for url in (str(tmp_path), f"file://{tmp_path}/more", "memory://shards/test"):
        assert not Remote(url).exists("train/a")
        Remote(url).write("train/a", CONTENT)
        assert Remote(url).exists("train/a") and Remote(url).read("train/a", checksum(CONTENT)) == CONTENT
