"""A served page without a run: the data of the run are invented."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nbllama.report.live.server import HOST, LiveServer
from nbllama.report.live.state import LiveState
from tests.report.story import EVIL, rows


def norms_row(i: int, blocks: int = 6) -> dict[str, Any]:
    found = {
        kind: [(1 + b) * scale / i for b in range(blocks)]
        for kind, scale in (("attn_q", 1.0), ("ffn_down", 3.0))
    }
    return {"event": "norms", "iter": i, "blocks": blocks, "gradient": found, "update": found}


def tokens_row(i: int, sample: int = 1) -> dict[str, Any]:
    pieces = ["问", ":", " the", " hen\n", EVIL, "\u202e", "。"]
    losses = [None, None, 6.0 / i, 3.0 / i, 1.0 / i, 0.1, 9.0]
    return {"event": "tokens", "iter": i, "sample": sample, "pieces": pieces, "losses": losses}


def live_rows() -> list[dict[str, Any]]:
    """The rows of a run with measurements."""
    found = []
    for row in rows():
        found.append(row)
        if "event" not in row and row["iter"] % 10 == 0:
            found += [norms_row(row["iter"]), tokens_row(row["iter"])]
    question = {"event": "question", "iter": 40, "id": 1, "prompt": EVIL, "answer": EVIL}
    return [*found[:-1], question, found[-1]]


class Stops:
    """Counts how often the run was asked to stop."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@contextmanager
def served(stops: Stops | None = None, port: int = 0) -> Iterator[LiveServer]:
    """A server with an empty state, closed at the end."""
    server = LiveServer(LiveState(stops or Stops()), port)
    try:
        yield server
    finally:
        server.close()


class _AnyPath(http.client.HTTPConnection):
    """Also sends non-ASCII text, as bytes."""

    def _encode_request(self, request: str) -> bytes:
        return request.encode("latin-1")


def request(
    server: LiveServer,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    host: str | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request; `headers` as given, and a Host."""
    connection = _AnyPath(HOST, server.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host != "":
            connection.putheader("Host", host or f"{HOST}:{server.port}")
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        got = connection.getresponse()
        return got.status, dict(got.getheaders()), got.read()
    finally:
        connection.close()


def post(server: LiveServer, name: str, value: Any, **more: str) -> tuple[int, bytes]:
    """Requests as in the page's script."""
    headers = {"Content-Type": "application/json", "Origin": f"http://{HOST}:{server.port}"}
    body = json.dumps(value).encode()
    code, _, text = request(server, f"/{server.secret}/{name}", "POST", body, headers | more)
    return code, text


def news(server: LiveServer, after: int) -> dict[str, Any]:
    code, _, text = request(server, f"/{server.secret}/data?after={after}")
    assert code == 200
    found: dict[str, Any] = json.loads(text)
    return found
