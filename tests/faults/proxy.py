"""An HTTP proxy before the S3 server, on which the wire and the server's answers fail as told.

    client ──▶ FaultProxy ── kind of request? a fault for it? ──▶ S3 server
                  └── 500, 503, reset, no answer, lost answer, half an answer

The Host header goes on as the client sent it, so that its signature holds.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Fault = Literal["500", "503", "reset", "silence", "reset after", "lost answer", "half an answer"]
"""What happens instead of the answer. The last three let the server do what it was asked."""

CODES = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Slow Down", "SlowDown")}


class FaultProxy:
    """`fail(fault, kind, times)` arms it; `met` counts what has happened; kinds are those of `kind_of`."""

    def __init__(self, endpoint: str) -> None:
        at = urlsplit(endpoint)
        self._upstream = (at.hostname or "", at.port or 80)
        self._lock = threading.Lock()
        self._armed: dict[str, tuple[Fault, int, int]] = {}
        self._every: tuple[Fault, int, int] | None = None
        self.met: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self._healed = threading.Event()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def fail(self, fault: Fault, kind: str, times: int = 1, after: int = 0) -> None:
        """Let the next requests of a kind meet a fault, `after` so many that do not."""
        self._healed.clear()
        with self._lock:
            self._armed[kind] = (fault, times, after)

    def fail_each_kind(self, fault: Fault, times: int = 1) -> None:
        """Let the first requests of every kind meet a fault."""
        self._healed.clear()
        with self._lock:
            self._every = (fault, times, 0)

    def heal(self) -> None:
        """Let nothing fail any more; who waits in silence is cut off."""
        with self._lock:
            self._armed.clear()
            self._every = None
        self._healed.set()

    def close(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, kind: str) -> Fault | None:
        with self._lock:
            self.seen[kind] += 1
            fault, left, spared = self._armed.get(kind, self._every or (None, 0, 0))
            if fault is None or left == 0:
                return None
            self._armed[kind] = (fault, left if spared else left - 1, max(0, spared - 1))
            if spared:
                return None
            self.met[kind] += 1
            return fault

    def forward(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection(*self._upstream, timeout=300)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def be_silent(self) -> None:
        self._healed.wait(300)


def kind_of(method: str, path: str, headers: Any) -> str:
    """Name a request by what the loaders make it for."""
    url = urlsplit(path)
    query = parse_qs(url.query, keep_blank_values=True)
    parts = {"/origin.json": "origin", "/_ledger/log/": "pointer", "/_ledger/entries/": "entry", "/_ledger/": "note"}
    what = next((name for part, name in parts.items() if part in url.path), "file")
    if "list-type" in query:
        return "list"
    if "uploads" in query:
        return "begin upload"
    if "uploadId" in query:
        return {"PUT": "put part", "POST": "complete upload", "DELETE": "abort upload"}[method]
    verb = "put new" if method == "PUT" and headers.get("If-None-Match") else method.lower()
    return f"{verb} {what}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def shutdown_request(self, request: Any) -> None:
        """Close only: a farewell before it would make an end in good order of every reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.fault_for(kind_of(self.command, self.path, self.headers))
        if fault == "reset":
            self._reset()
        elif fault == "silence":
            self.owner.be_silent()
            self._reset()
        elif fault in CODES:
            line, code = CODES[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
            self._answer(int(line[:3]), {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else text)
        else:
            status, headers, data = self.owner.forward(self.command, self.path, self.headers, body)
            if fault == "lost answer":
                self.close_connection = True
                return
            if fault == "reset after":
                self._reset()
                return
            self._answer(status, headers, data, half=fault == "half an answer")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _answer(self, status: int, headers: Any, data: bytes, half: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.wfile.flush()
            self._reset()

    def _reset(self) -> None:
        """Close the connection with an RST when this returns, not in good order."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
