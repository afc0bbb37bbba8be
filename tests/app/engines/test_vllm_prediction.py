"""What of a KVPrediction a vLLM server does by request, in which words, and in whose cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.errors import BadRequest, EngineUnsupported
from app.types import Decoding, KVPrediction, Usage
from app.vllm_plugins import asks
from tests.app.engines.remote.toy import answer, collected, event, usage
from tests.app.engines.test_vllm import ABLE, asked, call, refused, server

DOES = asks.Predicting({"layers-20": 0.7, "layers-10": 0.4})
PREDICTS = replace(ABLE, prediction=DOES)


def predict(predictor: str = "layers-20", **fields: Any) -> Decoding:
    return Decoding(kv=KVPrediction(predictor, **fields))


async def test_what_is_asked_travels_to_the_connector() -> None:
    request = await asked(PREDICTS, decoding=predict(last=7, first=3))
    xargs = dict(request.body["vllm_xargs"])
    name = xargs.pop(asks.KV_CALL)
    assert xargs == {asks.KV: "layers-20", asks.KV_LAST: 7, asks.KV_FIRST: 3}
    assert request.headers[asks.CALL_HEADER] == request.headers[asks.REQUEST_HEADER] == name
    assert request.body["cache_salt"].startswith(asks.SALT)
    plain = (await asked(PREDICTS, decoding=predict())).body["vllm_xargs"]
    assert asks.KV_FIRST not in plain and asks.KV_RELEVANT not in plain
    more = (await asked(PREDICTS, decoding=predict(relevant=0.3))).body["vllm_xargs"]
    assert more[asks.KV_RELEVANT] == 0.3


async def test_entropies_are_asked_for_beside_it() -> None:
    decoding = replace(predict(), entropy=True)
    xargs = (await asked(PREDICTS, decoding=decoding)).body["vllm_xargs"]
    assert xargs[asks.CALL] == xargs[asks.KV_CALL]


async def test_a_call_that_asks_nothing_of_it_has_no_salt() -> None:
    request = await asked(PREDICTS)
    assert "cache_salt" not in request.body and "vllm_xargs" not in request.body
    assert asks.CALL_HEADER not in request.headers


async def salt(conversation: str = "", account: str = "", predictor: str = "layers-20") -> str:
    decoding = predict(predictor, conversation=conversation)
    body = (await asked(PREDICTS, decoding=decoding, account=account)).body
    return str(body["cache_salt"])


async def test_each_call_has_a_salt_of_its_own() -> None:
    assert len({await salt() for _ in range(5)}) == 5
    theirs = await asked(PREDICTS, decoding=predict(), extra={"cache_salt": "theirs"})
    assert theirs.body["cache_salt"].startswith(asks.SALT)


async def test_a_conversation_has_one_and_no_other_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await salt("talk", "me")
    assert mine == await salt("talk", "me")
    others = [
        await salt("talk", "you"),
        await salt("other", "me"),
        await salt("talk", "me", "layers-10"),
        await salt("", "me"),
    ]
    assert len({mine, *others}) == 5
    assert "talk" not in mine
    monkeypatch.setattr("app.engines.remote.prediction._SECRET", b"of another process")
    assert await salt("talk", "me") != mine


@pytest.mark.parametrize(
    ("able", "decoding", "kind", "why"),
    [
        (ABLE, predict(), EngineUnsupported, "there are: none"),
        (PREDICTS, predict("layers-3"), EngineUnsupported, "there are: layers-20, layers-10"),
        (PREDICTS, predict(asks.EXACT), EngineUnsupported, "no predictor 'exact'"),
        (PREDICTS, predict(last=0), BadRequest, "last must be 1"),
        (PREDICTS, predict(first=-1), BadRequest, "first 0"),
        (PREDICTS, predict(conversation="c" * 65), BadRequest, "64 characters"),
        (PREDICTS, replace(predict(), native=True), EngineUnsupported, "own words"),
        (PREDICTS, predict(relevant=1.1), BadRequest, "relevant must be 0 to 1"),
        (PREDICTS, Decoding(edited="c"), EngineUnsupported, "edited"),
        (PREDICTS, Decoding(edited="c", native=True), EngineUnsupported, "own words"),
    ],
)
async def test_what_it_cannot_do_is_refused(
    able: Any, decoding: Decoding, kind: type[BadRequest], why: str
) -> None:
    error = await refused(able, decoding=decoding)
    assert isinstance(error, kind) and why in error.message


@pytest.mark.parametrize("native", [True, False])
async def test_a_client_cannot_have_a_model_s_prompt_predicted(native: bool) -> None:
    """A named model's answer is its own."""
    xargs = {asks.KV: "layers-20", asks.KV_LAST: 1, "theirs": 2}
    one, origin = server(PREDICTS)
    if native:
        origin.serve = lambda body: [b'{"choices": [{"finish_reason": "stop"}]}']
        body = {"vllm_xargs": xargs, "cache_salt": "kvp:x"}
        await collected(one.generate(call(decoding=Decoding(native=True), body=body, whole=True)))
        assert origin.asked[-1].body["vllm_xargs"] == {"theirs": 2}
        return
    assert (await asked(PREDICTS, extra={"vllm_xargs": xargs})).body["vllm_xargs"] == {"theirs": 2}


def test_what_it_can_do_is_told() -> None:
    assert server(ABLE)[0].capabilities("m").kv is None
    assert server(PREDICTS)[0].capabilities("m").kv == DOES.shares


@pytest.mark.parametrize(
    ("placed", "cached", "used"),
    [
        (asks.Placed(90), 90, (0, 90)),
        (asks.Placed(90), 99, (9, 90)),
        (asks.Placed(60, 30), 99, (9, 60)),  # what was computed for it was neither
        (asks.Placed(0), 64, (64, 0)),
        (asks.Placed(90), 0, (0, 0)),  # it failed, and was computed
        (None, 99, (0, 99)),  # the report is lost: the dearer of the two
    ],
)
async def test_what_was_predicted_is_told_from_what_was_cached(
    placed: asks.Placed | None, cached: int, used: tuple[int, int]
) -> None:
    one, origin = server(PREDICTS)
    report = [] if placed is None else [asks.format_placed(placed)]
    pieces = list(answer((0, 1, 3), (0, 1)))
    last = event({"choices": [], "usage": usage(100, 2, cached)})
    origin.serve = lambda body: [*report, *pieces[:-2], last, pieces[-1]]
    chunks = await collected(one.generate(call(decoding=predict())))
    total = sum((chunk.usage for chunk in chunks), Usage())
    assert (total.cached, total.predicted) == used
    assert (total.prompt, total.completion) == (100, 2)


async def test_without_an_ask_all_is_cached() -> None:
    one, origin = server(PREDICTS)
    pieces = list(answer((0, 1, 3), (0, 1)))
    last = event({"choices": [], "usage": usage(100, 2, 99)})
    origin.serve = lambda body: [*pieces[:-2], last, pieces[-1]]
    total = sum((c.usage for c in await collected(one.generate(call()))), Usage())
    assert (total.cached, total.predicted) == (99, 0)
