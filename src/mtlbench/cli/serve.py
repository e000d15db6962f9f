"""``mtlbench serve``: the report of a study as a page that follows a running bench, on this machine only."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mtlbench.cli.arguments import add_results, add_suite
from mtlbench.cli.stored import study_of
from mtlbench.errors import ExitCode, MtlbenchError
from mtlbench.runs.store import read_json
from mtlbench.study.record import states_of

HOST = "127.0.0.1"
"""The page is for whoever sits at this machine. To see it from elsewhere, forward the port over SSH."""

PORT = 8484
REFRESH = 20
"""Seconds after which a browser asks again while runs are unfinished; a page is not written anew more often."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds suite, results folder and port."""
    add_suite(parser)
    add_results(parser)
    parser.add_argument("--port", type=int, default=PORT, help=f"port on {HOST} (default: {PORT})")


def run(arguments: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    root, _ = study_of(Path(arguments.results), arguments.suite)
    try:
        server = server_of(Live(root).page, arguments.port)
    except (OSError, OverflowError) as error:
        print(
            f"mtlbench: The page needs a free port. Port {arguments.port}: {error}. Choose another with --port.",
            file=sys.stderr,
        )
        return ExitCode.REFUSED
    print(f"Serving http://{HOST}:{server.server_address[1]}/ (stop with Ctrl-C)", flush=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return ExitCode.DONE


class Live:
    """The page of a study, written anew from its files at most every few seconds.

    Args:
        root: ``results/<suite>``.
        clock: Returns seconds.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._lock = threading.Lock()
        self._text, self._finished = "", False
        self._written = -float(REFRESH)

    def page(self) -> tuple[str, bool]:
        """Returns the page, and whether all runs have ended.

        Raises:
            StoreError: If the study cannot be read.
        """
        with self._lock:  # Two windows wait for the same page.
            if not self._text or self._clock() - self._written >= REFRESH:
                self._write()
                self._written = self._clock()
            return self._text, self._finished

    def _write(self) -> None:
        from mtlbench import report

        states = states_of(self._root, read_json(self._root / "study.json") or {"rows": []})
        self._text = report.page(self._root, states)
        self._finished = bool(states) and set(states.values()) <= {"done", "failed"}


def server_of(page: Callable[[], tuple[str, bool]], port: int) -> ThreadingHTTPServer:
    """Returns a server of one page on the loopback address.

    Args:
        page: Returns the page and whether it is final.
        port: Port; 0 chooses a free one.

    Raises:
        OSError: If the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site may point its name at this address and read the page through the reader's browser.
            name = (self.headers.get("Host") or "").rpartition(":")[0]
            if name not in (HOST, "localhost"):
                self.send_error(403, "The page is served to this machine alone")
            elif self.path != "/":
                self.send_error(404, "Nothing but the page is served")
            else:
                self._answer()

        def _answer(self) -> None:
            try:
                text, finished = page()
            except MtlbenchError as error:
                self.send_error(503, "The study cannot be read now", str(error))
                return
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            if not finished:
                self.send_header("Refresh", str(REFRESH))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing: a request every few seconds is no news."""

    return ThreadingHTTPServer((HOST, port), Handler)
