"""The calls that huggingface_hub makes to upload a folder, answered on this machine; it can be told to fail."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_plantedTokenThatNobodyMaySee"


class Hub(ThreadingHTTPServer):
    """One repository. failing: by a part of a path, the status to answer with; 0 breaks the connection."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.failing: dict[str, int] = {}
        self.repos: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.commits: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route(b"")

    def do_PUT(self) -> None:
        self._route(self._body())

    do_POST = do_PUT

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = b""
        while size := int(self.rfile.readline(), 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def _route(self, body: bytes) -> None:
        hub, path = self.server, self.path
        hub.calls.append(path)
        if not path.startswith("/store/"):  # a store has addresses that are secrets themselves, and no token
            hub.tokens.add(self.headers.get("Authorization"))
        for part, status in hub.failing.items():
            if part in path:
                if status == 0:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._answer({"error": "no"}, status)
                return
        self._answer(self._reply(path, body))

    def _reply(self, path: str, body: bytes) -> Any:
        hub = self.server
        if path.startswith("/store/"):
            hub.stored[path.removeprefix("/store/")] = body
            return {}
        asked = {} if path.endswith("/commit/main") or not body else json.loads(body)
        if path == "/api/repos/create":
            hub.repos["me/model"] = bool(asked.get("private") or asked.get("visibility") == "private")
            return {"url": f"{hub.url}/me/model"}
        if path.startswith("/api/validate-yaml"):
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            return {"files": [self._mode(file) for file in asked["files"]]}
        if path.endswith("/objects/batch"):
            return {"transfer": "basic", "objects": [self._place(each) for each in asked["objects"]]}
        if path.endswith("/commit/main"):
            return self._commit([json.loads(line) for line in body.splitlines()])
        return {"id": "me/model", "sha": "0" * 40, "siblings": []}

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
        known = self.server.files.get(file["path"])
        oid = None
        if known is not None:
            git = hashlib.sha1(b"blob %d\0" % len(known) + known).hexdigest()
            oid = hashlib.sha256(known).hexdigest() if mode == "lfs" else git
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.server.stored:
            return asked
        return asked | {"actions": {"upload": {"href": f"{self.server.url}/store/{asked['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value)
            elif line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.stored[value["oid"]]
        place = f"{self.server.url}/me/model/commit/1"
        return {"success": True, "commitOid": "1" * 40, "commitUrl": place, "hookOutput": "", "pullRequestUrl": None}

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def stand_in() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
