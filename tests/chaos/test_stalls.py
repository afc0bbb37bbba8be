"""Servers that fall silent: nobody waits longer than the deadline, or than the silence limit."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from app.engines.remote import events
from tests.chaos.houses import House, Told, house, settled
from tests.upstreams.faults import FAULTS
from tests.upstreams.script import UNSURE_AT
from tests.upstreams.server import Upstream

SILENCE = 0.8  # seconds
STALLS = ["stall before headers", "stall before first byte", "stall in mid-answer"]
SOON = {"X-Budget-Latency-Ms": "300"}  # well below the silence limit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    small, large = [Upstream("small")], [Upstream("large")]
    folder = tmp_path_factory.mktemp("home")
    with house(folder, small, large, silence_timeout_s=SILENCE) as found:
        yield found


@pytest.fixture(autouse=True)
def well_again(home: House) -> Iterator[None]:
    yield
    for upstream in home.upstreams:
        upstream.pace = 0.0
    home.ready()
    for model in ("small", "large"):
        assert home.ask(model, stream=False).right


def asked(home: House, model: str, *, stream: bool, **more: object) -> Told:
    began = time.monotonic()
    with settled(home) as all_asked:
        all_asked.append(home.ask(model, stream=stream, **more))
    assert time.monotonic() - began < 40, "it has waited for something else"
    return all_asked[0]


@pytest.mark.parametrize("fault", [*STALLS, "bad chunk size"])
def test_a_direct_stream_that_falls_silent_ends_in_words(home: House, fault: str) -> None:
    """Where its framing is broken, aiohttp forgets its own limit: then it is ours that counts."""
    home.large[0].breaks(FAULTS[fault])
    told = asked(home, "large", stream=True)
    assert told.error and told.error["type"] == "engine_error"
    assert told.status == (502 if fault.startswith("stall before") else told.status)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("at", ["first", "handover"])
@pytest.mark.parametrize("fault", [*STALLS, "bad chunk size"])
def test_the_other_model_takes_over_from_one_that_falls_silent(
    home: House, fault: str, at: str, stream: bool
) -> None:
    (home.small if at == "first" else home.large)[0].breaks(FAULTS[fault])
    told = asked(home, "economy", stream=stream)
    assert told.right
    assert told.summary["failover"]["model"] == ("large" if at == "first" else "small")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", STALLS)
@pytest.mark.parametrize("model", ["large", "economy"])
def test_a_deadline_is_kept_whoever_falls_silent(
    home: House, model: str, fault: str, stream: bool
) -> None:
    (home.small if model == "economy" else home.large)[0].breaks(FAULTS[fault])
    told = asked(home, model, stream=stream, headers=SOON)
    if stream and fault == "stall in mid-answer":
        assert (told.status, told.done, told.finish) == (200, True, "length")
        assert told.details == {"reason": "deadline"} and told.text and not told.error
    else:
        assert told.status == 504
        assert told.error and told.error["code"] == "deadline_exceeded"


@pytest.mark.parametrize("fault", STALLS)
def test_a_deadline_that_passes_at_a_handover_cuts_there(home: House, fault: str) -> None:
    home.large[0].breaks(FAULTS[fault])
    told = asked(home, "economy", stream=True, headers=SOON)
    assert told.details == {"reason": "deadline"} and told.finish == "length" and told.done
    assert UNSURE_AT <= told.usage["completion_tokens"] <= UNSURE_AT + 6


@pytest.mark.parametrize("model", ["large", "economy"])
def test_a_deadline_cuts_a_slow_answer(home: House, model: str) -> None:
    for upstream in home.upstreams:
        upstream.pace = 0.03  # 1.6 s an answer
    told = asked(home, model, stream=True, headers={"X-Budget-Latency-Ms": "500"})
    assert told.details == {"reason": "deadline"} and told.text
    assert asked(home, model, stream=False, headers=SOON).status == 504


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions/render"])
def test_a_deadline_holds_while_the_prompt_is_counted(home: House, path: str) -> None:
    for upstream in home.upstreams:
        upstream.breaks(FAULTS["stall before headers"], paths=[path])
    # Rendered once for each request: a text asks /tokenize, a chat the render endpoint.
    told = asked(home, "large", stream=True, headers=SOON)
    assert told.right if path == "/tokenize" else told.status == 504


@pytest.mark.parametrize("model", ["large", "economy"])
def test_an_event_without_an_end_is_not_collected_for_ever(
    home: House, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_EVENT", 1_000_000)
    (home.small if model == "economy" else home.large)[0].breaks(FAULTS["an event that never ends"])
    told = asked(home, model, stream=True)
    if model == "economy":
        assert told.right and "failover" in told.summary
    else:
        assert told.error and "without an end" in told.error["message"]
