"""The live page: it follows the files, and nothing else is served, to nobody else."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtlbench import cli
from mtlbench.cli.serve import HOST, REFRESH, Live, server_of
from mtlbench.errors import StoreError
from tests.support.fake_study import plan, result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(plan(["uniform", "pcgrad"], ["semseg"], [0])))
    return folder


def finish(folder: Path, run: str, score: float) -> None:
    label = run.partition("-")[0]
    entry = {"label": label, "method": label, "seed": 0}
    (folder / run).mkdir()
    record = result(run, entry, {"semseg": {"semseg_miou@1": score}})
    (folder / run / "result.json").write_text(json.dumps(record))


def test_the_page_follows_the_files_but_not_at_every_request(folder: Path) -> None:
    now = [0.0]
    live = Live(folder, lambda: now[0])
    text, finished = live.page()
    assert "2 unfinished" in text and not finished
    finish(folder, "uniform-s0-0a1b", 0.4321)
    assert live.page()[0] == text, "a second window within seconds costs nothing"
    now[0] = REFRESH
    text, finished = live.page()
    assert "0.432" in text and "1 unfinished" in text and not finished
    finish(folder, "pcgrad-s0-0a1b", 0.5)
    now[0] = 2 * REFRESH
    text, finished = live.page()
    assert finished and "unfinished" not in text


@pytest.fixture
def port() -> Iterator[int]:
    answers = iter([("<p>running</p>", False), ("<p>ended</p>", True), StoreError("damaged <b>")])

    def page() -> tuple[str, bool]:
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    with server_of(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert server.server_address[0] == HOST
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, path: str = "/", host: str = "", method: str = "GET") -> tuple[int, str, str | None]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"localhost:{port}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers.get("Refresh")
    connection.close()
    return found


def test_a_browser_asks_again_until_all_runs_have_ended(port: int) -> None:
    assert ask(port) == (200, "<p>running</p>", str(REFRESH))
    assert ask(port) == (200, "<p>ended</p>", None)
    status, text, _ = ask(port)
    assert status == 503 and "damaged &lt;b&gt;" in text


def test_nothing_else_is_served_and_to_no_other_name(port: int) -> None:
    for path in ("/study.json", "/../study.json", "/?x", "/%2e%2e/"):
        assert ask(port, path)[0] == 404
    assert ask(port, host=f"evil.example:{port}")[0] == 403
    assert ask(port, host="localhost")[0] == 403, "a name without a port is not what a browser sends here"
    assert ask(port, method="POST")[0] == 501


def test_a_port_that_is_taken_or_impossible_is_refused(folder: Path, port: int, capsys: pytest.CaptureFixture) -> None:
    for wrong in (port, 99999):
        assert cli.main(["serve", "scenes", "--results", str(folder.parent), "--port", str(wrong)]) == 2
        assert "Choose another with --port" in capsys.readouterr().err
