"""Access to the served page, and refusals for others: by plain HTTP, without a run."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from nbllama.report.live import server as server_module
from nbllama.report.live.server import HOST, MOST_CONNECTIONS, LiveServer
from nbllama.report.live.state import MOST_LETTERS, MOST_WAITING, NEWS, LiveState
from tests.report.live_story import Stops, live_rows, news, post, request, served, tokens_row
from tests.report.story import EVIL, run_row, step_row

KIND = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[LiveServer, Stops]]:
    """One server for all requests that are refused."""
    stops = Stops()
    with served(stops) as server:
        yield server, stops


@pytest.fixture
def live(shared: tuple[LiveServer, Stops]) -> LiveServer:
    return shared[0]


@pytest.fixture
def stops(shared: tuple[LiveServer, Stops]) -> Stops:
    shared[1].count = 0
    return shared[1]


@pytest.fixture
def own() -> Iterator[LiveServer]:
    """A server for one test."""
    with served() as server:
        yield server


def test_it_listens_on_the_loopback_address_alone(live: LiveServer) -> None:
    assert live._server.server_address[0] == HOST == "127.0.0.1"
    assert re.fullmatch(rf"http://127\.0\.0\.1:{live.port}/[A-Za-z0-9_-]{{32}}/", live.address)
    with served() as other:
        assert other.secret != live.secret
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in others - {HOST, "::1"}:
        with pytest.raises(OSError), socket.create_connection((str(address), live.port), 2):
            pass


def test_the_page_and_its_headers(own: LiveServer) -> None:
    for row in live_rows():
        own.state.add(row)
    code, headers, body = request(own, f"/{own.secret}/")
    text = body.decode()
    assert code == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff" and "Server" not in headers
    assert "Access-Control-Allow-Origin" not in headers
    assert EVIL not in text and text.count("<script") == 2 and own.secret not in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["runs"][0]["name"] == f"SmolLM2 {EVIL}.gguf"


PATHS = [
    "", "x", "index.html", "../", "..%2f", "%2e%2e/", "../../etc/passwd", "/etc/passwd", "data",
    "data?after=-1", "data?after=1&x=2", "data?after=99999999999999999999", "data?after=1%00",
    "data?after=\u0661", "ask", "stop", "page.js", "?", "#", "//", ".", "data?after=01", "\\..\\",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS[1:])
def test_any_other_path_is_not_there(live: LiveServer, path: str, stops: Stops) -> None:
    path = path.encode().decode("latin-1")
    code, headers, body = request(live, f"/{live.secret}/{path}")
    assert (code, body, headers["Content-Length"]) == (404, b"", "0")
    assert stops.count == 0


@pytest.mark.parametrize("path", PATHS)
def test_without_the_secret_there_is_nothing(live: LiveServer, path: str, stops: Stops) -> None:
    path = path.encode().decode("latin-1")
    wrong = live.secret[:-1] + ("a" if live.secret[-1] != "a" else "b")
    for start in ("/", f"/{wrong}/", f"/{live.secret.lower()}x/", "//", f"/{live.secret}", "*"):
        if start == f"/{live.secret}" and path.startswith(("/", "\\")):
            continue
        code, _, body = request(live, f"{start}{path}")
        assert (code, body) == (403, b""), start
    for name in ("ask", "stop"):
        headers = KIND | {"Origin": f"http://{HOST}:{live.port}"}
        assert request(live, f"/{wrong}/{name}", "POST", b"{}", headers)[::2] == (403, b"")
    assert stops.count == 0


HOSTS = [
    "", "example.org", "127.0.0.1", "127.0.0.1:1", "example.org:{}", "localhost.:{}",
    "127.0.0.1:{}.example.org", "[::1]:{}", "0.0.0.0:{}", "2130706433:{}", "LOCALHOST:{}",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_another_name_in_host_is_refused(live: LiveServer, host: str, stops: Stops) -> None:
    """A name that points to this address (DNS rebinding) is not this server's."""
    host = host.format(live.port)
    for name in ("", "data?after=0"):
        assert request(live, f"/{live.secret}/{name}", host=host)[::2] == (403, b"")
    headers = KIND | {"Origin": f"http://{host}"}
    got = request(live, f"/{live.secret}/stop", "POST", b"{}", headers, host=host)
    assert got[::2] == (403, b"") and stops.count == 0


def test_two_hosts_are_refused(live: LiveServer) -> None:
    own = f"{HOST}:{live.port}"
    with socket.create_connection((HOST, live.port), 5) as s:
        text = f"GET /{live.secret}/ HTTP/1.1\r\nHost: {own}\r\nHost: example.org\r\n\r\n"
        s.sendall(text.encode())
        assert s.recv(100).startswith(b"HTTP/1.0 403 ")


