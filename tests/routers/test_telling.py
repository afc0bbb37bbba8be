"""Whatever fails in telling of answers, they are whole, and paid for."""

import pytest

from app.telemetry.counting import Telemetry
from app.telemetry.exports import Exports
from tests.collector import collector
from tests.routers.reading import events, said

REQUEST, SMALL = "POST /v1/chat/completions", "chat small"


@pytest.fixture
def otel(monkeypatch):
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((Telemetry, name) for name in ("calling", "called", "decided", "answered")),
        *((Telemetry, name) for name in ("first_token", "requested", "handed_over")),
        *((Exports, name) for name in ("arrived", "calling", "called", "decided", "ended")),
    ],
)
async def test_what_fails_in_telling_is_logged_and_harms_nobody(
    otel, serve, monkeypatch, caplog, owner, name, stream
):
    def fails(self, *told):
        raise OSError("no space left on the device")

    house = await serve()
    await house.ask(model="economy")  # from now on its prompt is in the caches
    ids, answers = [], []
    for _ in range(2):
        id, token = await house.key()
        answer = await house.ask(token, "economy", stream=stream)
        ids.append(id)
        answers.append(said(events(answer.text)) if stream else answer.json()["choices"])
        monkeypatch.setattr(owner, name, fails)  # the first answer was told of
    assert answers[0] == answers[1]
    assert await house.spent(ids[0]) == await house.spent(ids[1]) > 0
    assert "no space left on the device" in caplog.text
    if owner is Telemetry:  # others are told all the same
        house.app.state.front.exports.close()
        assert len([span for span in otel.spans if span.name in (REQUEST, SMALL)]) == 6
