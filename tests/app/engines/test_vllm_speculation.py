"""What of a Speculation a vLLM server does by request, in which words, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.errors import EngineUnsupported
from app.types import LEAST_LENIENCE, Decoding, Sampling, Speculates, Speculation
from app.vllm_plugins import asks
from tests.app.engines.remote.toy import collected
from tests.app.engines.test_vllm import ABLE, asked, call, refused, server

DOES = asks.Speculating(longest=6, sampled=True, level=0.65)
WITH_HEAD = replace(ABLE, sentinel=None, reports=False, speculates=True, speculation=DOES)
HEADLESS = replace(WITH_HEAD, speculation=replace(DOES, level=None))
GREEDY_ONLY = replace(WITH_HEAD, speculation=replace(DOES, sampled=False))
FOR_ALL = replace(WITH_HEAD, speculation=None)  # vLLM's own worker
GREEDY = Sampling(temperature=0)


def speculate(**fields: Any) -> Decoding:
    return Decoding(speculation=Speculation(**fields))


@pytest.mark.parametrize(
    ("able", "fields", "sent"),
    [
        (WITH_HEAD, {}, {asks.SPEC_K: 6}),
        (WITH_HEAD, {"longest": 3}, {asks.SPEC_K: 3}),
        (WITH_HEAD, {"longest": 0}, {asks.SPEC_K: 0}),
        (WITH_HEAD, {"rule": "head"}, {asks.SPEC_K: 6, asks.SPEC_STOP: 0.65}),
        (WITH_HEAD, {"rule": "head", "level": 0.3}, {asks.SPEC_K: 6, asks.SPEC_STOP: 0.3}),
        (HEADLESS, {"rule": "confidence"}, {asks.SPEC_K: 6, asks.SPEC_CONFIDENCE: 0.4}),
        (
            WITH_HEAD,
            {"rule": "confidence", "level": 0.0},
            {asks.SPEC_K: 6, asks.SPEC_CONFIDENCE: 0.0},
        ),
        (
            GREEDY_ONLY,
            {"acceptance": "lenient", "lenience": 0.5},
            {asks.SPEC_K: 6, asks.SPEC_LENIENCE: 0.5},
        ),
        (WITH_HEAD, {"lenience": 0.5}, {asks.SPEC_K: 6}),  # not asked to be lenient
    ],
)
async def test_what_is_asked_travels_to_the_worker(
    able: Any, fields: dict[str, Any], sent: dict[str, Any]
) -> None:
    body = (await asked(able, decoding=speculate(**fields), sampling=GREEDY)).body
    assert body["vllm_xargs"] == sent


@pytest.mark.parametrize(
    ("able", "fields", "sampling", "why"),
    [
        (ABLE, {}, GREEDY, "not speculate by request"),
        (FOR_ALL, {}, GREEDY, "not speculate by request"),
        (WITH_HEAD, {"draft": "another"}, GREEDY, "started with"),
        (WITH_HEAD, {"lookup": True}, GREEDY, "started with"),
        (HEADLESS, {"rule": "head"}, GREEDY, "'head'"),
        (WITH_HEAD, {"rule": "heuristic"}, GREEDY, "'heuristic'"),
        (WITH_HEAD, {"rule": "adaedl"}, GREEDY, "'adaedl'"),
        (WITH_HEAD, {"acceptance": "typical"}, GREEDY, "'typical'"),
        (GREEDY_ONLY, {}, Sampling(temperature=0.5), "temperature 0 only"),
    ],
)
async def test_what_it_cannot_do_is_refused(
    able: Any, fields: dict[str, Any], sampling: Sampling, why: str
) -> None:
    error = await refused(able, decoding=speculate(**fields), sampling=sampling)
    assert isinstance(error, EngineUnsupported) and error.param == "policy"
    assert why in error.message


async def test_in_its_own_words_it_speculates_as_for_all() -> None:
    decoding = Decoding(native=True, speculation=Speculation())
    error = await refused(WITH_HEAD, decoding=decoding)
    assert isinstance(error, EngineUnsupported) and error.param == "policy"


async def test_a_call_that_asks_nothing_of_it_gets_the_servers_own() -> None:
    assert "vllm_xargs" not in (await asked(WITH_HEAD, sampling=GREEDY)).body


@pytest.mark.parametrize("native", [True, False])
async def test_a_client_cannot_make_the_model_lenient(native: bool) -> None:
    """A named model's answer is its own."""
    xargs = {asks.SPEC_LENIENCE: 0.1, asks.SPEC_K: 9, asks.SPEC_STOP: 1, "theirs": 2}
    fields = {"vllm_xargs": xargs}
    one, origin = server(WITH_HEAD)
    if native:
        origin.serve = lambda body: [b'{"choices": [{"finish_reason": "stop"}]}']
        decoding = Decoding(native=True)
        await collected(one.generate(call(decoding=decoding, body=fields, whole=True)))
        assert origin.asked[-1].body["vllm_xargs"] == {"theirs": 2}
        return
    assert (await asked(WITH_HEAD, extra=fields)).body["vllm_xargs"] == {"theirs": 2}
    with_asks = await asked(WITH_HEAD, extra=fields, decoding=speculate(longest=1))
    assert with_asks.body["vllm_xargs"] == {"theirs": 2, asks.SPEC_K: 1}


async def test_top_k_is_for_servers_that_survive_it() -> None:
    error = await refused(FOR_ALL, sampling=Sampling(top_k=5))
    assert isinstance(error, EngineUnsupported) and error.param == "top_k"
    assert (await asked(WITH_HEAD, sampling=Sampling(top_k=5))).body["top_k"] == 5


def test_gateway_and_server_take_the_same_lenience() -> None:
    assert asks.LEAST_LENIENCE == LEAST_LENIENCE


def test_what_it_can_do_is_told() -> None:
    def told(able: Any) -> Speculates | None:
        return server(able)[0].capabilities("m").speculation

    assert told(ABLE) is told(FOR_ALL) is None
    assert told(WITH_HEAD) == Speculates(
        drafts=("",),
        rules=("head", "confidence", "fixed"),
        acceptance=("exact", "lenient"),
        longest=6,
        sampled=True,
    )
    headless, greedy_only = told(HEADLESS), told(GREEDY_ONLY)
    assert headless is not None and headless.rules == ("confidence", "fixed")
    assert greedy_only is not None and not greedy_only.sampled


def test_what_may_be_written_unseen_grows_with_its_drafts() -> None:
    long = replace(WITH_HEAD, speculation=replace(DOES, longest=64))
    plain, short, longer = (
        server(able)[0].capabilities("m").overrun for able in (ABLE, WITH_HEAD, long)
    )
    assert plain < short < longer and longer >= 2 * 65
