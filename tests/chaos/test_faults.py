"""Servers that answer wrongly: the client gets the right answer or a clear error, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chaos.houses import House, Told, settled
from tests.upstreams.faults import FAULTS
from tests.upstreams.script import SURE_AT, UNSURE_AT
from tests.upstreams.server import Upstream, wait_for

FINE = """slow headers|CRLF|CRLF byte by byte|byte by byte|all in one write|in odd pieces
other fields|no space after data:|gzip|no [DONE]|closed after the last byte
no usage|usage null|usage zero|usage negative|usage huge|usage beyond integers|usage in strings
usage a list|usage above max_tokens|usage that falls|all cached, and more
an unknown finish_reason|no logprobs"""
BAD = """reset before headers|reset after headers|reset in mid-answer|reset in mid-chunk
closed before headers|closed in mid-answer|connection dropped when reused|half a status line|no HTTP
ends in order amid the answer|done too early|an empty body|truncated JSON
data without JSON|data that is a number|data that is null|an event without choices
half a character|invalid UTF-8|choices null|a choice that is null
status 401|status 500|status 503|status 307|status 502 in HTML|status 200 in HTML
an error first|an error in mid-answer|an error of the client's in mid-answer
gzip, broken|gzip that is none|JSON for a stream"""
STREAMED_ONLY = "comments|a line without a field|several data lines"
BY_IDS_ONLY = "no token_ids|token_ids null|token_ids of text|no text|deeply nested"
AT_THE_END = "no finish_reason|finish_reason a number|finish_reason abort"
STATUS = {"status 400": 400, "status 429": 429, "status 429 with Retry-After": 429}
STATUS |= {"status 400 for the context's length": 400}


def names(text: str) -> list[str]:
    return [name for line in text.splitlines() for name in line.split("|")]


@pytest.fixture(autouse=True)
def well_again(home: House) -> Iterator[None]:
    """After each test the servers heal, and serve as if nothing had been."""
    yield
    home.ready()
    for model in ("small", "large"):
        with settled(home) as asked:
            asked.append(home.ask(model, stream=False))
        assert asked[0].right


def broken_by(
    home: House, broken: Upstream, name: str, question: Callable[[], Told], skip: int = 0
) -> Told:
    """What comes of a question, one of whose calls goes wrong: the first after `skip` good ones."""
    fault = FAULTS[name]
    for _ in range(5):
        for model in ("small", "large") if fault.reused else ():
            assert home.ask(model, stream=True).right  # and so there is a connection to use again
        before = len(broken.calls())
        broken.breaks(fault, skip=skip)
        with settled(home) as asked:
            asked.append(question())
        home.ready()
        # Where that call opened a new connection, it went well, and perhaps a later one did not.
        if not fault.reused or broken.calls()[before + skip].connection:
            break
    return asked[0]


def direct(home: House, fault: str, *, stream: bool, **more: Any) -> Told:
    return broken_by(home, home.large[0], fault, lambda: home.ask("large", stream=stream, **more))


def switching(home: House, fault: str, *, stream: bool, at: str) -> Told:
    """`at`: the first call, the one after a hand-over, or the last."""
    broken = home.large[0] if at == "handover" else home.small[0]
    return broken_by(
        home, broken, fault, lambda: home.ask("economy", stream=stream), skip=int(at == "last")
    )


def is_broken(told: Told) -> bool:
    """An engine's error: before the first byte as a status, after it as the last event."""
    if told.error is None or told.error["type"] != "engine_error":
        return False
    return told.status in (502, 503) or (told.status == 200 and told.done)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", names(FINE))
def test_what_a_direct_answer_does_not_mind(home: House, fault: str, stream: bool) -> None:
    assert direct(home, fault, stream=stream).right


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", names(BAD))
def test_what_breaks_a_direct_answer(home: House, fault: str, stream: bool) -> None:
    assert is_broken(direct(home, fault, stream=stream))


@pytest.mark.parametrize("fault", names(STREAMED_ONLY))
def test_what_a_direct_stream_does_not_mind(home: House, fault: str) -> None:
    assert direct(home, fault, stream=True).right


@pytest.mark.parametrize("fault", names(AT_THE_END)[:2])
def test_a_direct_stream_without_its_end_is_no_answer(home: House, fault: str) -> None:
    told = direct(home, fault, stream=True)
    assert is_broken(told) and told.status == 200


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", STATUS)
def test_what_a_direct_answer_is_refused(home: House, fault: str, stream: bool) -> None:
    told = direct(home, fault, stream=stream)
    assert told.status == STATUS[fault]
    context = "context_length_exceeded" if "context" in fault else None
    assert told.error and told.error["code"] == ("queue_full" if "429" in fault else context)
    if "429" in fault:
        assert told.headers["retry-after"] == ("7" if "Retry-After" in fault else "1")
    else:
        assert told.error["param"] == "logit_bias"