@pytest.mark.parametrize(
    "more",
    [
        {"Origin": "http://example.org"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:{}"},  # one of its names, but not the requested one
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_origin_is_refused(live: LiveServer, more: dict[str, str], stops: Stops) -> None:
    more = {name: value.format(live.port) for name, value in more.items()}
    assert request(live, f"/{live.secret}/", headers=more)[::2] == (403, b"")
    assert request(live, f"/{live.secret}/data?after=0", headers=more)[::2] == (403, b"")
    for name in ("stop", "ask"):
        assert post(live, name, {"prompt": "x"}, **more) == (403, b"")
    assert stops.count == 0 and live.state.next_question() is None


def test_what_forms_of_other_pages_could_send_is_refused(live: LiveServer, stops: Stops) -> None:
    """Without an origin, or of a kind that browsers send to any server without asking."""
    own = {"Origin": f"http://{HOST}:{live.port}"}
    for headers in (KIND, {}, own, own | {"Content-Type": "text/plain"},
                    own | {"Content-Type": "application/x-www-form-urlencoded"}):  # fmt: skip
        got = request(live, f"/{live.secret}/stop", "POST", b"{}", headers)
        assert got[::2] == (403, b""), headers
    for method in ("OPTIONS", "PUT", "DELETE", "HEAD", "TRACE", "CONNECT", "PATCH", "X"):
        code, headers, body = request(live, f"/{live.secret}/stop", method, None, own)
        assert code in (403, 404) and body == b""
        assert not any(name.startswith("Access-Control") for name in headers)
    assert stops.count == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n", b"GET\r\n\r\n", b"\x00\xff\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n", b"GET /" + 5000 * b"a" + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + 200 * b"A: b\r\n" + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + 70_000 * b"b" + b"\r\n\r\n",
    ],
    ids=["empty", "no path", "bytes", "version", "long path", "many headers", "long header"],
)  # fmt: skip
def test_what_is_no_request(live: LiveServer, sent: bytes) -> None:
    with socket.create_connection((HOST, live.port), 5) as s:
        try:
            s.sendall(sent)
            got = s.recv(4096)
        except ConnectionError:
            got = b""  # cut off while it was still sending
    assert not got or re.match(rb"HTTP/1\.0 40[34] ", got)
    assert request(live, f"/{live.secret}/")[0] == 200


def test_bodies_are_bounded(live: LiveServer, stops: Stops) -> None:
    own = KIND | {"Origin": f"http://{HOST}:{live.port}"}
    for length in ("100000", "-1", "x", "1e3", "\xb2"):
        headers = own | {"Content-Length": length}
        got = request(live, f"/{live.secret}/stop", "POST", None, headers)
        assert got[0] == 413, length
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 10_000):
        assert request(live, f"/{live.secret}/stop", "POST", body, own)[0] == 400, body
    assert stops.count == 0
    for prompt in ("", " \n", "x" * (MOST_LETTERS + 1), 5, None):
        assert post(live, "ask", {"prompt": prompt})[0] == 409
    assert live.state.next_question() is None


def test_a_silent_reader_does_not_hold_others_up(
    own: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest number of connections; the next one is closed, and later ones are served."""
    monkeypatch.setattr(server_module._Handler, "timeout", 1)
    held = [socket.create_connection((HOST, own.port), 5) for _ in range(MOST_CONNECTIONS)]
    time.sleep(0.3)
    with pytest.raises(OSError):
        request(own, f"/{own.secret}/")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            assert request(own, f"/{own.secret}/")[0] == 200
            break
        except OSError:
            time.sleep(0.2)
    else:
        pytest.fail("the page is never served again")
    for s in held:
        s.close()


def test_news_come_when_they_happen(own: LiveServer) -> None:
    own.state.add(run_row())
    first = news(own, 0)
    assert first["run"]["n_iter"] == 120 and first["events"] == []
    assert first["run"]["state"] == "running"
    found = []
    reader = threading.Thread(target=lambda: found.append(news(own, first["version"])))
    reader.start()
    time.sleep(0.2)
    assert not found
    own.state.add(step_row(1))
    reader.join(5)
    assert [e["loss"] for e in found[0]["events"]] == [step_row(1)["loss"]]
    own.state.note("warning: x")
    own.state.add(tokens_row(1, 0), keep=False)
    after = news(own, found[0]["version"])["events"]
    assert [e["event"] for e in after] == ["note", "tokens"] and after[1]["passing"] is True
    # a later reader does not get earlier events
    assert news(own, 0)["run"]["texts"] == []
    for i in range(2, NEWS + 10):
        own.state.add(step_row(i))
    late = news(own, found[0]["version"])
    assert late["events"] == [] and late["run"]["steps"] == NEWS + 9


def test_the_end_is_told_to_who_waits() -> None:
    found = []
    with served() as live:
        live.state.add(run_row())
        version = news(live, 0)["version"]
        assert post(live, "ask", {"prompt": "why?"}) == (200, b"")
        version = news(live, version)["version"]
        reader = threading.Thread(target=lambda: found.append(news(live, version)))
        reader.start()
        time.sleep(0.2)
    reader.join(5)
    assert found[0]["over"] is True
    (question,) = found[0]["run"]["questions"]
    assert question["done"] and "ended before the question was answered" in question["answer"]
    with pytest.raises(OSError):
        request(live, f"/{live.secret}/")


def test_stop(live: LiveServer, stops: Stops) -> None:
    assert post(live, "stop", {}) == (200, b"") and stops.count == 1


def test_questions(own: LiveServer) -> None:
    for i in range(MOST_WAITING):
        assert post(own, "ask", {"prompt": f" {i}人 "}) == (200, b"")
    code, text = post(own, "ask", {"prompt": "one more"})
    assert code == 409 and b"already waiting" in text
    asked = [own.state.next_question() for _ in range(MOST_WAITING)]
    assert [(q.id, q.prompt) for q in asked if q] == [(i + 1, f"{i}人") for i in range(4)]
    row = {"event": "question", "iter": 3, "id": 1, "prompt": "0人"}
    own.state.add(row | {"answer": "ha", "done": False})
    own.state.add(row | {"answer": "half"})
    open_ones = [(q["id"], q["answer"], q["done"]) for q in news(own, 10**6)["run"]["questions"]]
    assert open_ones == [(1, "half", True), (2, "", False), (3, "", False), (4, "", False)]


def test_a_port_that_is_taken() -> None:
    with served() as live, pytest.raises(OSError):
        LiveServer(LiveState(Stops()), live.port)
    with served(port=live.port) as again:  # free again at once
        assert request(again, f"/{again.secret}/")[0] == 200
