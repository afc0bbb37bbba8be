"""Who leaves leaves nothing running: in the queue, while reading, while writing, at a switch."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from tests.vllm.two_servers import LARGE, SMALL, ByHand, until

pytestmark = [pytest.mark.vllm, pytest.mark.model]

LONG = " ".join(f"Point {n}: the harbour of town {n} has {n} lights." for n in range(90))
SWITCHING = {"name": "economy", "switch_at": list(range(2, 200, 4))}
WORDS = 400  # tokens that an answer has if nobody leaves


def body(prompt: str, stream: bool, **more: Any) -> dict[str, Any]:
    return {
        "model": "economy",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": WORDS,
        "temperature": 1,
        "ignore_eos": True,
        "stream": stream,
        **more,
    }


@contextmanager
def asking(gateway: httpx.Client, content: dict[str, Any]) -> Iterator[None]:
    """A client that leaves when the block ends, whatever has come by then."""
    url, said = gateway.base_url, json.dumps(content)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(said)}\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80)) as peer:
        peer.sendall((head + said).encode())
        yield


@pytest.mark.smoke
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["reading", "writing", "switching"])
def test_who_leaves_stops_the_server(
    gateway: httpx.Client, small: ByHand, large: ByHand, phase: str, stream: bool
) -> None:
    """The servers' own counters say when to leave, and that the answer was not finished."""
    before = {server: server.written() for server in (small, large)}

    def since(server: ByHand) -> int:
        return server.written() - before[server]

    under_way: dict[str, Callable[[], bool]] = {
        "reading": lambda: large.running() == 1,
        "writing": lambda: since(large) > 2,
        "switching": lambda: all(since(server) > 2 for server in (small, large)),
    }
    chosen: dict[str, Any] = {"policy": SWITCHING} if phase == "switching" else {"model": LARGE}
    words = LONG if phase == "reading" else "Tell a long story."
    prompt = f"{random.random()} {words}"  # not in any cache
    with asking(gateway, body(prompt, stream, **chosen)):
        until(under_way[phase], 60)
    until(lambda: small.running() + large.running() == 0, 10)
    until(lambda: _waits(gateway) == 0, 10)
    assert since(small) + since(large) < WORDS


def test_who_leaves_the_servers_queue_is_not_served(gateway: httpx.Client, large: ByHand) -> None:
    """The server runs 16 at a time: of 24 some wait there, and some of those leave."""
    with ExitStack() as clients:
        for n in range(24):
            content = body(f"{n} {LONG}", n % 2 == 0, model=LARGE)
            clients.enter_context(asking(gateway, content))
        until(lambda: large.running() == 24, 60)
    until(lambda: large.running() == 0, 20)


def leave(gateway: httpx.Client, content: dict[str, Any], after: float) -> None:
    """Ask, and be gone after so many seconds."""
    with asking(gateway, content):
        time.sleep(after)


def test_two_hundred_who_leave_at_random(
    gateway: httpx.Client, small: ByHand, large: ByHand
) -> None:
    seeded = random.Random(4)
    variants: list[dict[str, Any]] = [{"model": LARGE}, {"model": SMALL}, {"policy": SWITCHING}, {}]

    def ask(number: int) -> None:
        content = body(
            f"{number} {LONG[: seeded.randrange(2000)]}",
            seeded.random() < 0.5,
            **seeded.choice(variants),
        )
        leave(gateway, content, seeded.uniform(0.01, 2.0))

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(ask, range(200)))) == 200
    until(lambda: small.running() + large.running() == 0, 30)
    until(lambda: _waits(gateway) == 0, 10)
    answer = gateway.post("/v1/chat/completions", json=body("Hello", False, max_tokens=4))
    assert answer.status_code == 200
    assert gateway.get("/health").json()["ledger"] == {"status": "up", "unsettled": 0}


def test_a_deadline_stops_the_server_too(
    gateway: httpx.Client, small: ByHand, large: ByHand
) -> None:
    headers = {"X-Budget-Latency-Ms": "1500"}
    for stream in (True, False):
        for chosen in ({"model": LARGE}, {"policy": SWITCHING}):
            content = body("Tell a long story.", stream, **chosen)
            with gateway.stream(
                "POST", "/v1/chat/completions", json=content, headers=headers
            ) as answer:
                text = "".join(answer.iter_text())
            assert answer.status_code == (200 if stream else 504)
            assert ('"finish_details":{"reason":"deadline"}' in text) == stream
            until(lambda: small.running() + large.running() == 0, 10)


def _waits(gateway: httpx.Client) -> int:
    models = gateway.get("/health").json()["models"]
    return sum(model["running"] + model["waiting"] for model in models.values())


@pytest.fixture(autouse=True)
def quiet(small: ByHand, large: ByHand) -> Iterator[None]:
    """Begin with nothing that runs."""
    until(lambda: small.running() + large.running() == 0, 30)
    yield
