"""A small stand-in for a W&B server on loopback: what the real client needs to log runs, send files and save views.

It can be told to fail with 500 or to answer nothing, and it keeps everything that it receives.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "tester"


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *args: Any) -> None:
        """Says nothing of clients that hang up."""


class WandbServer:
    """Server and record in one.

    Attributes:
        trouble: ``""``, ``"500"`` for every request, ``"half"`` for every request that brings something, or ``"hang"``
            for no answer at all.
        then: Trouble that begins once rows of any run have arrived.
        deaf: Whether rows are kept, but their sender gets no answer.
        refused: Ids of runs that may not be created.
        runs: What `upsertBucket` said of every run, by id.
        rows: History of every run: line number -> row. A line that is sent twice is there once.
        summaries: Last summary of every run.
        complete: Ids of runs that told that they are complete.
        files: Names of the files of every run.
        artifacts: What was asked for every artifact.
        views: Saved views by name.
        reports: Saved reports by id.
        operations: Names of all GraphQL operations, in order.
    """

    def __init__(self) -> None:
        self.trouble = self.then = ""
        self.deaf, self.refused = False, set[str]()
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.summaries: dict[str, dict[str, Any]] = {}
        self.complete: set[str] = set()
        self.files: dict[str, set[str]] = defaultdict(set)
        self.artifacts: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.lock, self.released = threading.Lock(), threading.Event()
        self.http = _Quiet(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def history(self, run: str) -> list[dict[str, Any]]:
        """Returns the rows of a run in their order."""
        return [row for _, row in sorted(self.rows[run].items())]

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Returns the data of a GraphQL operation."""
        name = (re.search(r"(?:query|mutation)\s+(\w+)", query) or ["", "?"])[1]
        self.operations.append(name)
        known = {
            "Viewer": self._viewer,
            "GetDefaultEntity": self._viewer,
            "UpsertBucket": self._upsert,
            "RunResumeStatus": self._resume,
            "CreateRunFiles": self._files,
            "UpsertView2": self._save_view,
            "View": self._view,
            "upsertView": self._save_report,
            "GetProjects": self._projects,
            "CreateArtifact": self._artifact,
            "ArtifactType": lambda given: {"project": {"artifact": None}},
        }
        return known[name](given) if name in known else {}

    def _viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        user = {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
        return {"viewer": user}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["name"] in self.refused:
            raise ValueError("this run may not be created")
        new = given["name"] not in self.runs
        self.runs.setdefault(given["name"], {}).update({key: v for key, v in given.items() if v is not None})
        project = {"name": given.get("project") or "mtlbench", "entity": {"name": ENTITY, "id": "2"}}
        bucket = {
            "id": f"storage-{given['name']}",
            "name": given["name"],
            "displayName": given.get("displayName"),
            "project": {"id": "3", **project},
            "historyLineCount": len(self.rows[given["name"]]),
            "sweepName": None,
            "config": given.get("config"),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _resume(self, given: dict[str, Any]) -> dict[str, Any]:
        run = given["name"]
        if run not in self.runs:
            return {"model": {"bucket": None}}
        rows = self.history(run)
        bucket = {
            "id": f"storage-{run}",
            "name": run,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(rows[-1])] if rows else []),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(self.summaries.get(run, {})),
            "config": self.runs[run].get("config") or "{}",
            "tags": self.runs[run].get("tags") or [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"bucket": bucket}}

    def _files(self, given: dict[str, Any]) -> dict[str, Any]:
        run = given.get("run") or given.get("runName") or ""
        self.files[run] |= set(given["files"])
        urls = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": urls}}

    def _artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.artifacts.append(str(given["input"]))
        latest = {"id": "6", "versionIndex": 0}
        artifact = {"id": "5", "state": "COMMITTED", "artifactSequence": {"id": "7", "latestArtifact": latest}}
        return {"createArtifact": {"artifact": artifact}}

    def _save_view(self, given: dict[str, Any]) -> dict[str, Any]:
        inserted = given["name"] not in self.views
        if not inserted and given.get("id") != self.views[given["name"]]["id"]:
            raise ValueError("a view with this name is there already")
        saved = {"id": f"view-{len(self.views)}" if inserted else given["id"]}
        self.views[given["name"]] = {**given, **saved}
        return {"upsertView": {"view": {**saved, "name": given["name"]}, "inserted": inserted}}

    def _view(self, given: dict[str, Any]) -> dict[str, Any]:
        found = [view for name, view in self.views.items() if name == given["viewName"]]
        nodes = [{"node": {key: view[key] for key in ("id", "displayName", "spec")}} for view in found]
        return {"project": {"allViews": {"edges": nodes}} if self.runs or self.views else None}

    def _projects(self, given: dict[str, Any]) -> dict[str, Any]:
        project = {
            "id": "3",
            "name": "mtlbench",
            "entityName": ENTITY,
            "createdAt": "2026-01-01T00:00:00Z",
            "isBenchmark": False,
            "user": None,
        }
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [{"node": project, "cursor": "1"}], "pageInfo": page}}

    def _save_report(self, given: dict[str, Any]) -> dict[str, Any]:
        saved = given["id"] or f"draft-{len(self.reports)}"
        self.reports[saved] = given
        project = {"id": "3", "name": given["projectName"], "entityName": given["entityName"]}
        kept = {key: given[key] for key in ("type", "name", "displayName", "description", "spec")}
        return {
            "upsertView": {
                "view": {**kept, "id": saved, "project": project, "updatedAt": "2026-01-01T00:00:00Z"},
                "inserted": True,
            }
        }

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """Takes what a client streams of a run's files."""
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for number, line in enumerate(chunk["content"], chunk["offset"]):
                    self.rows[run][number] = json.loads(line)
            if name == "wandb-summary.json":
                self.summaries[run] = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            self.complete.add(run)
        if self.rows[run] and self.deaf:
            raise ConnectionError("the answer is lost")
        if self.rows[run] and self.then:
            self.trouble = self.then

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if server.trouble == "hang":
                    server.released.wait()
                    self.close_connection = True
                    return
                if server.trouble == "500" or (server.trouble == "half" and body):
                    self.reply({"error": "out of order"}, 500)
                    return
                with server.lock:
                    self.reply(*self.route(body))

            do_GET = do_POST = do_PUT = do_OPTIONS = do_HEAD = handle_one

            def route(self, body: bytes) -> tuple[dict[str, Any], int]:
                if self.path == "/graphql" and body:
                    asked = json.loads(body)
                    try:
                        return {"data": server.answer(asked["query"], asked.get("variables") or {})}, 200
                    except ValueError as error:
                        return {"errors": [{"message": str(error)}]}, 200
                if self.path.endswith("/file_stream"):
                    server.stream(self.path.split("/")[-2], json.loads(body))
                return {}, 200

            def reply(self, record: dict[str, Any], code: int) -> None:
                text = json.dumps(record).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def serving() -> Iterator[WandbServer]:
    """Runs a server in a thread for as long as the block lasts."""
    server = WandbServer()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        server.http.server_close()
