"""A hub on 127.0.0.1: the endpoints of huggingface.co that the download stage calls."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REPOSITORY = "someone/tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub holds, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    served: dict[str, bytes] = field(default_factory=dict)
    """Content that is served instead of the one announced."""
    hang_up_once: set[str] = field(default_factory=set)
    """Files whose first transfer stops half-way."""
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range header)"""
    tokens: set[str | None] = field(default_factory=set)

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {path.rsplit("/", 1)[1] for method, path, _ in self.requests if "/resolve/" in path}

    def sibling(self, name: str) -> dict[str, object]:
        """What the hub says of a file: LFS for weights, git blob for the rest."""
        data = self.files[name]
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 130}
        return entry


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        ranged = self.headers.get("Range")
        self.hub.requests.append((self.command, path, ranged))
        self.hub.tokens.add(self.headers.get("Authorization"))
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            siblings = [self.hub.sibling(name) for name in self.hub.files]
            info = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": REVISION, "siblings": siblings}
            self._send(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            return
        match = re.fullmatch(f"/{REPOSITORY}/resolve/{REVISION}/(.+)", path)
        if match is None or match[1] not in self.hub.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send_file(match[1], ranged, body)

    def _send_file(self, name: str, ranged: str | None, body: bool) -> None:
        entry = self.hub.sibling(name)
        lfs = entry.get("lfs")
        etag = lfs["sha256"] if isinstance(lfs, dict) else entry["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        data = self.hub.served.get(name, self.hub.files[name])
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(data[start:], headers, body, 206 if start else 200, name)

    def _send(
        self, data: bytes, headers: dict[str, str], body: bool, status: int = 200, name: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        if name in self.hub.hang_up_once:
            self.hub.hang_up_once.remove(name)
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that holds `files` in `REPOSITORY` at `REVISION`."""
    hub = Hub(files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
