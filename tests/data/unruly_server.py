"""A hub on the loopback, for tests: it serves what the libraries ask of the real one, and misbehaves on demand.

with UnrulyHub({"org/name": {"README.md": b"...", "data/0.parquet": b"..."}}) as hub:
    hub.faults["data/0.parquet"] = ["drop", "unavailable"]      # what befalls the next requests for its bytes
    hub.faults["api"] = ["unavailable"]                         # and those for facts about a repository
"""

import json
import socket
import struct
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STATUS = {"unauthorized": 401, "forbidden": 403, "gone": 404, "busy": 429, "broken": 500, "unavailable": 503}
STALL = 1.0
"""Seconds for which a stalled answer says nothing; the tests' time-out is half of it."""


class UnrulyHub(ThreadingHTTPServer):
    """Repositories by name, data sets and models alike, each its files by path, all at one commit and on `main`."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and Range of each request so far."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "UnrulyHub":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up on us are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    server: UnrulyHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/datasets/"):
            self._facts(path.removeprefix("api/datasets/").split("/"), body)
        elif path.startswith("api/models/"):
            self._facts(path.removeprefix("api/models/").split("/"), body)
        elif path.startswith("datasets/") or path.split("/")[2:3] == ["resolve"]:
            self._file(path.removeprefix("datasets/").split("/"))
        else:
            self._refuse(404, "")

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _facts(self, parts: list[str], body: bytes) -> None:
        """/ORG/NAME[/revision/REV], /ORG/NAME/tree/REV[/FOLDER], /ORG/NAME/paths-info/REV"""
        if self.server.faults["api"]:
            return self._misbehave(self.server.faults["api"].pop(0), b"{}", {})
        files = self.server.repositories.get("/".join(parts[:2]))
        verb, revision = parts[2:4] or ("revision", "main")
        if files is None:
            return self._refuse(401, "RepoNotFound")  # as the real one answers those who are not logged in
        if revision not in (COMMIT, "main"):
            return self._refuse(404, "RevisionNotFound")
        if verb == "revision":
            named = [{"rfilename": path} for path in files] if "/models/" in self.path else []
            return self._json({"id": "/".join(parts[:2]), "sha": COMMIT, "private": False, "siblings": named})
        if verb == "tree":
            found = self._tree("/".join(parts[4:]), files, recursive="recursive=true" in self.path.lower())
            return self._json(found) if found else self._refuse(404, "EntryNotFound")
        wanted = json.loads(body)["paths"]
        return self._json([_entry(path, files) for path in wanted if path in files])

    def _tree(self, folder: str, files: dict[str, bytes], recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        below = [path for path in files if path.startswith(prefix)]
        folders = {path[: i + len(prefix)] for path in below for i, c in enumerate(path[len(prefix) :]) if c == "/"}
        found = [_entry(path, files) for path in below] + [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders
        ]
        return [entry for entry in found if recursive or "/" not in entry["path"][len(prefix) :]]

    def _file(self, parts: list[str]) -> None:
        """/ORG/NAME/resolve/REV/PATH"""
        name, revision, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        files = self.server.repositories.get(name)
        if files is None:
            return self._refuse(401, "RepoNotFound")
        if revision not in (COMMIT, "main") or path not in files:
            return self._refuse(404, "EntryNotFound" if revision in (COMMIT, "main") else "RevisionNotFound")
        body, headers = files[path], {"ETag": f'"{len(files[path])}"', "X-Repo-Commit": COMMIT}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(body)) + 1, len(body))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(body)}"
            body = body[int(first) : end]
        if self.command == "GET" and self.server.faults[path]:
            return self._misbehave(self.server.faults[path].pop(0), body, headers)
        return self._send(206 if wanted else 200, body, headers)

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _misbehave(self, fault: str, body: bytes, headers: dict[str, str]) -> None:
        status, half = (206 if "Content-Range" in headers else 200), body[: len(body) // 2]
        match fault:
            case "fine":
                self._send(status, body, headers)
            case "refuse":  # nothing at all
                self._hang_up()
            case "drop":  # half the body, then the connection is reset
                self._send(status, half, headers, length=len(body))
                self._hang_up()
            case "end":  # half the body, then an orderly end, although more was promised
                self._send(status, half, headers, length=len(body))
                self.close_connection = True
            case "short":  # half the body, and nobody would know
                self._send(status, half, headers)
            case "stall":  # half the body, then silence
                self._send(status, half, headers, length=len(body))
                time.sleep(STALL)
                self.close_connection = True
            case "drip":  # all of it, but slowly
                self._send(status, b"", headers, length=len(body))
                step = max(1, len(body) // 20)
                for i in range(0, len(body), step):
                    self.wfile.write(body[i : i + step])
                    time.sleep(STALL / 30)
            case _:
                self._send(STATUS[fault], b"", {})

    def _hang_up(self) -> None:
        """Resets the connection rather than closing it."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _entry(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": "1" * 40, "size": len(files[path])}
