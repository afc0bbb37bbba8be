"""What HTTP shows of guesses: the bill, headers, refusals, and where there were none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import SPECULATES, engine, fleet
from tests.routers.reading import asking, events, said

URL = "/v1/chat/completions"
HEADERS = {"X-Policy": "speculative"}
Open = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def open_client() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def opened(**more: Any) -> httpx.AsyncClient:
            app = create_app(Settings(ledger="off"), catalog=fleet(), engine=engine(**more))
            transport = httpx.ASGITransport(app)
            client = httpx.AsyncClient(transport=transport, base_url="http://farthing")
            return await stack.enter_async_context(client)

        yield opened


async def test_the_bill_tells_what_was_guessed_and_what_stayed(open_client: Open) -> None:
    client = await open_client(guesses=[(4, 2), (6, 6), (3, 0)])
    answer = await client.post(URL, json=asking(max_tokens=20), headers=HEADERS)
    body = answer.json()
    line = body["usage"]["cost_details"]["models"]["large"]
    assert line == {
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "completion_tokens": 20,
        "discarded_tokens": 0,
        "drafted_tokens": 13,
        "accepted_tokens": 8,
        "wasted_tokens": 5,
        "verification_passes": 12,
        "cost": pytest.approx((5 * 10 + 12 * 20 + 13 * 2) / 1e6),
    }
    assert body["usage"]["cost"] == line["cost"]
    assert answer.headers["x-farthing-policy"] == "speculative"
    assert answer.headers["x-farthing-fidelity"] == body["farthing"]["fidelity"] == "exact"
    assert "plain" not in body["farthing"]


async def test_the_estimate_is_what_it_costs_when_every_guess_is_in_vain(open_client: Open) -> None:
    client = await open_client()
    headers = {"X-Policy": "speculative;longest=3"}
    answer = await client.post(URL, json=asking(max_tokens=10), headers=headers)
    estimate = (5 * 10 + 10 * (20 + 3 * 2)) / 1e6
    assert float(answer.headers["x-farthing-estimate-usd"]) == estimate
    strict = {**headers, "X-Budget-Fallback": "strict"}
    for budget, status in ((f"{estimate:.9f}", 200), (f"{estimate - 1e-9:.9f}", 402)):
        asked = await client.post(
            URL, json=asking(max_tokens=10), headers={**strict, "X-Budget-Usd": budget}
        )
        assert asked.status_code == status


async def test_a_stream_s_chunks_may_hold_several_tokens(open_client: Open) -> None:
    client = await open_client(guesses=[(4, 2), (6, 6), (3, 0)])
    body = asking(max_tokens=20, stream=True, stream_options={"include_usage": True})
    answer = await client.post(URL, json=body, headers={**HEADERS, "X-Debug": "1"})
    chunks = events(answer.text)
    assert said(chunks).split() == [f"l{i}" for i in range(20)]
    told = [chunk["farthing"] for chunk in chunks if "accepted" in chunk.get("farthing", {})]
    assert [each["accepted"] for each in told] == [2, 6, *[0] * 10]
    assert chunks[-1]["usage"]["completion_tokens"] == 20


async def test_what_the_engine_cannot_do_is_400_and_names_the_option(open_client: Open) -> None:
    client = await open_client()
    headers = {"X-Policy": "speculative;rule=adaedl"}
    for stream in (False, True):
        answer = await client.post(URL, json=asking(stream=stream), headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported", "policy")
        assert "rule" in error["message"]


async def test_an_engine_that_guesses_nothing_answers_plainly_and_says_so(
    open_client: Open,
) -> None:
    client = await open_client(speculates=None)
    answer = await client.post(URL, json=asking(), headers={**HEADERS, "X-Debug": "1"})
    body = answer.json()
    assert body["farthing"]["plain"] is True
    assert body["farthing"]["switches"][0]["kind"] == "plain"
    assert "drafted_tokens" not in body["usage"]["cost_details"]["models"]["large"]


async def test_lossy_acceptance_is_said_to_be_approximate(open_client: Open) -> None:
    assert "lenient" in SPECULATES.acceptance
    client = await open_client()
    policy = {"name": "speculative", "lenience": 0.5}
    answer = await client.post(URL, json=asking(policy=policy))
    assert answer.headers["x-farthing-fidelity"] == "approximate"


async def test_guesses_are_counted_by_model_and_their_price_is_listed(open_client: Open) -> None:
    client = await open_client(guesses=[(4, 2), (6, 6), (3, 0)])
    await client.post(URL, json=asking(max_tokens=20), headers=HEADERS)
    counted = (await client.get("/metrics")).text
    who = 'model="large",policy="speculative",preset="none"'
    for kind, count in (("drafted", 13), ("accepted", 8), ("wasted", 5)):
        assert f'farthing_tokens_total{{kind="{kind}",{who}}} {count}.0' in counted
    for name, value in (
        *(("verification_passes_total", 12), ("draft_length_tokens_count", 12)),
        *(("draft_length_tokens_sum", 13), ("accepted_length_tokens_sum", 8)),
    ):
        assert f"farthing_{name}{{{who}}} {value}.0" in counted
    listed = (await client.get("/v1/models/large")).json()
    assert listed["farthing"]["price"]["drafted"] == 2.0
