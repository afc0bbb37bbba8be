"""Without metrics the gateway serves as ever, counts nothing, and has no page of them."""

from inspect import isfunction

import httpx
import pytest
from prometheus_client import REGISTRY

from app.factory import create_app
from app.settings import Settings
from app.telemetry.counting import Telemetry
from app.telemetry.muted import Muted
from tests.routers.reading import asking

COUNTS_NOTHING = {"__init__", "who", "calling", "decided", "scrape"}


@pytest.fixture
def settings():
    return Settings(ledger="off", metrics=False)


async def test_nothing_is_shown(client):
    answer = await client.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    assert (await client.get("/health")).status_code == 200
    assert "/metrics" not in (await client.get("/openapi.json")).json()["paths"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["large", "economy", "nobody"])
async def test_answers_are_those_of_a_gateway_that_counts(client, catalog, fake, model, stream):
    counts = create_app(Settings(ledger="off"), catalog=catalog, engine=fake)
    transport = httpx.ASGITransport(counts)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as other:
        ours, theirs = [
            await each.post("/v1/chat/completions", json=asking(model, stream=stream))
            for each in (client, other)
        ]
    assert ours.status_code == theirs.status_code == (404 if model == "nobody" else 200)
    assert len(ours.content) == pytest.approx(len(theirs.content), abs=30)  # ids, times, costs


def test_whatever_would_count_is_muted():
    ways = {name for name, one in vars(Telemetry).items() if isfunction(one)}
    private = {name for name in ways if name.startswith("_") and name != "__init__"}
    assert ways - private - COUNTS_NOTHING <= vars(Muted).keys()
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("farthing")]
