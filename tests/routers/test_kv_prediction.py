"""What HTTP shows of predicted prompts: the bill, headers, metrics, and the time to the first token
that a client wishes for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.engines.fake import Fake
from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import engine, fleet
from tests.routers.reading import asking

URL = "/v1/chat/completions"
HEADERS = {"X-Policy": "kv_prediction;least=50;first=4;last=16"}
LONG = [{"role": "user", "content": " ".join(f"w{i}" for i in range(100))}]


@pytest.fixture
def fake() -> Fake:
    return engine(speculates=None, predictors={"layers-20": 0.7, "layers-8": 0.3}, reading=0.1)


@pytest.fixture
async def client(fake: Fake) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(ledger="off"), catalog=fleet(), engine=fake)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://farthing"
    ) as client:
        yield client


def long(**more: Any) -> dict[str, Any]:
    return {**asking(**more), "messages": LONG}


async def test_the_bill_tells_what_was_predicted(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=long(max_tokens=5), headers=HEADERS)
    body = answer.json()
    assert body["usage"]["cost_details"]["models"]["large"]["predicted_tokens"] == 80
    assert answer.headers["x-farthing-policy"] == "kv_prediction"
    assert answer.headers["x-farthing-fidelity"] == body["farthing"]["fidelity"] == "approximate"
    assert "plain" not in body["farthing"]
    counted = (await client.get("/metrics")).text
    who = 'model="large",policy="kv_prediction",preset="none"'
    assert f'farthing_tokens_total{{kind="predicted",{who}}} 80.0' in counted
    assert f"farthing_predicted_prompts_total{{{who}}} 1.0" in counted
    assert "farthing_switches_total{" not in counted
    assert f"farthing_ttft_saved_seconds_count{{{who}}} 1.0" in counted
    assert f"farthing_ttft_saved_seconds_sum{{{who}}} 2.4" in counted  # 0.3 of 80 * 0.1
    listed = (await client.get("/v1/models/large")).json()
    assert listed["farthing"]["price"]["predicted"] == 10.0
    assert listed["farthing"]["kv_predictors"] == {"layers-20": 0.7, "layers-8": 0.3}


async def test_a_short_prompt_is_plain_and_shows_nothing_predicted(
    client: httpx.AsyncClient,
) -> None:
    body = (await client.post(URL, json=asking(), headers=HEADERS)).json()
    assert body["farthing"]["plain"] is True
    assert "predicted_tokens" not in body["usage"]["cost_details"]["models"]["large"]


@pytest.mark.parametrize(
    ("milliseconds", "wanted"), [(60_000, None), (9_000, "layers-20"), (6_000, "layers-8")]
)
@pytest.mark.parametrize("place", ["header", "body"])
async def test_by_when_it_should_begin_reaches_the_policy(
    client: httpx.AsyncClient, fake: Fake, milliseconds: int, wanted: str | None, place: str
) -> None:
    headers, body = dict(HEADERS), long(max_tokens=2)
    if place == "header":
        headers["X-Budget-Ttft-Ms"] = str(milliseconds)
    else:
        body["budget"] = {"ttft_ms": milliseconds}
    assert (await client.post(URL, json=body, headers=headers)).status_code == 200
    (only,) = fake.calls
    assert (only.decoding.kv.predictor if only.decoding.kv else None) == wanted


async def test_repair_is_said(client: httpx.AsyncClient, fake: Fake) -> None:
    headers = {**HEADERS, "X-Debug": "1"}
    headers["X-Policy"] += ";repair"
    body = (await client.post(URL, json=long(), headers=headers)).json()
    assert body["farthing"]["repaired"] is True
    assert [each["kind"] for each in body["farthing"]["switches"]] == ["predict", "repair"]
    assert len(fake.calls) == 3
