"""A small HTTP server for a single page, on the loopback address only.

A request must contain the secret that is part of the printed address. A page from a different
origin cannot access the run, even in a browser on this machine. `Host` and `Origin` must name this
server, which prevents DNS rebinding. A request that asks a question or stops the run must have the
content type application/json. Browsers send such a request to a different origin only if that
origin allows it, which this server never does.

Invalid requests receive an empty response. The status is 403 for a missing or wrong secret, a
different origin or a wrong content type; 404 for any other path or method; 413 for a missing length
or a body that is too large; and 400 for a body that is not a JSON object.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nbllama.report.live.state import LiveState
from nbllama.report.page.template import policy

HOST = "127.0.0.1"
WAIT = 20.0  # seconds for which a request for updates stays open
MOST_BODY = 16_384  # bytes
MOST_CONNECTIONS = 16
MOST_LINE = 2048  # bytes; limit for the request line
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NEWS = re.compile(r"data\?after=(0|[1-9][0-9]{0,15})")
_SECRET_PATH = re.compile(r"/([A-Za-z0-9_-]+)/(.*)", re.DOTALL)


class LiveServer:
    """Serve a `LiveState` until `close` is called; the threads end with the program.

    `address` is the URL to open in a browser, including the secret. Raises `OSError` if the port is
    in use.
    """

    def __init__(self, state: LiveState, port: int = 0) -> None:
        self.state = state
        self.secret = secrets.token_urlsafe(24)
        self._server = _Server(state, self.secret, port)
        self.port = int(self._server.server_address[1])
        self.address = f"http://{HOST}:{self.port}/{self.secret}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="nbllama-live", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Inform the readers that the run has ended, and stop listening."""
        self.state.end()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, state: LiveState, secret: str, port: int) -> None:
        self.state, self.secret = state, secret
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((HOST, port), _Handler)
        own = self.server_address[1]
        self.hosts = {f"{name}:{own}" for name in (HOST, "localhost")}

    def server_bind(self) -> None:
        """Bind the socket without looking up the host name of this machine."""
        if os.name == "posix":  # elsewhere, another program could listen on the same port
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for each connection, up to a limit."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing, because a closed connection is not an error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds within which a request must arrive

    def handle_one_request(self) -> None:
        """Handle one request, and then close the connection."""
        try:
            line = self.rfile.readline(MOST_LINE + 1)
            self.raw_requestline = line
            if not line or len(line) > MOST_LINE:
                self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
                self._answer(404)
                return
            if self.parse_request():
                self._serve()
            self.wfile.flush()
        except (TimeoutError, ConnectionError):
            pass  # an error on the reader's side; the reader can reconnect
        finally:
            self.close_connection = True

    def _serve(self) -> None:
        """Check the origin and secret of the request, and answer it."""
        found = _SECRET_PATH.fullmatch(self.path)
        given = found[1] if found else ""
        known = hmac.compare_digest(given.encode(), self.server.secret.encode())
        if not known or not self._own_origin():
            self._answer(403)
        elif self.command == "GET":
            self._get(found[2] if found else "")
        elif self.command == "POST":
            self._post(found[2] if found else "")
        else:
            self._answer(404)

    def _own_origin(self) -> bool:
        """Return whether the request comes from this page or from the address bar."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            return False
        wanted = [f"http://{hosts[0]}"]
        if origins != wanted and (origins or self.command == "POST"):
            return False
        site = self.headers.get("Sec-Fetch-Site", "none")
        return site in ("none", "same-origin")

    def _get(self, name: str) -> None:
        if name == "":
            self._answer(200, self.server.state.page().encode(), "text/html; charset=utf-8")
        elif found := _NEWS.fullmatch(name):
            news = self.server.state.since(int(found[1]), WAIT)
            self._json(news)
            self.server.state.delivered(news["version"])
        else:
            self._answer(404)

    def _post(self, name: str) -> None:
        if name not in ("ask", "stop"):
            self._answer(404)
            return
        if self.headers.get("Content-Type") != "application/json":
            self._answer(403)
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,6}", length) or int(length) > MOST_BODY:
            self._answer(413)
            return
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            self._answer(400)
            return
        problem = self._ask(body) if name == "ask" else self.server.state.stop()
        self._answer(409 if problem else 200, problem.encode(), "text/plain; charset=utf-8")

    def _ask(self, body: Mapping[str, Any]) -> str:
        prompt = body.get("prompt")
        return self.server.state.ask(prompt) if isinstance(prompt, str) else "no question"

    def _json(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        self._answer(200, text.encode(), "application/json")

    def _answer(self, code: int, body: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response_only(code)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", f"{policy(True)}; frame-ancestors 'none'")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is refused by `http.server`."""
        self.command = getattr(self, "command", None) or ""
        self._answer(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing, to keep the run's display intact."""
