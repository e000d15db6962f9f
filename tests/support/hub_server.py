"""A small stand-in for the Hugging Face Hub on loopback: what its client needs to create a repository and to commit."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubServer:
    """Server and record in one.

    Attributes:
        trouble: Answer per part of a path, for example ``{"commit": 500}``: a status, or ``0`` for no answer at all.
        made: What was asked for every new repository.
        files: Content of every committed file.
        commits: First line of the message of every commit.
        asked: Paths of all requests.
        tokens: Authorisation of all requests to the API.
    """

    def __init__(self) -> None:
        self.trouble: dict[str, int] = {}
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self._large: dict[str, bytes] = {}
        self._released = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        """Lets requests that hang end, and stops."""
        self._released.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Returns the answer to a request."""
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return {"url": f"{self.url}/{self.made[-1]['organization']}/{self.made[-1]['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            large = [(file["path"], file["path"].endswith((".safetensors", ".pt2", ".onnx"))) for file in asked]
            return {"files": [{"path": p, "uploadMode": mode[lfs], "shouldIgnore": False} for p, lfs in large]}
        if path.endswith("/info/lfs/objects/batch"):
            upload = {"upload": {"href": f"{self.url}/large/"}}
            objects = json.loads(body)["objects"]
            return {
                "transfer": "basic",
                "objects": [
                    {**o, "actions": {"upload": {"href": upload["upload"]["href"] + o["oid"]}}} for o in objects
                ],
            }
        if path.startswith("/large/"):
            self._large[path.removeprefix("/large/")] = body
        if "/commit/" in path:
            return self._commit([json.loads(line) for line in body.splitlines()])
        return {}

    def _commit(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for line in lines:
            about = line["value"]
            if line["key"] == "header":
                self.commits.append(about["summary"])
            if line["key"] == "file":
                self.files[about["path"]] = base64.b64decode(about["content"])
            if line["key"] == "lfsFile":
                self.files[about["path"]] = self._large[about["oid"]]
        return {"commitUrl": f"{self.url}/me/net/commit/1", "commitOid": "1"}

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                server.asked.append(path)
                if path.startswith("/api"):
                    server.tokens.add(self.headers.get("Authorization"))
                status = next((code for part, code in server.trouble.items() if part in path), 200)
                if status == 0:
                    server._released.wait()
                    self.close_connection = True
                    return
                answer = server.answer(path, body) if status == 200 else {"error": "out of order"}
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = handle_one

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def hub() -> Iterator[HubServer]:
    """Runs a server in a thread for as long as the block lasts."""
    server = HubServer()
    threading.Thread(target=server.http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.close()
