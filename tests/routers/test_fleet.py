"""What may be named, whether it can answer, and what was counted."""

import json
import re
from decimal import Decimal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.catalog import Catalog, Preset
from app.factory import create_app
from app.types import Load
from tests.conftest import LARGE
from tests.routers.reading import asking


async def test_models_and_presets_are_listed(client):
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    entries = {entry["id"]: entry for entry in listed["data"]}
    assert list(entries) == ["small", "large", "economy"]
    for entry in entries.values():
        assert entry["object"] == "model"
        assert entry["owned_by"] == "farthing"
        assert isinstance(entry["created"], int)
    assert entries["large"]["farthing"] == {
        "kind": "model",
        "precision": "fp32",
        "family": "fake",
        "aliases": ["big"],
        "price": {
            "currency": "USD",
            "per": "million tokens",
            "input": 10.0,
            "cached_input": 1.0,
            "output": 20.0,
            "drafted": 10.0,
            "predicted": 10.0,
        },
        "context": 4096,
        "embeds": False,
    }
    assert entries["large"]["max_model_len"] == 4096
    assert entries["economy"]["farthing"] == {
        "kind": "preset",
        "policy": "entropy_switch",
        "options": {"small": "small", "large": "large", "raise_at": 2.5, "lower_at": 0.01},
        "description": "large where it is hard",
    }


async def test_what_is_within_an_option_is_plain_too(settings, catalog, fake):
    schema = {"minimum": Decimal("0.5"), "enum": [Decimal("1.5")]}
    preset = Preset(
        name="checked",
        policy="best_of_n",
        model="large",
        choose="verify",
        verifier={"kind": "schema", "schema": schema},
    )
    app = create_app(settings, catalog=Catalog(catalog.models, {"checked": preset}), engine=fake)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        told = (await client.get("/v1/models/checked")).json()["farthing"]["options"]
    assert told["verifier"]["schema"] == {"minimum": 0.5, "enum": [1.5]}


async def test_one_of_them_by_name_or_alias(client):
    for name, id in (("large", "large"), ("big", "large"), ("economy", "economy")):
        assert (await client.get(f"/v1/models/{name}")).json()["id"] == id


async def test_an_unknown_one_is_404(client):
    for name in ("nope", "a/b", "x" * 5000):
        answer = await client.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert len(answer.text) < 1000


async def test_health(client):
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}
    idle = {"healthy": True, "running": 0, "waiting": 0}
    health = (await client.get("/health")).json()
    assert health == {"status": "ready", "models": {"small": idle, "large": idle}}


async def test_with_no_healthy_model_we_are_not_ready(client, fake, monkeypatch):
    monkeypatch.setattr(fake, "load", lambda model: Load(healthy=False))
    for url in ("/health/ready", "/health"):
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")


async def test_until_the_models_are_loaded_requests_are_sent_away(client, gateway_app):
    gateway_app.state.front.gateway = None
    for url in ("/health/ready", "/health"):
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
    assert (await client.get("/health/live")).status_code == 200
    answer = await client.post("/v1/chat/completions", json=asking())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    listed = (await client.get("/v1/models")).json()["data"]
    assert "context" not in listed[0]["farthing"]
    assert (await client.get("/metrics")).status_code == 200


