"""Traces and OpenTelemetry's metrics, as a collector receives them."""

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from app.errors import ConfigError, to_install
from app.factory import create_app
from app.settings import Settings
from app.telemetry import exports
from tests.collector import collector
from tests.routers.conftest import CHAT
from tests.routers.reading import asking

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
REQUEST, SMALL, LARGE = "POST /v1/chat/completions", "chat small", "chat large"


@pytest.fixture
def otel(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture
async def house(otel, serve):
    return await serve()


async def came(otel, *names):
    """The spans of these names."""
    return await asyncio.to_thread(otel.trace, *names)


async def test_a_request_and_its_calls_are_one_trace_within_the_client_s(house, otel, fake):
    headers = {"traceparent": PARENT, "tracestate": "a=1,b=2", "X-Request-Id": "theirs"}
    headers |= {"X-Budget-Usd": "0.01", "baggage": "user=canary"}
    id, token = await house.key()
    answer = (await house.ask(token, "economy", headers, max_tokens=40)).json()
    request, small, large = await came(otel, REQUEST, SMALL, LARGE)
    assert (request.kind, request.status, request.parent) == ("server", "unset", "cd" * 8)
    for span in (request, small, large):
        assert (span.trace, span.state) == ("ab" * 16, "a=1,b=2")
        assert request.began <= span.began <= span.ended <= request.ended
    for span, call in zip((small, large), fake.calls, strict=True):
        assert (span.parent, span.kind) == (request.id, "internal")  # they run in this process
        assert call.trace["traceparent"] == f"00-{span.trace}-{span.id}-01"
        assert call.trace["tracestate"] == "a=1,b=2" and "baggage" not in call.trace
        (first,) = span.named("farthing.first_token")
        assert span.began <= first.time <= span.ended
    (switch,) = request.named("farthing.switch")
    assert switch.attributes["farthing.to"] == "large"
    assert switch.attributes["farthing.entropy"] >= switch.attributes["farthing.threshold"] == 2.5
    about, usage = request.attributes, answer["usage"]
    assert about["gen_ai.operation.name"] == "chat"
    assert about["gen_ai.provider.name"] == "farthing"
    assert about["gen_ai.request.model"] == about["farthing.preset"] == "economy"
    assert about["gen_ai.response.model"] == "small"
    assert about["farthing.models"] == ["large", "small"]
    assert about["gen_ai.response.id"] == answer["id"]
    assert about["gen_ai.response.finish_reasons"] == [answer["choices"][0]["finish_reason"]]
    assert about["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert about["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert about["farthing.cost.usd"] == usage["cost"]
    assert about["farthing.cost.usd"] <= about["farthing.estimate.usd"]
    assert (about["farthing.budget.usd"], about["gen_ai.request.max_tokens"]) == (0.01, 40)
    assert (about["farthing.policy"], about["farthing.fidelity"]) == (
        "entropy_switch",
        "approximate",
    )
    assert (about["farthing.switches"], about["farthing.outcome"]) == (1, "kept")
    assert (about["http.route"], about["http.response.status_code"]) == (CHAT, 200)
    assert (about["farthing.request.id"], about["farthing.key.id"]) == ("theirs", id)
    assert about["gen_ai.response.time_to_first_chunk"] > 0
    costs = [span.attributes["farthing.cost.usd"] for span in (small, large)]
    assert sum(costs) == pytest.approx(usage["cost"])
    assert large.attributes["gen_ai.usage.output_tokens"] == answer["farthing"]["models"]["large"]
    assert not any(b"canary" in body or token.encode() in body for body in otel.raw)


async def test_without_a_parent_a_trace_begins_here(house, otel, fake):
    await house.ask()
    (request,) = await came(otel, REQUEST)
    assert request.parent == ""
    assert fake.calls[0].trace["traceparent"].startswith(f"00-{request.trace}-")


async def test_a_client_that_does_not_sample_is_heeded(house, otel, fake):
    await house.ask(headers={"traceparent": PARENT[:-2] + "00"})
    await house.ask(headers={"X-Request-Id": "sampled"})
    (request,) = await came(otel, REQUEST)
    assert request.attributes["farthing.request.id"] == "sampled"
    sent = fake.calls[0].trace["traceparent"]  # it goes on all the same, by a new id
    assert sent.startswith(PARENT[:36]) and sent.endswith("-00") and sent[36:52] != PARENT[36:52]
    assert all(span.trace != "ab" * 16 for span in otel.spans)


async def test_a_stream_s_span_ends_with_it(house, otel, fake):
    fake.scripts = {**fake.scripts, "small": replace(fake.scripts["small"], delay=0.01)}
    answer = await house.ask(stream=True)
    assert answer.text.endswith("[DONE]\n\n")
    request, call = await came(otel, REQUEST, SMALL)
    (first,) = call.named("farthing.first_token")
    assert request.ended >= call.ended > first.time + 10 * 0.01 * 1e9


@pytest.mark.parametrize(
    ("fields", "headers", "status", "reason", "failed"),
    [
        ({"model": "nobody"}, {}, 404, "model_not_found", False),
        ({"max_tokens": -1}, {}, 400, "bad_request", False),
        ({}, {"X-Budget-Usd": "0.000000000001"}, 402, "budget_exceeded", False),
        ({}, {"Authorization": "Bearer wrong"}, 401, "invalid_api_key", False),
        ({"model": "large"}, {}, 502, "engine_error", True),
        ({"model": "large"}, {"X-Budget-Latency-Ms": "1"}, 504, "deadline_exceeded", True),
    ],
)
async def test_a_refusal_is_no_error_of_ours_and_a_failure_is(
    house, otel, fake, fields, headers, status, reason, failed
):
    slow = status == 504
    script = replace(fake.scripts["large"], fails_after=None if slow else 0, delay=0.2 * slow)
    fake.scripts = {**fake.scripts, "large": script}
    await house.token()  # there are keys, and so a wrong one is refused
    if "Authorization" not in headers:
        headers = {"Authorization": f"Bearer {await house.token()}", **headers}
    asked = {**asking("small"), **fields}
    answer = await house.visitor.post(CHAT, json=asked, headers=headers)
    assert answer.status_code == status
    (request,) = await came(otel, REQUEST)
    about = request.attributes
    assert (about["http.response.status_code"], about["farthing.reason"]) == (status, reason)
    assert request.status == ("error" if failed else "unset")
    assert about.get("error.type") == (reason if failed else None)
    if status == 502:
        (call,) = await came(otel, LARGE)
        assert (call.status, call.attributes["error.type"]) == ("error", "EngineError")


async def test_an_answer_that_breaks_off_is_an_error_under_status_200(house, otel, fake):
    fake.scripts = {**fake.scripts, "large": replace(fake.scripts["large"], fails_after=3)}
    answer = await house.ask(model="large", stream=True)
    assert answer.status_code == 200 and '"error"' in answer.text
    request, call = await came(otel, REQUEST, LARGE)
    assert (request.status, request.attributes["http.response.status_code"]) == ("error", 200)
    assert request.attributes["error.type"] == "engine_error"
    assert request.attributes["farthing.outcome"] == "failed"
    assert call.attributes["gen_ai.usage.output_tokens"] == 3


async def test_what_clients_put_into_urls_is_not_shown(otel, serve, monkeypatch):
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")  # its own spans would show it
    house = await serve()
    await house.visitor.get("/v1/secret-canary")
    await house.visitor.get("/v1/models?key=canary")
    lost, found = await came(otel, "GET", "GET /v1/models")
    assert lost.attributes["http.response.status_code"] == 404
    assert "url.path" not in lost.attributes
    assert found.attributes["url.path"] == "/v1/models"
    house.app.state.front.exports.close()
    assert len(otel.spans) == 2
    assert not any(b"canary" in body for body in otel.raw)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("content", [False, True])
async def test_what_is_said_is_told_only_where_that_is_wished(
    otel, serve, fake, content, native, stream
):
    words = ["answer", "canary"] * 3
    script = replace(fake.scripts["small"], words=words, entropies=(), native=native)
    fake.scripts = {**fake.scripts, "small": script}
    house = await serve(trace_content=content)
    messages = [{"role": "user", "content": [{"type": "text", "text": "prompt canary"}]}]
    await house.ask(stream=stream, messages=messages)
    request, call = await came(otel, REQUEST, SMALL)
    if not content:
        assert not any(b"canary" in body for body in otel.raw)
        return
    asked = json.loads(request.attributes["gen_ai.input.messages"])
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": "prompt canary"}]}]
    (said,) = json.loads(request.attributes["gen_ai.output.messages"])
    assert said["role"] == "assistant" and said["finish_reason"] == "stop"
    assert "".join(part["content"] for part in said["parts"]).split() == words
    assert "canary" not in str(call.attributes)


async def test_long_content_is_cut(otel, serve):
    house = await serve(trace_content=True)
    await house.ask(messages=[{"role": "user", "content": "long " * 4000}])
    (request,) = await came(otel, REQUEST)
    assert len(request.attributes["gen_ai.input.messages"]) < 17_000


async def test_metrics_are_pushed_under_names_that_are_bounded(house, otel):
    answer = (await house.ask(model="economy")).json()
    await house.ask(model="nobody-knows-this")
    duration = "gen_ai.server.request.duration"

    def labels():
        return {p.labels.get("error.type"): p for p in otel.metric(duration)}

    await asyncio.to_thread(otel.wait, lambda: "model_not_found" in labels())
    good = labels()[None]
    assert good.labels == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "farthing",
        "gen_ai.request.model": "large",
        "gen_ai.response.model": "small",
    }
    assert good.bounds == pytest.approx([0.01 * 2**n for n in range(14)])
    assert labels()["model_not_found"].labels["gen_ai.request.model"] == "none"
    (first,) = otel.metric("gen_ai.server.time_to_first_token")
    (between,) = otel.metric("gen_ai.server.time_per_output_token")
    assert (first.count, between.count) == (1, 1) and first.sum < good.sum
    usage = {
        (p.labels["gen_ai.request.model"], p.labels["gen_ai.token.type"]): p.sum
        for p in otel.metric("gen_ai.client.token.usage")
    }
    details = answer["usage"]["cost_details"]["models"]
    for model, told in details.items():
        assert usage[model, "input"] == told["prompt_tokens"]
        assert usage[model, "output"] == told["completion_tokens"]
    cost = otel.metric("farthing.cost")
    assert sum(point.sum for point in cost) == pytest.approx(answer["usage"]["cost"])
    assert {point.labels["farthing.preset"] for point in cost} == {"economy"}
    assert not any(b"nobody-knows-this" in body for body in otel.raw)


async def test_the_environment_says_who_we_are(otel, serve, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    house = await serve()
    await house.ask()
    (request,) = await came(otel, REQUEST)
    assert request.resource["service.name"] == "gateway-7"
    assert request.resource["deployment.environment"] == "test"
    assert request.resource["service.instance.id"]
    assert otel.headers[0]["authorization"] == "Bearer abc"


async def test_a_sampler_of_the_environment_is_heeded(otel, serve, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    house = await serve()
    await house.ask()
    await asyncio.to_thread(otel.metric, "gen_ai.server.request.duration")
    house.app.state.front.exports.close()
    assert otel.spans == []


async def test_a_collector_that_is_away_is_said_once_and_harms_nobody(house, otel, caplog):
    otel.status = 500
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            assert (await house.ask()).status_code == 200
            count = len(otel.headers)
            await asyncio.to_thread(otel.wait, lambda count=count: len(otel.headers) > count + 2)
        otel.status = 200
        await house.ask()
        await came(otel, REQUEST)
        await asyncio.to_thread(otel.metric, "farthing.cost")
        house.app.state.front.exports.close()
    told = [r for r in caplog.records if r.name.startswith(("opentelemetry", "app.telemetry"))]
    for what in ("spans", "metrics"):
        said = [r.levelname for r in told if what in r.getMessage()]
        assert said == ["WARNING", "INFO"], [r.getMessage() for r in told]


async def test_a_collector_that_never_answers_is_not_waited_for(serve, monkeypatch):
    """Neither by requests, whose spans find the queue full, nor at the end."""
    for name, value in (("TIMEOUT", "3600"), ("METRICS_TIMEOUT", "3600")):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    for name, value in (("MAX_QUEUE_SIZE", "8"), ("MAX_EXPORT_BATCH_SIZE", "4")):
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        house = await serve()
        for _ in range(30):
            assert (await house.ask()).status_code == 200
        house.app.state.front.exports.close()


async def test_what_is_left_is_sent_at_the_end(house, otel, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    await house.ask()
    house.app.state.front.exports.close()
    assert otel.trace(REQUEST, SMALL)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: must be otlp or none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be http"),
    ],
)
def test_a_way_that_we_do_not_have_ends_the_start(monkeypatch, catalog, variables, message):
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        create_app(Settings(ledger="off"), catalog=catalog)


def test_without_the_extra_the_start_says_what_to_install(monkeypatch, catalog):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr(exports, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape(to_install("otel"))):
        create_app(Settings(ledger="off"), catalog=catalog)


@pytest.mark.parametrize(
    ("variables", "traces", "metrics"),
    [
        ({}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, True, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, True, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, False, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, False, False),
    ],
)
def test_what_is_exported_is_what_the_standard_variables_ask_for(
    monkeypatch, variables, traces, metrics
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.exports("traces"), settings.exports("metrics")) == (traces, metrics)


def test_unless_configured_nothing_of_it_is_there():
    """FastAPI and Redis' client import what is installed of OpenTelemetry; we do not."""
    program = """
import asyncio, sys, threading
from app.factory import create_app
from app.settings import Settings
app = create_app(Settings(ledger="off"))

async def run():
    async with app.router.lifespan_context(app):
        ours = ("app.telemetry.collector", "app.telemetry.spans", "opentelemetry.exporter")
        print(*(name for name in sys.modules if name.startswith(ours)))
        print(*(each.name for each in threading.enumerate() if "Otel" in each.name))
        assert app.state.front.exports is None

asyncio.run(run())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
