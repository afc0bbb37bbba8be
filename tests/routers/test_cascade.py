"""What HTTP shows of a cascade: who was asked, how sure it was, and nothing that was left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.engines.fake import Fake
from app.factory import create_app
from app.settings import Settings
from tests.policies.cascades import FAIR, FOREIGN, LENGTH, SURE, calibration, engine, fleet
from tests.routers import responding
from tests.routers.reading import asking, events, said

URL = "/v1/chat/completions"
WORDS = "".join(f"l{i} " for i in range(LENGTH))


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    yield engine(tiny=FAIR, small=FAIR, large={"native": True})


@pytest.fixture
async def client(fake: Fake) -> AsyncIterator[httpx.AsyncClient]:
    known = fleet(calibration(), large=FOREIGN)
    app = create_app(Settings(ledger="off"), catalog=known, engine=fake)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://farthing"
    ) as opened:
        yield opened


async def test_a_relayed_answer_begins_with_its_server_s_own_events(
    client: httpx.AsyncClient,
) -> None:
    """Two decisions come before it, which open nothing of ours."""
    debug = {"X-Debug": "1"}
    answer = await client.post(URL, json=asking("three", stream=True), headers=debug)
    found = events(answer.text)
    first = found[0]["choices"][0]
    assert first == {"index": 0, "finish_reason": None, "delta": {"content": "l0 "}}
    assert said(found) == WORDS
    (told,) = [each["farthing"] for each in found if "farthing" in each]
    assert [(each["kind"], each["model"]) for each in told["switches"]] == [
        ("escalate", "small"),
        ("escalate", "large"),
    ]
    assert told["fidelity"] == "approximate" and told["models"]["tiny"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_as_a_response_it_is_one_message(client: httpx.AsyncClient, stream: bool) -> None:
    answer = await client.post(responding.URL, json=responding.asking("three", stream=stream))
    response = responding.final(answer.text) if stream else answer.json()
    (item,) = response["output"]
    assert responding.whole(item) == WORDS


async def test_how_sure_it_was_is_told_and_log_probabilities_are_not(
    client: httpx.AsyncClient, fake: Fake
) -> None:
    fake.scripts = engine(tiny=SURE).scripts
    body: dict[str, Any] = (await client.post(URL, json=asking("three"))).json()
    assert body["farthing"]["decided"] == {
        "kind": "keep",
        "model": "tiny",
        "confidence": pytest.approx(0.9),
        "answers": 1,
        "detail": "by its whole answer",
    }
    assert body["choices"][0]["logprobs"] is None
    assert fake.calls[0].sampling.logprobs == 0


async def test_models_may_be_named_in_a_header(client: httpx.AsyncClient, fake: Fake) -> None:
    headers = {"X-Policy": 'cascade;models="tiny,small";threshold=0.6'}
    answer = await client.post(URL, json=asking("small"), headers=headers)
    assert answer.status_code == 200 and [each.model for each in fake.calls] == ["tiny", "small"]
    refused = await client.post(URL, json=asking("large"), headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "policy"
