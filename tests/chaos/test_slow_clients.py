"""Clients that hardly read or write, or do nothing: they cost little, and others are served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.chaos.gateways import Gateway, Ledger
from tests.chaos.houses import BUDGET, CHAT, QUESTION, House
from tests.upstreams.server import wait_for

PROGRAM = """
from app import server
from app.catalog import Catalog
from app.engines.fake import Fake, Script
from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import card, fleet, price

models = {**fleet().models, "silent": card("silent", price(1, 2))}
fake = Fake({
    "small": Script(["word"] * 20),
    "large": Script(["x" * 4000] * 1_000_000, context=2_000_000),
    "silent": Script(["word"], delay=3600),
})
server.create_app = lambda settings, catalog: create_app(
    settings, catalog=Catalog(models, {}), engine=fake
)
server.serve(Settings())
"""
MIB = 2**20


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("slow")
    ledger = Ledger(f"sqlite:///{folder}/ledger.db", folder, {"FARTHING_KEEP_ALIVE_S": "0.5"})
    started = Gateway(ledger, PROGRAM)
    try:
        yield started.ready()
    finally:
        started.kill()


def resident(gateway: Gateway) -> int:
    """Bytes of memory."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def asking(model: str, *, stream: bool = True) -> bytes:
    body = {"model": model, "messages": QUESTION, "stream": stream}
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@contextmanager
def lines(gateway: Gateway, count: int) -> Iterator[list[socket.socket]]:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            line = socket.socket()
            stack.callback(line.close)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
            line.connect((host, int(port)))
            opened.append(line)
        yield opened


def others_are_served(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        for stream in (True, False):
            body = {"model": "small", "messages": QUESTION, "stream": stream}
            answer = client.post(CHAT, json=body)
            assert answer.status_code == 200 and "word" in answer.text


def running(gateway: Gateway) -> int:
    models = httpx.get(f"{gateway.url}/health").json()["models"]
    return sum(each["running"] for each in models.values())


def test_readers_that_do_not_read_hold_up_their_own_answers_only(gateway: Gateway) -> None:
    others_are_served(gateway)
    before = resident(gateway)
    with lines(gateway, 30) as slow:
        for line in slow:
            line.sendall(asking("large"))
        wait_for(lambda: running(gateway) == 30)
        for _ in range(10):
            for line in slow[:10]:  # these read a little
                assert line.recv(1000)
            others_are_served(gateway)
        assert resident(gateway) - before < 30 * MIB  # each has 4 GB to say
    wait_for(lambda: running(gateway) == 0)


def test_two_hundred_silent_streams_and_as_many_idle_connections(gateway: Gateway) -> None:
    others_are_served(gateway)
    before = resident(gateway)
    with lines(gateway, 200) as silent, lines(gateway, 200):
        for line in silent:
            line.sendall(asking("silent"))
        wait_for(lambda: running(gateway) == 200)
        for line in silent:  # each is kept alive
            seen = b""
            while b": keep-alive\n\n" not in seen:
                seen += line.recv(4096)
        others_are_served(gateway)
        assert resident(gateway) - before < 60 * MIB
    wait_for(lambda: running(gateway) == 0)


def test_bodies_that_come_by_the_byte_are_read_and_those_that_end_their_sending_answered(
    gateway: Gateway,
) -> None:
    request = asking("small")
    with lines(gateway, 20) as slow:
        for at, byte in enumerate(request):
            for line in slow:
                line.sendall(bytes([byte]))
            if at == len(request) // 2:
                others_are_served(gateway)
        for line in slow[::2]:
            line.shutdown(socket.SHUT_WR)
        for line in slow:
            seen = b""
            while b"[DONE]" not in seen:
                part = line.recv(4096)
                assert part, seen
                seen += part
            assert seen.count(b'"content":"word ') == 20


def test_a_client_that_does_not_read_slows_its_server_down(home: House) -> None:
    """All the way up: what is in between does not collect the answer."""
    upstream, size, count = home.large[0], 400_000, 50
    upstream.deltas = [{"content": "x" * size}] * count  # the system's buffers hold less
    body = {"model": "large", "messages": QUESTION, "stream": True, "max_tokens": 60}
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Budget-Usd: {BUDGET}\r\n"
    host, _, port = home.url.removeprefix("http://").partition(":")
    sent = upstream.sent
    try:
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
            line.settimeout(30)
            line.connect((host, int(port)))
            line.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            seen = len(line.recv(1000))
            time.sleep(1.5)  # in which it could have come several times
            assert (upstream.open, upstream.sent) == (1, sent)
            tail = b""
            while b"[DONE]" not in tail:
                part = line.recv(MIB)
                tail, seen = tail[-10:] + part, seen + len(part)
    finally:
        upstream.deltas = None
    assert seen > size * count
    home.quiet()
