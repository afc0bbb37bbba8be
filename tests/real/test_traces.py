"""Traces of real models that switch: the spans of an answer, and what they add up to."""

from __future__ import annotations

import httpx
import pytest

from app.factory import create_app
from app.settings import DEFAULT_CONFIG, Settings
from tests.collector import collector
from tests.prompts import OWN
from tests.real.real import LARGE, SMALL, until
from tests.running import running

pytestmark = pytest.mark.model
REQUEST = "POST /v1/chat/completions"


def test_real_switches_are_events_and_calls_are_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    settings = Settings(config=DEFAULT_CONFIG, shutdown_grace_s=1, ledger="off")
    with collector() as otlp:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.url)
        with running(create_app(settings), settings) as server:
            with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=300) as http:
                until(lambda: http.get("/health/ready").status_code == 200, 300)
                for number, prompt in enumerate(OWN[::4]):
                    body = {"model": "economy", "max_tokens": 48, "temperature": 0}
                    body["messages"] = [{"role": "user", "content": prompt}]
                    asked = {"X-Request-Id": f"asked-{number}", "X-Debug": "1"}
                    told = http.post(REQUEST.split()[1], json=body, headers=asked).json()
                    if told["farthing"]["switches"]:
                        break
            assert told["farthing"]["switches"], "no prompt made them switch"

        def found() -> list[str]:
            return [span.attributes.get("farthing.request.id", "") for span in otlp.spans]

        otlp.wait(lambda: f"asked-{number}" in found())
    request = otlp.spans[found().index(f"asked-{number}")]
    calls = [span for span in otlp.spans if span.parent == request.id]
    events = request.named("farthing.switch")
    assert [(e.attributes["farthing.to"], e.attributes["farthing.token"]) for e in events] == [
        (s["model"], s["token"]) for s in told["farthing"]["switches"]
    ]
    assert len(calls) >= len(events) + 1
    assert {call.name for call in calls} == {f"chat {SMALL}", f"chat {LARGE}"}
    assert {call.kind for call in calls} == {"internal"}
    models = told["usage"]["cost_details"]["models"]
    for name, used in models.items():
        ours = [call.attributes for call in calls if call.name == f"chat {name}"]
        written = sum(each["gen_ai.usage.output_tokens"] for each in ours)
        assert written == used["completion_tokens"]
        assert sum(each["farthing.cost.usd"] for each in ours) == pytest.approx(used["cost"])
