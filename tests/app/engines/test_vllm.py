"""What a vLLM server is asked for, and what it is never asked for."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from app.catalog import ModelCard
from app.engines.remote.probing import Abilities
from app.engines.remote.rendering import Renderings
from app.engines.vllm import VllmServer
from app.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    EngineUnavailable,
    EngineUnsupported,
)
from app.types import Call, Capabilities, Chunk, Decoding, EntropyStop, Load, Sampling
from app.vllm_plugins import asks
from tests.app.engines.remote.toy import ToyOrigin, answer, collected, event, usage
from tests.app.engines.scripted import card

ABLE = Abilities(
    version="0.32.0", context=100, vocabulary=15, renders=False, top=20, counts_cached=True,
    caches=True, times=False, speculates=False, sentinel=2, reports=True, fingerprint="f",
)  # fmt: skip
PLAIN = replace(ABLE, sentinel=None, reports=False)  # without our plugin
STOP = EntropyStop(level=2.5, rising=True, window=5, after=11)
ENTROPY = Decoding(entropy=True)
WATCHED = Decoding(entropy=True, stop=STOP)


def server(able: Abilities | None = ABLE, **keys: Any) -> tuple[VllmServer, ToyOrigin]:
    origin = ToyOrigin(answers={"/tokenize": {"tokens": [0, 1, 3]}})
    origin.serve = lambda body: answer(
        body["prompt"] if isinstance(body.get("prompt"), list) else (0,), (0, 1)
    )
    found: ModelCard = card("m", "http://a:8000", served="served", **keys)
    one = VllmServer(found, "http://a:8000", None, Renderings())
    one.abilities, one.origin = able, origin  # type: ignore[assignment]
    one._renderer._origin = origin  # type: ignore[assignment]
    return one, origin


def call(**fields: Any) -> Call:
    messages = ({"role": "user", "content": "hi"},)
    return Call("m", **{"messages": messages, "id": "chatcmpl-77", **fields})


async def asked(able: Abilities = ABLE, keys: dict[str, Any] | None = None, **fields: Any) -> Any:
    """The one request for an answer that this call becomes."""
    one, origin = server(able, **keys or {})
    chunks: list[Chunk] = await collected(one.generate(call(**fields)))
    assert chunks[-1].finish is not None
    (request,) = [each for each in origin.asked if each.path == "/v1/completions"]
    return request


async def refused(able: Abilities = ABLE, **fields: Any) -> BadRequest:
    one, origin = server(able)
    with pytest.raises(BadRequest) as raised:
        await collected(one.generate(call(**fields)))
    assert [path for path in origin.paths() if path.startswith("/v1/c")] == []
    return raised.value


async def test_a_call_by_ids_asks_for_ids_and_running_usage() -> None:
    body = (await asked()).body
    assert (body["model"], body["prompt"], body["stream"]) == ("served", [0, 1, 3], True)
    assert body["return_token_ids"] and body["return_tokens_as_token_ids"]
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["max_tokens"] == 97  # to the context's end
    for absent in ("logprobs", "seed", "logit_bias", "stop", "vllm_xargs", "n"):
        assert absent not in body


async def test_sampling_goes_along_but_for_stop_strings() -> None:
    sampling = Sampling(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, presence_penalty=0.2,
        frequency_penalty=0.3, repetition_penalty=1.1, logit_bias={3: -5.0}, seed=9,
        stop=("x",), stop_token_ids=(8,), ignore_eos=True,
    )  # fmt: skip
    body = (await asked(sampling=sampling)).body
    expected = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": {"3": -5.0}, "seed": 9,
        "stop_token_ids": [8], "ignore_eos": True,
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    assert "stop" not in body  # it may span a hand-over
    json.dumps(body)


async def test_a_call_that_goes_on_reads_what_was_written() -> None:
    one, _ = server()
    going_on = call(written=(4, 5))
    assert await one.count(going_on) == 5
    assert (await asked(written=(4, 5), max_tokens=9)).body["prompt"] == [0, 1, 3, 4, 5]


async def test_the_same_seed_never_draws_the_same_numbers_twice_in_an_answer() -> None:
    """vLLM draws from the seed on in every call; what another family said counts too."""
    sampling = Sampling(seed=2**63 - 1)
    places: list[dict[str, Any]] = [{}, {"written": (4,)}, {"written": (4, 5)}, {"said": "words"}]
    seeds = [(await asked(sampling=sampling, **place)).body["seed"] for place in places]
    assert seeds[0] == sampling.seed and len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    again = [(await asked(sampling=sampling, **place)).body["seed"] for place in places]
    assert seeds == again


async def test_fields_that_we_do_not_know_go_along_and_ours_are_ours() -> None:
    extra = {
        "cache_salt": "s", "priority": 3, "allowed_token_ids": [1],
        # these would change what we read
        "return_token_ids": False, "stream_interval": 9, "sampling_params": {"n": 9},
        "prompt": "theirs", "stream": False, "max_tokens": 10**6, "model": "other",
    }  # fmt: skip
    body = (await asked(extra=extra)).body
    assert (body["cache_salt"], body["priority"], body["allowed_token_ids"]) == ("s", 3, [1])
    assert body["return_token_ids"] and body["stream"] and body["model"] == "served"
    assert body["prompt"] == [0, 1, 3] and body["max_tokens"] == 97
    assert not {"stream_interval", "sampling_params"} & body.keys()


async def test_fields_of_the_template_are_for_the_rendering() -> None:
    one, origin = server()
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "tools": []}
    await collected(one.generate(call(extra=extra)))
    rendering, completion = origin.asked
    assert rendering.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"chat_template_kwargs", "tools"} & completion.body.keys()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("field", ["kv_transfer_params", "prompt_embeds", "request_id"])
async def test_what_reaches_into_the_server_is_refused(field: str, native: bool) -> None:
    decoding = Decoding(native=native)
    error = await refused(decoding=decoding, body={field: {"a": 1}}, extra={field: {"a": 1}})
    assert error.param == field
    one, _ = server()
    with pytest.raises(BadRequest, match=field):
        await one.count(call(extra={field: {"a": 1}}))


@pytest.mark.parametrize("native", [True, False])
async def test_a_client_cannot_pass_for_our_plugins_gateway(native: bool) -> None:
    xargs = {"farthing_call": "another's", "farthing_hello": 1, "theirs": 2}
    fields = {"vllm_xargs": xargs}
    if native:
        one, origin = server()
        origin.serve = lambda body: [b'{"choices": [{"finish_reason": "stop"}]}']
        decoding = Decoding(native=True)
        await collected(
            one.generate(call(decoding=decoding, body=fields, extra=fields, whole=True))
        )
        sent = origin.asked[-1].body["vllm_xargs"]
    else:
        sent = (await asked(extra=fields)).body["vllm_xargs"]
    assert sent == {"theirs": 2}


async def test_where_the_plugin_reports_no_logprobs_are_asked_for() -> None:
    request = await asked(decoding=ENTROPY)
    name = request.headers[asks.CALL_HEADER]
    assert request.body["vllm_xargs"] == {asks.CALL: name}
    assert request.headers[asks.REQUEST_HEADER] == name and name.startswith("77-")
    assert "logprobs" not in request.body
    assert (await asked(decoding=ENTROPY)).headers[asks.CALL_HEADER] != name  # of one answer too


async def test_a_stop_travels_to_the_plugin() -> None:
    body = (await asked(decoding=WATCHED, sampling=Sampling(stop_token_ids=(8,)))).body
    assert body["stop_token_ids"] == [8, 2]
    xargs = {key: value for key, value in body["vllm_xargs"].items() if key != asks.CALL}
    assert xargs == {
        asks.LEVEL: 2.5, asks.RISING: 1, asks.WINDOW: 5, asks.AFTER: 11, asks.STOP_ID: 2,
    }  # fmt: skip


async def test_without_reports_the_likeliest_tokens_are_asked_for() -> None:
    able = replace(ABLE, reports=False)
    request = await asked(able, decoding=ENTROPY)
    assert request.body["logprobs"] == 20 and asks.CALL_HEADER not in request.headers
    request = await asked(able, decoding=WATCHED)
    assert request.body["logprobs"] == 20 and asks.LEVEL in request.body["vllm_xargs"]
    assert (await asked(PLAIN, decoding=ENTROPY)).body["logprobs"] == 20


async def test_a_bias_makes_the_plugins_entropies_others_than_the_models() -> None:
    request = await asked(decoding=ENTROPY, sampling=Sampling(logit_bias={1: 5.0}))
    assert request.body["logprobs"] == 20


async def test_without_the_plugin_nothing_is_asked_of_it() -> None:
    request = await asked(PLAIN)
    assert "vllm_xargs" not in request.body and asks.CALL_HEADER not in request.headers


@pytest.mark.parametrize(("wanted", "top"), [(0, 0), (5, 5), (20, 20)])
async def test_logprobs_as_many_as_were_asked_for(wanted: int, top: int) -> None:
    one, origin = server()
    origin.serve = lambda body: answer(body["prompt"], ())
    await collected(one.generate(call(sampling=Sampling(logprobs=wanted))))
    assert origin.asked[-1].body["logprobs"] == top


@pytest.mark.parametrize(
    ("able", "fields", "param"),
    [
        (replace(ABLE, top=5), {"sampling": Sampling(logprobs=6)}, "logprobs"),
        (replace(PLAIN, top=0), {"decoding": ENTROPY}, "policy"),
        (PLAIN, {"decoding": WATCHED}, "policy"),
        (ABLE, {"decoding": ENTROPY, "sampling": Sampling(presence_penalty=1)}, "presence_penalty"),
        (ABLE, {"written": (4,), "sampling": Sampling(frequency_penalty=1)}, "frequency_penalty"),
        (ABLE, {"choices": 2}, "n"),
        (ABLE, {"extra": {"tools": [{"type": "function"}]}}, "tools"),
        (ABLE, {"decoding": Decoding(native=True), "written": (4,)}, None),
        (ABLE, {"decoding": Decoding(native=True), "said": "x"}, None),
        (ABLE, {"decoding": Decoding(native=True, entropy=True)}, None),
        (ABLE, {"decoding": Decoding(native=True, stop=STOP)}, None),
    ],
)
async def test_what_it_cannot_do_is_refused(
    able: Abilities, fields: dict[str, Any], param: str | None
) -> None:
    error = await refused(able, **fields)
    assert isinstance(error, EngineUnsupported) and error.param == param


async def test_penalties_are_done_where_nothing_is_handed_over() -> None:
    body = (await asked(sampling=Sampling(presence_penalty=1.0))).body
    assert body["presence_penalty"] == 1.0


@pytest.mark.parametrize(
    ("context", "max_tokens", "limit"),
    [(None, None, 97), (None, 97, 97), (50, None, 47), (500, None, 97), (None, 1, 1), (0, 97, 97)],
)
async def test_the_smaller_context_counts(
    context: int | None, max_tokens: int | None, limit: int
) -> None:
    request = await asked(keys={"context": context}, max_tokens=max_tokens)
    assert request.body["max_tokens"] == limit


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"max_tokens": 98}, ContextOverflow, "max_tokens"),
        ({"max_tokens": 0}, BadRequest, "max_tokens"),
        ({"max_tokens": -1}, BadRequest, "max_tokens"),
        ({"prompt": (1,) * 100, "messages": ()}, ContextOverflow, "messages"),
        ({"written": (1,) * 97, "max_tokens": 1}, ContextOverflow, "messages"),
    ],
)
async def test_what_does_not_fit_is_refused_before_the_server_is_asked(
    fields: dict[str, Any], kind: type[BadRequest], param: str
) -> None:
    error = await refused(**fields)
    assert type(error) is kind and error.param == param


STREAM = [
    event({"id": "chatcmpl-77", "choices": [{"index": 0, "finish_reason": "stop"}]}),
    event({"id": "chatcmpl-77", "choices": [], "usage": usage(3, 1)}),
    event("[DONE]"),
]


async def native(**fields: Any) -> Any:
    one, origin = server()
    origin.serve = None
    whole = [b'{"choices": [{"finish_reason": "stop"}]}']
    origin.plays = deque([whole if fields.get("whole") else STREAM])
    await collected(one.generate(call(decoding=Decoding(native=True), **fields)))
    return origin.asked[-1]


async def test_the_servers_own_endpoint_gets_the_clients_body() -> None:
    body = {"model": "ours", "messages": ["as they are"], "top_k": 5, "tools": [{}], "n": 1}
    request = await native(body={**body, "stream_options": {"include_usage": False}})
    assert request.path == "/v1/chat/completions"
    assert request.headers == {"X-Request-Id": "77"}  # so the answer's id is ours
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert request.body == {**body, "model": "served", "stream": True, "stream_options": options}
    whole = await native(body={**body, "stream": True}, whole=True)
    assert whole.body == {**body, "model": "served", "stream": False}
    assert (await native(prompt="a", messages=(), body={})).path == "/v1/completions"


@pytest.mark.parametrize(
    ("body", "max_tokens", "sent"),
    [
        ({}, None, {}),
        ({}, 97, {}),  # no less than there is room for: the server knows that
        ({}, 50, {"max_tokens": 50}),
        ({"max_tokens": 90}, 50, {"max_tokens": 50}),
        ({"max_completion_tokens": 90}, 50, {"max_completion_tokens": 50}),
        (
            {"max_tokens": 90, "max_completion_tokens": 80},
            50,
            {"max_tokens": 50, "max_completion_tokens": 50},
        ),
        ({"max_tokens": None}, 50, {"max_tokens": 50}),
        ({"max_tokens": 98}, 98, {"max_tokens": 98}),  # for the server to refuse
    ],
)
async def test_the_limit_is_what_the_budget_pays_for(
    body: dict[str, Any], max_tokens: int | None, sent: dict[str, int]
) -> None:
    found = (await native(body=body, max_tokens=max_tokens)).body
    names = ("max_tokens", "max_completion_tokens")
    assert {name: found[name] for name in names if found.get(name) is not None} == sent


def test_capabilities_are_what_was_found_out() -> None:
    def able(**changes: Any) -> Capabilities:
        return server(replace(ABLE, **changes))[0].capabilities("m")

    assert able() == Capabilities("f", 100, "exact", True, True, 4)
    assert able(reports=False).entropy == "bounds"
    assert able(reports=False, top=0).entropy is None
    assert not able(sentinel=None).stop_on_entropy
    assert able(speculates=True).overrun > able().overrun


async def test_a_server_that_was_not_probed_serves_nothing() -> None:
    one, _ = server(None)
    assert one.fingerprint is None and not one.load("m").healthy
    with pytest.raises(EngineUnavailable, match="not ready"):
        one.capabilities("m")
    with pytest.raises(EngineUnavailable, match="not ready"):
        await collected(one.generate(call()))


async def test_how_busy_it_is_by_its_own_metrics() -> None:
    one, origin = server()
    origin.answers["/metrics"] = (
        "# HELP vllm:num_requests_running Number of requests\n"
        'vllm:num_requests_running{engine="0",model_name="a"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="a"} 1.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="a"} 1e+01\n'
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 7.0\n'
    )
    assert await one.pulse() == Load(True, 3, 10) == one.load("m")


async def test_a_prompt_is_scored_by_its_own_log_probabilities() -> None:
    one, origin = server()
    told = [None, {"1": {"logprob": -2.5}, "0": {"logprob": -0.5}}, {"3": {"logprob": -1.0}}]
    origin.serve = lambda body: [json.dumps({"choices": [{"prompt_logprobs": told}]}).encode()]
    asked = call(decoding=Decoding(scores=True), max_tokens=0, sampling=Sampling(logprobs=1))
    chunks = await collected(one.generate(asked))
    (request,) = [each for each in origin.asked if each.path == "/v1/completions"]
    assert (request.body["prompt"], request.body["prompt_logprobs"]) == ([0, 1, 3], 1)
    assert request.body["max_tokens"] == 1 and not request.body["stream"]
    tokens, finish = chunks
    assert tokens.usage.prompt == 3 and finish.finish == "length"
    assert [token.logprob for token in tokens.tokens] == [None, -2.5, -1.0]
    assert [token.piece for token in tokens.tokens] == [b"a", b"b", b"ab "]
    assert [one.id for one in tokens.tokens[1].top] == [0]


@pytest.mark.parametrize("told", [[None], "none", None])
async def test_a_server_that_tells_no_scores_is_at_fault(told: Any) -> None:
    one, origin = server()
    origin.serve = lambda body: [json.dumps({"choices": [{"prompt_logprobs": told}]}).encode()]
    with pytest.raises(EngineError):
        await collected(one.generate(call(decoding=Decoding(scores=True), max_tokens=0)))


async def test_a_prompt_that_fills_the_context_is_not_scored() -> None:
    with pytest.raises(ContextOverflow):
        one, _ = server(replace(ABLE, context=3))
        await collected(one.generate(call(decoding=Decoding(scores=True), max_tokens=0)))
