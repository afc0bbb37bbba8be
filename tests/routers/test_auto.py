"""What HTTP shows of `auto`: who answered, and what may be asked of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app.engines.fake import Fake, Script
from app.factory import create_app
from app.settings import Settings
from tests.policies.scripts import engine, fleet
from tests.routers import responding
from tests.routers.reading import asking, events

URL = "/v1/chat/completions"
AUTO = {"model": "auto", "max_tokens": 12}


@pytest.fixture
def fake() -> Fake:
    return engine()


@pytest.fixture
async def client(fake: Fake) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(ledger="off"), catalog=fleet(), engine=fake)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://farthing"
    ) as opened:
        yield opened


def samples(text: str, name: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.mark.parametrize(("quality", "name"), [("0.9", "large"), ("0.2", "small")])
async def test_an_answer_says_who_gave_it(
    client: httpx.AsyncClient, quality: str, name: str
) -> None:
    headers = {"X-Budget-Quality": quality}
    answer = await client.post(URL, json=asking(**AUTO), headers=headers)
    told = answer.json()["farthing"]
    assert (told["policy"], told["preset"], told["fidelity"]) == ("auto", name, "exact")
    assert told["decided"]["kind"] == "plan" and told["decided"]["detail"].startswith(f"{name}: ")
    assert answer.headers["X-Farthing-Preset"] == name
    assert answer.headers["X-Farthing-Policy"] == "auto"
    assert set(told["models"]) == {name}


async def test_so_does_a_stream(client: httpx.AsyncClient) -> None:
    policy = {"name": "auto", "ways": "economy"}
    answer = await client.post(URL, json=asking(**AUTO, stream=True, policy=policy))
    assert answer.headers["X-Farthing-Preset"] == "economy"
    (told,) = [each["farthing"] for each in events(answer.text) if "farthing" in each]
    assert (told["preset"], told["fidelity"]) == ("economy", "approximate")
    shown = (await client.get("/metrics")).text
    assert samples(shown, "farthing_plans_total") == {
        'farthing_plans_total{kind="best",way="economy"}': 1.0
    }
    drift = samples(shown, "farthing_plan_drift_ratio_count")
    assert {key.split('"')[1] for key in drift} == {"cost", "first_token", "latency"}
    assert 'preset="auto"' in shown and 'policy="planner"' in shown


async def test_what_its_client_takes_to_read_is_no_drift(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(ledger="off"), catalog=fleet(), engine=fake)
    clock = SimpleNamespace(now=time.monotonic(), reads=0)
    asked = [{"type": "http.request", "body": json.dumps(asking(**AUTO, stream=True)).encode()}]
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)

    async def receive() -> MutableMapping[str, Any]:
        return asked.pop() if asked else await asyncio.get_running_loop().create_future()

    async def send(message: MutableMapping[str, Any]) -> None:
        clock.reads += bool(message.get("body"))
        clock.now += 100.0 if message.get("body") else 0.0

    await app({"type": "http", "method": "POST", "path": URL, "headers": []}, receive, send)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        shown = (await client.get("/metrics")).text
    drift = samples(shown, "farthing_plan_drift_ratio_sum")
    assert drift['farthing_plan_drift_ratio_sum{kind="latency",way="large"}'] == 1.0
    # It is the client's time all the same.
    whole = samples(shown, "farthing_request_duration_seconds_sum")
    assert clock.reads > 12
    assert max(whole.values()) == pytest.approx(100.0 * clock.reads)


async def test_who_answers_is_told_where_the_first_one_failed(
    client: httpx.AsyncClient, fake: Fake
) -> None:
    fake.scripts = {**fake.scripts, "large": Script(["l0"], fails_after=0)}
    answer = await client.post(URL, json=asking(**AUTO, stream=True))
    assert answer.status_code == 200 and answer.headers["X-Farthing-Preset"] == "small"
    (told,) = [each["farthing"] for each in events(answer.text) if "farthing" in each]
    assert told["decided"]["detail"].startswith("small: large failed (EngineError); ")
    shown = (await client.get("/metrics")).text
    assert samples(shown, "farthing_plans_total") == {
        'farthing_plans_total{kind="failover",way="small"}': 1.0
    }
    # How long the first one took to fail says nothing of the other's profile.
    assert not samples(shown, "farthing_plan_drift_ratio_count")


async def test_every_shape_of_answer_may_be_planned(client: httpx.AsyncClient) -> None:
    text = await client.post("/v1/completions", json={**AUTO, "prompt": "why is it"})
    assert text.json()["farthing"]["preset"] == "large"
    response = await client.post(responding.URL, json=responding.asking("auto"))
    assert response.json()["farthing"]["preset"] == "large"
    messages = [{"role": "user", "content": "why"}]
    message = await client.post("/v1/messages", json={**AUTO, "messages": messages})
    assert message.json()["farthing"]["preset"] == "large"
    counted = await client.post(
        "/v1/messages/count_tokens", json={"model": "auto", "messages": messages}
    )
    assert counted.json()["input_tokens"] > 0


async def test_it_is_listed_where_it_can_choose(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert "auto" in [each["id"] for each in listed]
    one = (await client.get("/v1/models/auto")).json()["farthing"]
    assert (one["kind"], one["policy"]) == ("preset", "planner")


async def test_without_a_profile_it_is_404_and_says_what_to_do(fake: Fake) -> None:
    known = replace(fleet(), profile=None)
    app = create_app(Settings(ledger="off"), catalog=known, engine=fake)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://farthing"
    ) as client:
        answer = await client.post(URL, json=asking(**AUTO))
        listed = (await client.get("/v1/models")).json()["data"]
    assert answer.status_code == 404 and answer.json()["error"]["param"] == "model"
    assert "farthing calibrate" in answer.json()["error"]["message"]
    assert "auto" not in [each["id"] for each in listed]


async def test_the_body_may_ask_for_a_quality(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=asking(**AUTO, budget={"quality": 0.2}))
    assert answer.json()["farthing"]["preset"] == "small"


async def test_a_quality_is_for_auto_alone(client: httpx.AsyncClient) -> None:
    headers = {"X-Budget-Quality": "0.9"}
    answer = await client.post(URL, json=asking("large"), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Budget-Quality"