def test_what_vllm_refuses_after_its_status_is_refused_with_one(home: House) -> None:
    told = direct(home, "an error of the client's first", stream=True)
    assert (told.status, told.error and told.error["param"]) == (400, "logit_bias")
    for stream in (True, False):  # and what it really refuses so, found out by itself
        with settled(home) as asked:
            asked.append(home.ask("large", stream=stream, logit_bias={"99999": 1}))
        assert asked[0].status == 400 and "Vocabulary size" in (asked[0].error or {})["message"]


@pytest.mark.parametrize("at", ["first", "handover"])
@pytest.mark.parametrize("fault", [*names(FINE), *names(STREAMED_ONLY)])
def test_what_switching_does_not_mind(home: House, fault: str, at: str) -> None:
    for stream in (True, False):
        told = switching(home, fault, stream=stream, at=at)
        assert told.right
        assert fault == "closed after the last byte" or "failover" not in told.summary
        if fault not in ("closed after the last byte", "no logprobs"):
            large = SURE_AT - UNSURE_AT
            assert told.summary["models"]["large"] == large


@pytest.mark.parametrize("at", ["first", "handover"])
@pytest.mark.parametrize("fault", [*names(BAD), *names(BY_IDS_ONLY)])
def test_of_two_models_the_other_one_takes_over(home: House, fault: str, at: str) -> None:
    """It ends the answer, with not a character lost or said twice, and the client is told."""
    other = "large" if at == "first" else "small"
    begins, ends = (0, 6) if at == "first" else (UNSURE_AT, UNSURE_AT + 6)
    for stream in (True, False):
        told = switching(home, fault, stream=stream, at=at)
        assert told.right and told.finish == "stop"
        assert told.summary["failover"]["model"] == other
        assert begins <= told.summary["failover"]["token"] <= ends
        assert sum(told.summary["models"].values()) == told.usage["completion_tokens"]


@pytest.mark.parametrize("fault", ["reset before headers", "reset in mid-answer", "status 503"])
def test_the_last_call_of_three_may_fail_too(home: House, fault: str) -> None:
    told = switching(home, fault, stream=True, at="last")
    assert told.right and told.summary["failover"]["model"] == "large"
    assert told.summary["failover"]["token"] >= SURE_AT


@pytest.mark.parametrize("fault", ["reset before headers", "status 500", "reset in mid-answer"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_when_both_models_fail_it_is_said(home: House, fault: str, stream: bool) -> None:
    home.large[0].breaks(FAULTS[fault])
    assert is_broken(switching(home, fault, stream=stream, at="first"))


@pytest.mark.parametrize("fault", ["status 400", "an error of the client's first"])
def test_a_refusal_is_no_failure(home: House, fault: str) -> None:
    """Of the first call the client is told; in mid-answer the other model has taken the same."""
    told = switching(home, fault, stream=True, at="first")
    assert told.status == 400 and told.error
    assert told.error["type"] == "invalid_request_error"
    for stream in (True, False):
        told = switching(home, fault, stream=stream, at="handover")
        assert told.right and told.summary["failover"]["model"] == "small"


def test_a_busy_server_at_a_handover_is_passed_over(home: House) -> None:
    assert switching(home, "status 429", stream=True, at="first").status == 429
    told = switching(home, "status 429", stream=True, at="handover")
    assert told.right and told.summary["failover"]["model"] == "small"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("model", ["large", "small", "economy"])
def test_who_writes_more_than_was_asked_is_not_paid_for_it(
    home: House, model: str, stream: bool
) -> None:
    """Whatever is said of usage, no more than `max_tokens` is billed."""
    for upstream in home.upstreams:
        upstream.overruns = True
    try:
        with settled(home) as asked:
            asked.append(home.ask(model, stream=stream, max_tokens=5))
    finally:
        for upstream in home.upstreams:
            upstream.overruns = False
    models = asked[0].usage["cost_details"]["models"].values()
    assert sum(each["completion_tokens"] for each in models) <= 5


def test_faults_are_all_tried() -> None:
    elsewhere = {"an event that never ends", "bad chunk size", "an error of the client's first"}
    elsewhere |= {name for name in FAULTS if name.startswith("stall")}
    here = names(FINE) + names(BAD) + names(STREAMED_ONLY) + names(BY_IDS_ONLY) + names(AT_THE_END)
    assert sorted([*here, *STATUS, *elsewhere, "status 404"]) == sorted(FAULTS)


def test_a_server_that_has_lost_the_model_is_not_the_clients_fault(home: House) -> None:
    told = direct(home, "status 404", stream=True)
    assert told.error and "does not serve" in told.error["message"]
    wait_for(lambda: set(home.states()) == {"ready"})
