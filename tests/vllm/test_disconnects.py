"""Who leaves leaves nothing running: in the queue, while reading, while writing, at a switch."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.vllm.two_servers import LARGE, SMALL, ByHand, until

pytestmark = [pytest.mark.vllm, pytest.mark.model]

LONG = " ".join(f"Point {n}: the harbour of town {n} has {n} lights." for n in range(90))
SWITCHING = {"name": "economy", "switch_at": list(range(2, 200, 4))}
PHASES: dict[str, dict[str, Any]] = {
    "reading": {"model": LARGE, "prompt": LONG, "leave": 0.4},
    "writing": {"model": LARGE, "prompt": "Tell a long story.", "leave": 1.5},
    "switching": {"policy": SWITCHING, "prompt": "Tell a long story.", "leave": 1.0},
}


def body(prompt: str, stream: bool, **more: Any) -> dict[str, Any]:
    return {
        "model": "economy",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 400,
        "temperature": 1,
        "ignore_eos": True,
        "stream": stream,
        **more,
    }


def leave(gateway: httpx.Client, content: dict[str, Any], after: float) -> None:
    """Ask, and be gone after so many seconds, whatever has come by then."""
    timeout = httpx.Timeout(after, connect=10)
    try:
        with (
            httpx.Client(base_url=gateway.base_url, timeout=timeout) as http,
            http.stream("POST", "/v1/chat/completions", json=content) as answer,
        ):
            end = time.monotonic() + after
            for _ in answer.iter_raw():
                if time.monotonic() > end:
                    return
    except httpx.ReadTimeout:
        return


@pytest.mark.smoke
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", PHASES)
def test_who_leaves_stops_the_server(
    gateway: httpx.Client, small: ByHand, large: ByHand, phase: str, stream: bool
) -> None:
    chosen = dict(PHASES[phase])
    prompt = f"{random.random()} {chosen.pop('prompt')}"  # not in any cache
    after = chosen.pop("leave")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(leave, gateway, body(prompt, stream, **chosen), after)
        until(lambda: small.running() + large.running() == 1, 30)  # else the test shows nothing
        done.result()
    until(lambda: small.running() + large.running() == 0, 10)
    until(lambda: _waits(gateway) == 0, 10)


def test_who_leaves_the_servers_queue_is_not_served(gateway: httpx.Client, large: ByHand) -> None:
    """The server runs 16 at a time: of 24 some wait there, and some of those leave."""
    with ThreadPoolExecutor(24) as pool:
        asked = [body(f"{n} {LONG}", n % 2 == 0, model=LARGE) for n in range(24)]
        done = [pool.submit(leave, gateway, content, 3.0) for content in asked]
        until(lambda: large.running() == 24, 30)
        for future in done:
            future.result()
    until(lambda: large.running() == 0, 20)


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
