"""Clients that leave: whatever was going on for them ends, and it is nobody's fault."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.chaos.houses import BUDGET, CHAT, QUESTION, House, settled
from tests.upstreams.faults import FAULTS
from tests.upstreams.server import GENERATES, Upstream, wait_for

COUNTS = ("/tokenize", "/v1/chat/completions/render")
LARGE = 20 * 10**6  # 1e-12 USD for a token that the large model writes
PHASES = ["while it is counted", "before headers", "before the first token", "in mid-answer"]
FAULT = {
    "before headers": "stall before headers",
    "before the first token": "stall before first byte",
    "in mid-answer": "stall in mid-answer",
}


@pytest.fixture(autouse=True)
def nothing_is_left(home: House) -> Iterator[None]:
    """And no server is blamed for it: that none is out of service after four shows it."""
    yield
    for upstream in home.upstreams:
        upstream.pace = 0.0
    home.quiet()
    assert home.spent() >= 0
    assert set(home.states()) == {"ready"}, home.servers()
    home.ready()
    for model in ("small", "large"):
        with settled(home) as asked:
            asked.append(home.ask(model, stream=False))
        assert asked[0].right


@contextmanager
def client(home: House, model: str, stream: bool) -> Iterator[socket.socket]:
    """One who has asked, and leaves at the end; with a reset where its lingering is set so."""
    body = {"model": model, "messages": QUESTION, "stream": stream, "max_tokens": 60}
    content = json.dumps({**body, "temperature": 0}).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: farthing", f"X-Budget-Usd: {BUDGET}"]
    lines.append(f"Content-Length: {len(content)}")
    host, _, port = home.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
        yield connection


def resets(connection: socket.socket) -> None:
    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def stalls(upstream: Upstream, phase: str) -> None:
    if phase in FAULT:
        upstream.breaks(FAULTS[FAULT[phase]])
    else:
        upstream.breaks(FAULTS["stall before headers"], paths=COUNTS)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("model", ["large", "economy"])
def test_a_client_that_leaves_stops_what_is_done_for_it(
    home: House, model: str, phase: str, stream: bool
) -> None:
    upstream = (home.small if model == "economy" else home.large)[0]
    for number in range(4):  # a server that is blamed is out of service after three
        stalls(upstream, phase)
        before = len(upstream.requests)
        with client(home, model, stream) as connection:
            paths = GENERATES if phase in FAULT else COUNTS
            wait_for(lambda: any(r.path in paths for r in upstream.requests[before:]))  # noqa: B023
            if stream and phase == "in mid-answer":
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            if number % 2:
                resets(connection)
        wait_for(lambda: not upstream.open, what="the stream upstream ends")
        upstream.heal()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_client_that_leaves_at_a_handover(home: House, phase: str, stream: bool) -> None:
    large = home.large[0]
    stalls(large, phase)
    before = len(large.calls())
    with client(home, "economy", stream):
        wait_for(lambda: len(large.calls()) > before)
        time.sleep(0.05)
    wait_for(lambda: not large.open)


def test_a_whole_answer_that_nobody_waits_for_is_paid(home: House) -> None:
    """Else computing were free for those who always leave before the end."""
    home.large[0].breaks(FAULTS["stall before headers"])
    before, calls = home.spent(), len(home.large[0].calls())
    with client(home, "large", stream=False):
        wait_for(lambda: len(home.large[0].calls()) > calls)
    home.quiet()
    assert home.spent() - before >= 60 * LARGE


def test_a_stream_that_is_left_is_paid_as_far_as_it_went(home: House) -> None:
    home.large[0].breaks(FAULTS["stall in mid-answer"])
    before = home.spent()
    with client(home, "large", stream=True) as connection:
        seen = b""
        while b"blue" not in seen:
            seen += connection.recv(1000)
    home.quiet()
    tokens = 4  # The sky is blue
    assert tokens * LARGE <= home.spent() - before < 30 * LARGE


def test_clients_that_leave_at_any_moment(home: House) -> None:
    rng = random.Random(17)
    for upstream in home.upstreams:
        upstream.pace = 0.004
    cases = [
        (rng.choice(["small", "large", "economy"]), rng.random() < 0.7, rng.uniform(0, 0.35), i % 2)
        for i in range(60)
    ]

    def one(case: tuple[str, bool, float, int]) -> None:
        model, stream, seconds, reset = case
        with client(home, model, stream) as connection:
            connection.settimeout(0.05)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    if not connection.recv(4096):
                        break
                except TimeoutError:
                    pass
            if reset:
                resets(connection)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, cases))