async def samples(client):
    text = (await client.get("/metrics")).text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_requests_tokens_and_money_are_counted(client):
    before = await samples(client)
    for model, streamed in (("large", False), ("economy", True)):
        body = asking(model, stream=streamed)
        await client.post("/v1/chat/completions", json=body, headers={"X-Budget-Usd": "0.05"})
    after = await samples(client)

    def grew(name, **labels):
        key = (name, *sorted(labels.items()))
        return after[key] - before.get(key, 0.0)

    chat = {"endpoint": "/v1/chat/completions"}
    direct = {"preset": "none", "policy": "direct"}
    economy = {"preset": "economy", "policy": "entropy_switch"}
    for how in (direct, economy):  # of the preset it is the best model that was asked for
        who = {"model": "large", **how}
        assert grew("farthing_requests_total", **chat, **who, status="200") == 1
        assert grew("farthing_request_duration_seconds_count", **chat, **who) == 1
        assert grew("farthing_time_to_first_token_seconds_count", **who) == 1
    gaps = grew("farthing_inter_token_latency_seconds_count", model="large", **direct)
    assert gaps == len(LARGE.split()) - 1
    for model in ("small", "large"):
        visible = grew("farthing_visible_tokens_total", model=model, **economy)
        assert grew("farthing_entropy_bits_count", model=model, **economy) == visible > 0
    assert grew("farthing_tokens_total", model="small", **economy, kind="discarded") == 1
    assert grew("farthing_switches_total", **economy, kind="switch", to="large") == 1
    assert grew("farthing_hand_over_gap_seconds_count", **economy, to="large") == 1
    assert grew("farthing_switch_entropy_bits_sum", **economy, to="large") >= 2.5
    assert grew("farthing_budget_outcomes_total", **direct, outcome="kept") == 1
    assert grew("farthing_budget_admitted_usd_total", **direct) == 0.05
    spent = grew("farthing_budget_spent_usd_total", **economy)
    by_model = [grew("farthing_cost_usd_total", model=m, **economy) for m in ("small", "large")]
    assert 0 < spent == pytest.approx(sum(by_model), rel=1e-12)
    assert after[("farthing_engine_running", ("model", "small"), ("server", "embedded"))] == 0
    assert after[("farthing_requests_in_flight",)] == 1  # the scrape itself


async def test_what_clients_write_never_becomes_a_label(client):
    secret = "swordfish"
    await client.get(f"/{secret}")
    await client.get(f"/v1/models/{secret}")
    await client.post("/v1/chat/completions", json=asking(secret))
    for header in ("X-Policy", "X-Request-Id", "X-Budget-Usd", f"X-Budget-{secret}"):
        await client.post("/v1/chat/completions", json=asking(), headers={header: secret})
    found = await samples(client)
    assert not [key for key in found if secret in str(key)]
    statuses = {dict(key[1:])["status"] for key in found if key[0] == "farthing_requests_total"}
    assert statuses == {"200", "400", "404"}
    reasons = {dict(key[1:])["reason"] for key in found if key[0] == "farthing_refusals_total"}
    assert reasons == {"no_such_route", "model_not_found", "bad_request"}
    endpoints = {dict(key[1:])["endpoint"] for key in found if key[0] == "farthing_requests_total"}
    assert endpoints == {"/v1/chat/completions", "/v1/models/{name:path}", "other"}


async def test_metrics_are_of_one_app(settings, catalog, fake, client):
    await client.post("/v1/chat/completions", json=asking())
    other = create_app(settings, catalog=catalog, engine=fake)
    text = other.state.front.telemetry.scrape().decode()
    assert not re.search(r"^farthing_requests_total", text, re.MULTILINE)


async def test_the_openapi_document_shows_the_bodies(client):
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for url, shape in (("chat/completions", "ChatRequest"), ("completions", "CompletionRequest")):
        post = document["paths"][f"/v1/{url}"]["post"]
        ref = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert ref == f"#/components/schemas/{shape}"
        assert "X-Budget-Usd" in {parameter["name"] for parameter in post["parameters"]}
    wanted = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert wanted <= set(schemas)


async def test_a_number_that_json_has_no_word_for_is_a_word(fake, settings, catalog):
    options = {"small": "small", "large": "large", "raise_at": float("inf")}
    never = Preset(name="never", policy="entropy_switch", **options)
    app = create_app(settings, catalog=Catalog(catalog.models, {"never": never}), engine=fake)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farthing") as client:
        content = (await client.get("/v1/models/never")).content
    found = json.loads(content, parse_constant=pytest.fail)
    assert found["farthing"]["options"]["raise_at"] == "inf"
