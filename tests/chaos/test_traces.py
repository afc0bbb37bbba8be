"""Traces over the wire: what servers are told of them, and what spans say where calls fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from tests.chaos.houses import CHAT, QUESTION, House, house
from tests.collector import Collector, Span, collector
from tests.upstreams.faults import FAULTS
from tests.upstreams.server import Upstream

REQUEST = f"POST {CHAT}"
PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def otlp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield found


@pytest.fixture
def home(otlp: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("home")
    with house(folder, [Upstream("small"), Upstream("small")], [Upstream("large")]) as found:
        otlp.trace(REQUEST)  # the house asks for an answer before it opens
        otlp.spans.clear()
        yield found


def ended(otlp: Collector) -> tuple[Span, list[Span]]:
    """The one request, and its calls in their order."""
    (request,) = otlp.trace(REQUEST)
    calls = [span for span in otlp.spans if span.parent == request.id]
    return request, sorted(calls, key=lambda span: span.began)


@pytest.mark.parametrize("stream", [False, True])
def test_each_call_s_server_is_told_the_call_s_own_span(
    otlp: Collector, home: House, stream: bool
) -> None:
    seen = {upstream.url: len(upstream.calls()) for upstream in home.upstreams}
    headers = {"traceparent": PARENT, "tracestate": "vendor=1", "X-Debug": "1"}
    told = home.ask("economy", stream=stream, headers=headers)
    request, calls = ended(otlp)
    assert (request.trace, request.parent) == ("ab" * 16, "cd" * 8)
    assert len(calls) > 1 and {call.kind for call in calls} == {"client"}
    asked = [each for u in home.upstreams for each in u.calls()[seen[u.url] :]]
    by_span = {each.headers["traceparent"]: each.headers["tracestate"] for each in asked}
    assert by_span == {f"00-{call.trace}-{call.id}-01": "vendor=1" for call in calls}
    places = {upstream.port: upstream.model for upstream in home.upstreams}
    for call in calls:
        assert call.attributes["server.address"] == "127.0.0.1"
        model = places[call.attributes["server.port"]]
        assert call.name == f"text_completion {model}" or call.name == f"chat {model}"
        assert call.attributes["gen_ai.provider.name"] == "vllm"
    switches = request.named("farthing.switch")
    assert len(switches) == len(told.summary["switches"]) == request.attributes["farthing.switches"]
    assert all({"farthing.entropy", "farthing.threshold"} <= {*s.attributes} for s in switches)
    costs = [call.attributes["farthing.cost.usd"] for call in calls]
    assert sum(costs) == pytest.approx((told.cost or 0) / 1e12)


def test_an_attempt_that_failed_is_an_event_of_its_call(otlp: Collector, home: House) -> None:
    before = [len(upstream.calls()) for upstream in home.small]
    assert home.ask("small", stream=True).right
    asked = next(n for n in (0, 1) if len(home.small[n].calls()) > before[n])
    otlp.trace(REQUEST)
    otlp.spans.clear()
    home.small[asked].breaks(FAULTS["status 500"])  # it has the prompt, and is asked first again
    assert home.ask("small", stream=True).right
    _, (call,) = ended(otlp)
    (attempt,) = call.named("farthing.attempt")
    assert attempt.attributes["server.port"] == home.small[asked].port
    assert "status 500" in attempt.attributes["farthing.error"]
    assert call.attributes["server.port"] == home.small[1 - asked].port
    assert (call.status, call.attributes["farthing.attempts"]) == ("unset", 2)
    assert call.began < attempt.time < call.named("farthing.first_token")[0].time < call.ended


def test_a_stream_that_breaks_off_ends_its_spans_as_errors(otlp: Collector, home: House) -> None:
    home.large[0].breaks(FAULTS["reset in mid-answer"])
    told = home.ask("large", stream=True)
    assert told.status == 200 and told.error
    request, (call,) = ended(otlp)
    assert (request.status, call.status) == ("error", "error")
    assert request.attributes["error.type"] == "engine_error"
    assert call.attributes["error.type"] == "EngineError"
    assert request.ended >= call.ended > call.named("farthing.first_token")[0].time


def test_a_client_that_leaves_ends_the_spans_and_is_no_error(otlp: Collector, home: House) -> None:
    home.large[0].pace = 0.05
    body = {"model": "large", "messages": QUESTION, "max_tokens": 60, "stream": True}
    with httpx.stream("POST", home.url + CHAT, json=body) as answer, closing(answer):
        next(answer.iter_raw())
    request, (call,) = ended(otlp)
    assert (request.status, call.status) == ("unset", "unset")
    assert request.attributes["farthing.outcome"] == call.attributes["farthing.outcome"] == "closed"
    assert request.attributes["error.type"] == "client_gone"


def test_no_server_is_a_503_without_a_call(otlp: Collector, home: House) -> None:
    home.large[0].kill()
    told = [home.ask("large", stream=False).status for _ in range(4)]  # three faults, and it is out
    home.large[0].start()
    assert told[-1] == 503
    otlp.wait(lambda: sum(span.name == REQUEST for span in otlp.spans) == 4)
    request = next(s for s in otlp.spans if s.attributes.get("http.response.status_code") == 503)
    assert (request.status, request.attributes["error.type"]) == ("error", "engine_unavailable")
