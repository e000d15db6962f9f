"""A stand-in for the Hugging Face Hub on loopback from which the real clients read data sets and encoders."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest
import yaml
from huggingface_hub import constants

COMMIT = "1" * 40


class ReadableHub:
    """Server of repositories.

    Attributes:
        repositories: ``datasets/owner/name`` or ``models/owner/name`` -> content by path.
        broken: Ending of a path -> bytes of the file that come before the connection is closed, however often.
        asked: Method and path of all requests.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = {name: dict(files) for name, files in repositories.items()}
        self.broken: dict[str, int] = {}
        self.asked: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def about(self, name: str, rest: list[str], query: dict[str, list[str]]) -> Any:
        """Returns what the API says about a repository: its files, some of them, or itself."""
        files = self.repositories[name]
        listed = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]
        if rest[:1] == ["tree"]:
            folders = {path.rpartition("/")[0] for path in files} - {""}
            listed += [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in folders]
            return [one for one in listed if str(one["path"]).rpartition("/")[0] == "/".join(rest[2:])]
        if rest[:1] == ["paths-info"]:
            return [one for one in listed if one["path"] in query.get("paths", [])]
        siblings = [{"rfilename": path} for path in files]
        return {"id": name.partition("/")[2], "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}

    def rest(self, path: str, start: int) -> int | None:
        """Returns how many bytes behind ``start`` come before the connection breaks off; None if it does not."""
        most = next((bytes_ for ending, bytes_ in self.broken.items() if path.endswith(ending)), None)
        return None if most is None else max(0, most - start)

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                server.asked.append(f"{self.command} {self.path}")
                parts = unquote(urlparse(self.path).path).strip("/").split("/")
                if parts[0] == "api":
                    self.answer_api(parts[1:], parse_qs(body))
                else:  # Names of models have no prefix.
                    parts = parts if parts[0] == "datasets" else ["models", *parts]
                    self.answer_file("/".join(parts[:3]), "/".join(parts[5:]))

            do_GET = do_POST = do_HEAD = handle_one

            def answer_api(self, parts: list[str], query: dict[str, list[str]]) -> None:
                name = "/".join(parts[:3])
                if name not in server.repositories:
                    self.refuse("RepoNotFound")
                else:
                    found = server.about(name, parts[3:], query)
                    self.send(json.dumps(found).encode(), {"Content-Type": "application/json"})

            def answer_file(self, name: str, path: str) -> None:
                content = server.repositories.get(name, {}).get(path)
                if content is None:
                    self.refuse("EntryNotFound" if name in server.repositories else "RepoNotFound")
                else:
                    mark = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                    start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
                    part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
                    self.send(content[start:], mark | part, server.rest(path, start), status=206 if start else 200)

            def refuse(self, code: str) -> None:
                self.send(b"{}", {"X-Error-Code": code}, status=404)

            def send(
                self, content: bytes, headers: Mapping[str, str], most: int | None = None, *, status: int = 200
            ) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[:most])
                    self.close_connection = most is not None

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def readable_hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[ReadableHub]:
    """Runs a server in a thread for as long as the block lasts."""
    server = ReadableHub(repositories)
    threading.Thread(target=server.http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def repository_of(configs: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the files of a data set with several configurations, in the layout of the Hub.

    Args:
        configs: Configuration -> `datasets.DatasetDict`.
    """
    files: dict[str, bytes] = {}
    about, infos = [], []
    for config, splits in configs.items():
        for split, rows in splits.items():
            buffer = io.BytesIO()
            rows.to_parquet(buffer)
            files[f"{config}/{split}-00000-of-00001.parquet"] = buffer.getvalue()
        data_files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        about.append({"config_name": config, "data_files": data_files})
        features = next(iter(splits.values())).features
        infos.append({"config_name": config, "features": features._to_yaml_list()})
    card = yaml.safe_dump({"configs": about, "dataset_info": infos})
    return {"README.md": f"---\n{card}---\n".encode(), **files}


def use(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Points the clients at a server, as ``HF_ENDPOINT`` and ``HF_HUB_CACHE`` do when they are imported."""
    import datasets

    form = f"{url}/{{repo_id}}/resolve/{{revision}}/"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{form}{{filename}}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # Its protocol is that of a library in Rust.
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", f"{url}/datasets{form.removeprefix(url)}{{path}}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # The clients wait for 25 seconds between attempts.
