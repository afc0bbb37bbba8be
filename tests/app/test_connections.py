"""Sockets at a real server: those that dawdle, go half, speak an old HTTP, or read nothing."""

import contextlib
import json
import re
import socket
import threading
import time

import httpx
import pytest

from app.engines.fake import Script
from tests.conftest import LARGE
from tests.routers.reading import asking
from tests.running import running, wait_for

CHAT = "/v1/chat/completions"
SLOW = Script(["word"] * 100_000, delay=0.01)


REFUSED = b"POST /v1/nope HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000


@pytest.fixture
def patience():
    return {}


@pytest.fixture
def server(gateway_app, settings, patience):
    with running(gateway_app, settings.model_copy(update=patience)) as server:
        yield server


@pytest.fixture
def line(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        yield line


def request(body, version="1.1", **headers):
    content = json.dumps(body).encode()
    lines = [f"POST {CHAT} HTTP/{version}", "Host: farthing", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def rest(line):
    """All that comes until the server closes."""
    found = b""
    while part := line.recv(65536):
        found += part
    return found


def refused(answer, status, code):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == code and error["message"]
    return error


@pytest.mark.parametrize("patience", [{"idle_timeout_s": 0.2}])
@pytest.mark.parametrize("said", [b"", b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_who_asks_nothing_is_closed(line, said):
    line.sendall(said)
    assert rest(line).count(b"HTTP/1.1 200") == bool(said)


@pytest.mark.parametrize("patience", [{"idle_timeout_s": 0.2}])
def test_so_is_who_asks_nothing_after_the_rest_of_a_refused_body(line):
    line.sendall(REFUSED[:-1])
    assert b"404 Not Found" in line.recv(65536)
    line.sendall(b"x" * 999_001)
    line.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        rest(line)


@pytest.mark.parametrize("patience", [{"idle_timeout_s": 0.3}])
def test_but_not_who_asks_along_with_the_rest_of_a_refused_body(line, fake):
    fake.scripts = {"large": Script(LARGE.split(), delay=0.1)}
    line.sendall(REFUSED)
    assert b"404 Not Found" in line.recv(65536)
    line.sendall(b"x" * 999_000 + request(asking("large", stream=True)))
    assert b"data: [DONE]" in rest(line)


@pytest.mark.parametrize("patience", [{"request_timeout_s": 0.2, "idle_timeout_s": 0.2}])
def test_an_end_of_line_too_much_does_not_end_the_answer(line, fake):
    fake.scripts = {"large": Script(LARGE.split(), delay=0.1)}
    line.sendall(request(asking("large", stream=True)))
    assert line.recv(65536).startswith(b"HTTP/1.1 200")
    line.sendall(b"\r\n")
    assert b"data: [DONE]" in rest(line)


@pytest.mark.parametrize("patience", [{"max_header_bytes": 4096}])
def test_what_follows_a_body_is_bounded_like_a_head(line):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    line.sendall(head.encode() + b"2\r\n{}\r\n0\r\nX-A: ")
    with pytest.raises(ConnectionError):
        for _ in range(1000):
            line.sendall(b"a" * 100_000)


@pytest.mark.parametrize("patience", [{"request_timeout_s": 0.4, "idle_timeout_s": 60}])
@pytest.mark.parametrize("sent", [b"GET /health HTTP/1.1\r\nX-A: ", b"\r\n"])
def test_a_head_that_never_ends_is_408_though_bytes_keep_coming(line, sent):
    answer, over = [], threading.Event()

    def dribble():
        line.sendall(sent)
        while not over.wait(0.05):
            try:
                line.sendall(sent[-1:])
            except OSError:
                return

    dribbling = threading.Thread(target=dribble)
    dribbling.start()
    try:
        answer = line.recv(65536)
    finally:
        over.set()
        dribbling.join()
    assert refused(answer, 408, "request_too_slow")["type"] == "invalid_request_error"


@pytest.mark.parametrize("patience", [{"max_header_bytes": 4096}])
def test_a_head_without_an_end_is_431_long_before_it_is_all_in_memory(line):
    line.sendall(b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 5000)
    assert refused(rest(line), 431, "headers_too_large")["param"] == "headers"


def test_what_is_no_http_is_400_in_json(line):
    line.sendall(b"nonsense\r\n\r\n")
    refused(rest(line), 400, None)


def test_the_rest_of_a_refused_body_does_not_hold_the_connection(line, monkeypatch):
    monkeypatch.setattr("app.connections._LINGER_S", 0.3)
    line.sendall(REFUSED)
    over = threading.Event()

    def dribble():
        while not over.wait(0.05):
            try:
                line.sendall(b"x")
            except OSError:
                return

    dribbling = threading.Thread(target=dribble)
    dribbling.start()
    try:
        with contextlib.suppress(ConnectionResetError):
            assert b"Not Found" in rest(line)
    finally:
        over.set()
        dribbling.join()


def test_the_rest_of_a_refused_body_may_come_and_then_another_request(line, monkeypatch):
    monkeypatch.setattr("app.connections._LINGER_S", 0.3)
    line.sendall(REFUSED)
    answer = b""
    while not answer.endswith(b"}}"):  # its body, whose packet may be another
        answer += line.recv(65536)
    ask = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    line.sendall(b"x" * 999_000 + ask)
    assert line.recv(65536).startswith(b"HTTP/1.1 200")
    time.sleep(0.5)
    line.sendall(ask)
    assert line.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_ended_its_sending_is_answered(line, fake, stream):
    fake.scripts = {"large": Script(LARGE.split(), delay=0.01)}
    line.sendall(request(asking(stream=stream)))
    line.shutdown(socket.SHUT_WR)
    answer = rest(line)
    assert b"HTTP/1.1 200 OK" in answer
    assert b"to begin with" in answer if not stream else b"data: [DONE]" in answer


def test_requests_in_a_row_are_all_answered_to_one_that_has_ended_its_sending(line, fake):
    fake.scripts = {"large": Script(LARGE.split(), delay=0.01)}
    line.sendall(request(asking(stream=True)) * 2 + request(asking()))
    line.shutdown(socket.SHUT_WR)
    answer = rest(line)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    streams, _, _ = answer.rpartition(b"HTTP/1.1 200 OK")
    assert streams.count(b"data: [DONE]") == 2 and b"100 Continue" not in streams[:-40]


def test_a_client_that_ends_its_sending_in_mid_answer_has_it_all(line, fake):
    fake.scripts = {"large": Script(LARGE.split(), delay=0.01)}
    line.sendall(request(asking(stream=True)))
    seen = line.recv(100)
    line.shutdown(socket.SHUT_WR)
    assert (seen + rest(line)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("said", [0, 1])
def test_a_client_that_has_left_is_told_from_one_that_ended_its_sending(server, fake, stream, said):
    """Though the engine is silent, and so nothing would be sent for an hour."""
    fake.scripts = {"large": Falls(["word"] * 9, delay=iter([0.0] * said + [3600.0]))}
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(request(asking(stream=stream)))
        wait_for(lambda: fake.produced.get("large", 0) == said and fake.open)
        while stream and said and b"word" not in line.recv(65536):
            pass
    wait_for(lambda: not fake.open)


class Falls(Script):
    """Silent after some words: `delay` is an iterator of those before each."""

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        return next(found) if name == "delay" else found


@pytest.mark.parametrize("keep", [True, False])
def test_http_1_0_has_its_stream_without_chunks_and_then_the_end(line, keep):
    headers = {"Connection": "keep-alive"} if keep else {}
    line.sendall(request(asking(stream=True), version="1.0", **headers))
    head, _, body = rest(line).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower() and b"content-length" not in head.lower()
    assert body.startswith(b"data: {") and body.endswith(b"}\n\ndata: [DONE]\n\n")


def test_http_1_0_has_a_whole_answer_too(line):
    line.sendall(request(asking(), version="1.0"))
    head, _, body = rest(line).partition(b"\r\n\r\n")
    assert int(re.search(rb"content-length: (\d+)", head)[1]) == len(body)
    assert json.loads(body)["choices"]


def test_connection_close_ends_the_connection_after_the_stream(line):
    line.sendall(request(asking(stream=True), Connection="close"))
    answer = rest(line)
    assert b"connection: close" in answer.lower() and answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("patience", [{"stall_timeout_s": 0.3}])
def test_a_client_that_reads_nothing_is_given_up(line, server, fake):
    fake.scripts = {"large": Script(["word" * 1000] * 100_000)}
    line.sendall(request(asking(stream=True)))
    wait_for(lambda: fake.open)
    wait_for(lambda: not fake.open, 30)
    assert fake.produced["large"] < 50_000


@pytest.mark.parametrize("patience", [{"stall_timeout_s": 0.3, "idle_timeout_s": 0.1}])
@pytest.mark.parametrize("ends", ["close", "keep-alive"])
def test_so_is_one_whose_answer_has_ended(server, fake, ends):
    fake.scripts = {"large": Script(["word" * 1000] * 20)}
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", server.port))
        line.sendall(request(asking(), Connection=ends))
        wait_for(lambda: server.server_state.connections)
        wait_for(lambda: not server.server_state.connections)


@pytest.mark.parametrize("patience", [{"stall_timeout_s": 1.0}])
def test_a_client_that_reads_slowly_is_not(line, server, fake):
    words = 3_000
    fake.scripts = {"large": Script(["word" * 1000] * words)}
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    line.sendall(request(asking(stream=True)))
    found, began = 0, time.monotonic()
    while time.monotonic() < began + 2:
        found += len(line.recv(40_000))
        time.sleep(0.05)
    assert fake.open and fake.produced["large"] < words
    line.settimeout(10)
    while b"[DONE]" not in line.recv(1_000_000):
        pass


def test_sockets_of_clients_send_at_once(server, line):
    """Else a small event could wait for the acknowledgement of the one before, 40 ms."""
    line.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    line.recv(65536)
    (connection,) = server.server_state.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_others_are_served_beside_all_that(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert client.post(CHAT, json=asking()).status_code == 200
