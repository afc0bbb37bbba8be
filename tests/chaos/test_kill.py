"""A gateway with a real model is killed in mid-stream: its reservations are settled in full."""

import json
import random
import threading
import time
from dataclasses import dataclass

import httpx
import pytest
from sqlalchemy import text

from app.catalog import PICO, Price, read
from app.settings import DEFAULT_CONFIG
from app.types import Usage
from tests.chaos.gateways import Gateway, Ledger, pico

MODEL = "smollm2-135m-int8"
SERVE = "from app.server import serve; from app.settings import Settings; serve(Settings())"
LEASE_S = 2.0
STREAMS = 3


@dataclass
class Seen:
    """What a client saw of one stream before the gateway died."""

    id: str | None = None
    estimate: int | None = None  # 1e-12 USD; None: no header came
    tokens: int = 0
    cost: int | None = None  # as told, where it ended


@pytest.fixture
def price() -> Price:
    return read(DEFAULT_CONFIG).models[MODEL].price


@pytest.fixture
def ledger(ledger_url, tmp_path):
    """A ledger for gateways that serve one small model, so that they start soon."""
    card = read(DEFAULT_CONFIG).models[MODEL]
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        f'[models."{MODEL}"]\nengine = "embedded"\nweights = "{card.weights}"\n'
        f'precision = "int8"\nfamily = "smollm2"\n'
        "price = { input = 0.01, cached_input = 0.001, output = 0.05 }\n"
    )
    more = {"FARTHING_CONFIG": str(fleet), "FARTHING_LEASE_S": str(LEASE_S)}
    return Ledger(ledger_url, tmp_path, more)


def stream(url, token, number, seen):
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Tell a long story about {number} foxes."}],
        "max_tokens": 40 + number % 3 * 200,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "logprobs": True,  # every token is in the stream, whether it shows text or not
    }
    headers = {"Authorization": f"Bearer {token}"}
    try:
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60
        ) as answer:
            seen.estimate = pico(answer.headers["X-Farthing-Estimate-Usd"])
            for line in answer.iter_lines():
                if not line.startswith('data: {"'):
                    continue
                event = json.loads(line[6:])
                seen.id = event["id"]
                for choice in event["choices"]:
                    seen.tokens += len((choice["logprobs"] or {}).get("content", ()))
                if event["usage"]:
                    seen.cost = pico(event["usage"]["cost"])
    except httpx.HTTPError:
        return  # it was killed


def settlements(ledger, key):
    """Outcome and cost of each, by the request's id."""

    async def rows(accounts):
        query = text("SELECT id, outcome, cost FROM settlements WHERE key_id = :key")
        return await accounts.ledger.database.read(lambda c: c.execute(query, {"key": key}).all())

    return {id: (outcome, cost) for id, outcome, cost in ledger.ask(rows)}


@pytest.mark.model
@pytest.mark.parametrize(
    "ledger_url",
    # A killed gateway is the same to both; that a lease ends is tried on each (tests/app/accounts).
    ["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])],
    indirect=True,
)
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_what_was_streamed_is_paid_for(ledger, price, kills):
    rng = random.Random(kills)
    key, token = ledger.new_key(usd_total="1")
    streams, gateway = [], Gateway(ledger, SERVE).ready()
    try:
        for _ in range(kills):
            seen = [Seen() for _ in range(STREAMS)]
            clients = [
                threading.Thread(target=stream, args=(gateway.url, token, n, one))
                for n, one in enumerate(seen, len(streams))
            ]
            for client in clients:
                client.start()
            time.sleep(rng.uniform(0.0, 2.5))
            gateway.kill()
            for client in clients:
                client.join()
            streams += seen
            gateway = Gateway(ledger, SERVE).ready()
        end = time.monotonic() + 10 * LEASE_S
        while ledger.reservations():
            assert time.monotonic() < end, "reservations outlived their lease"
            time.sleep(0.2)
    finally:
        gateway.kill()
    check(settlements(ledger, key), streams, price)
    account = ledger.account(key)
    assert account.spent["total"] == ledger.settled(key)
    assert (account.held["total"], account.running) == (0, 0)


def check(settled, streams, price):
    lost = [one for one in streams if one.cost is None]
    assert lost, "no stream was broken off: the kills came too late"
    for one in streams:
        if one.id is None:
            continue
        outcome, cost = settled.pop(one.id, None) or settled.pop(f"{one.id}.hold")
        if one.cost is not None:
            assert cost == one.cost
        # At least what the client saw, the prompt counted as if all of it were cached.
        assert cost >= price.of(Usage(completion=one.tokens)) and cost > 0
        assert cost == one.estimate if outcome == "expired" else cost <= one.estimate
    # The rest are those of which no client saw anything; at most one for each such stream.
    assert len(settled) <= sum(one.id is None for one in streams)
    assert all(outcome == "expired" for outcome, _ in settled.values())
    assert sum(cost for _, cost in settled.values()) < PICO
