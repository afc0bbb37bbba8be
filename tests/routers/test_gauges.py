"""How things stand is told of each model and server, each time that somebody asks."""

from __future__ import annotations

import gzip
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from app.catalog import Catalog, ModelCard
from app.engines.fake import Fake, Script
from app.engines.replica import ReplicaStatus
from app.factory import create_app
from app.settings import Settings
from app.telemetry.metrics import METRICS
from app.telemetry.names import Server
from tests.conftest import price
from tests.routers.reading import asking


@pytest.mark.parametrize("gauge", ["farthing_engine_kv_bytes", "farthing_queue_waiting"])
async def test_each_model_that_runs_here_tells_its_memory_and_its_queue(
    client: httpx.AsyncClient, gauge: str
) -> None:
    lines = (await client.get("/metrics")).text.splitlines()
    told = {line for line in lines if line.startswith(gauge)}
    assert told == {f'{gauge}{{model="large"}} 0.0', f'{gauge}{{model="small"}} 0.0'}


async def told(client: httpx.AsyncClient, name: str) -> dict[tuple[str, ...], float]:
    """This metric's samples by the values of their labels."""
    text = (await client.get("/metrics")).raise_for_status().text
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_servers_that_the_catalog_has_no_more_run_on_but_need_not_be_up(
    client: httpx.AsyncClient, gateway_app: Any
) -> None:
    front = gateway_app.state.front
    servers = [
        ReplicaStatus("small", "http://a:8000", "ready", "", 2, 1),
        ReplicaStatus("small", "http://b:8000", "open", "3 calls in a row failed", 0, 0),
        ReplicaStatus("small", "http://c:8000", "draining", "", 4, 0),
        ReplicaStatus("small", "http://unknown:8000", "probing", "not asked yet", 0, 0),
    ]
    front.telemetry.names.know([], {}, [], [Server("small", f"{h}:8000") for h in "abc"])
    front.servers = lambda: servers
    small = ("small", "a:8000"), ("small", "b:8000"), ("small", "other")
    large = {("large", "embedded"): 1.0}
    up = await told(client, "farthing_engine_up")
    assert up == dict(zip(small, (1, 0, 0), strict=True)) | large
    broken = await told(client, "farthing_engine_breaker_open")
    assert broken == dict(zip(small, (0, 1, 0), strict=True)) | {("large", "embedded"): 0}
    running = await told(client, "farthing_engine_running")
    assert (running["small", "a:8000"], running["small", "c:8000"]) == (2, 4)
    assert (await told(client, "farthing_engine_waiting"))["small", "a:8000"] == 1
    front.servers = lambda: servers[:1]
    assert set(await told(client, "farthing_engine_running")) == {small[0], ("large", "embedded")}


async def test_the_ledger_tells_how_it_stands(house: Any) -> None:
    await house.ask()
    book = house.accounts.book
    assert await told(house.visitor, "farthing_ledger_settled_total") == {(): 1}
    (written,) = (await told(house.visitor, "farthing_ledger_write_seconds_count")).values()
    assert written >= 1
    names = [f"farthing_ledger_{name}" for name in ("reservations", "owed", "lag_seconds", "away")]
    assert [(await told(house.visitor, name))[()] for name in names] == [0, 0, 0, 0]
    book._leased, book._failures = {"r": 5}, 2
    assert (await told(house.visitor, names[0]), await told(house.visitor, names[3])) == (
        {(): 1},
        {(): 1},
    )
    book._leased, book._failures = {}, 0


async def test_which_version_serves_at_which_prices(
    client: httpx.AsyncClient, gateway_app: Any
) -> None:
    prices = gateway_app.state.front.gateway.prices[1]
    (labels,) = await told(client, "farthing_build_info")
    assert sorted(labels) == sorted((version("farthing"), prices))
    assert await told(client, "farthing_workers") == {(): 1}


async def test_the_process_tells_of_itself(client: httpx.AsyncClient) -> None:
    before = (await told(client, "process_cpu_seconds_total"))[()]
    for _ in range(3):
        (now,) = (await told(client, "process_cpu_seconds_total")).values()
        assert now >= before > 0
    assert (await told(client, "process_resident_memory_bytes"))[()] > 2**20


async def test_an_answer_that_breaks_off_is_told_by_its_reason(
    client: httpx.AsyncClient, fake: Fake
) -> None:
    fake.scripts = {**fake.scripts, "large": Script(["a", "b", "c"], fails_after=2)}
    await client.post("/v1/chat/completions", json=asking(stream=True))
    await client.post("/v1/chat/completions", json=asking(model="nobody"))
    refused = await told(client, "farthing_refusals_total")
    assert refused == {("engine_error",): 1, ("model_not_found",): 1}


async def test_who_accepts_open_metrics_gets_them_zipped_if_it_likes(
    client: httpx.AsyncClient,
) -> None:
    headers = {"Accept": "application/openmetrics-text", "Accept-Encoding": "gzip"}
    async with client.stream("GET", "/metrics", headers=headers) as answer:
        content = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in open_metrics(gzip.decompress(content).decode())}
    assert {name.removesuffix("_total") for name in METRICS} == names


async def test_no_server_is_up_before_it_has_been_asked(settings: Settings) -> None:
    """A gateway that loads refuses requests: were it silent, others of its processes would speak
    for it."""
    cards = [
        ModelCard(
            name=name, engine="vllm", urls=(f"http://127.0.0.1:9/{name}",), family="f",
            price=price("1", "1", "2"),
        )
        for name in ("a", "b")
    ]  # fmt: skip
    app = create_app(settings, catalog=Catalog({card.name: card for card in cards}, {}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        found = await told(client, "farthing_engine_up")
    assert found == {("a", "127.0.0.1:9/a"): 0, ("b", "127.0.0.1:9/b"): 0}
