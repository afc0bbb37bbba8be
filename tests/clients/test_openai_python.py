"""The official `openai` package for Python."""

from __future__ import annotations

import asyncio
import math
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.clients.conftest import MODEL, Gateway, until

ASKED: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]


def ask(sdk: OpenAI, **more: Any) -> Any:
    body = {"model": MODEL, "messages": ASKED, "max_tokens": 8, "temperature": 0}
    return sdk.chat.completions.create(**{**body, **more})


def test_a_chat(sdk: OpenAI) -> None:
    answer = ask(sdk)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 600
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.refusal is None
    assert choice.message.tool_calls is None
    usage = answer.usage
    assert usage.completion_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert usage.cost == pytest.approx(
        sum(m["cost"] for m in usage.cost_details["models"].values())
    )


def test_no_field_of_an_answer_is_of_another_type_than_declared(sdk: OpenAI) -> None:
    """The SDK takes whatever comes; this asks pydantic."""
    raw = sdk.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASKED, max_tokens=2, logprobs=True, top_logprobs=2
    )
    kind = type(raw.parse())
    kind.model_validate_json(raw.text, strict=True)


def test_a_stream(sdk: OpenAI) -> None:
    chunks = list(ask(sdk, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *written, last = chunks
    assert written[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in written)
    assert text == ask(sdk).choices[0].message.content
    assert [c.choices[0].finish_reason for c in written if c.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in written)
    assert last.choices == []
    assert last.usage.completion_tokens == 8
    assert last.usage.cost > 0


def test_a_stream_without_usage_ends_with_its_finish(sdk: OpenAI) -> None:
    chunks = list(ask(sdk, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_stream_helper(sdk: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": ASKED, "stop": ["."], "temperature": 0}
    with sdk.chat.completions.stream(
        **asked, max_tokens=64, logprobs=True, top_logprobs=1
    ) as stream:
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    whole = sdk.chat.completions.create(**asked, max_tokens=64).choices[0]
    assert choice.finish_reason == whole.finish_reason == "stop"
    assert choice.message.content == whole.message.content
    assert kinds[-2:] == ["content.done", "logprobs.content.done"]
    assert choice.logprobs is not None
    assert len(choice.logprobs.content or ()) > 4


async def test_the_asynchronous_client(gateway: Gateway, key: str) -> None:
    async with AsyncOpenAI(base_url=gateway.base, api_key=key, max_retries=0) as sdk:
        asked: Any = {"model": "economy", "messages": ASKED, "max_tokens": 8, "temperature": 0}
        answers = await asyncio.gather(*(sdk.chat.completions.create(**asked) for _ in range(4)))
        assert len({answer.choices[0].message.content for answer in answers}) == 1
        text = ""
        async for chunk in await sdk.chat.completions.create(**asked, stream=True):
            text += chunk.choices[0].delta.content or ""
        assert text == answers[0].choices[0].message.content


def test_what_clients_send_besides(sdk: OpenAI) -> None:
    """Fields that change nothing here are taken, as they are elsewhere."""
    messages: list[Any] = [
        {"role": "developer", "content": "Answer in one word."},
        {"role": "user", "name": "ada", "content": [{"type": "text", "text": "Is the sky blue?"}]},
        {"role": "assistant", "content": None, "refusal": "I will not say."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}],
        },
    ]
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_completion_tokens=2,
        n=1,
        stop=[],
        store=False,
        metadata={"team": "search"},
        user="ada",
        safety_identifier="ada",
        prompt_cache_key="sky",
        service_tier="auto",
        parallel_tool_calls=None,  # type: ignore[arg-type]  # some send null
        response_format={"type": "text"},
        modalities=["text"],
        reasoning_effort="none",
        verbosity="low",
        logit_bias={},
        seed=7,
        presence_penalty=0,
        frequency_penalty=0,
        top_p=1,
        tools=[],
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_text_completions(sdk: OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "The sky is", "max_tokens": 4, "temperature": 0}
    answer = sdk.completions.create(**asked, logprobs=1)
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or ()) == 4
    streamed = "".join(c.choices[0].text for c in sdk.completions.create(**asked, stream=True))
    assert streamed == answer.choices[0].text


def test_models_are_listed_presets_too(sdk: OpenAI) -> None:
    names = {model.id: model for model in sdk.models.list()}
    assert {MODEL, "smollm2-tiny", "economy", "swift"} <= set(names)
    assert {model.object for model in names.values()} == {"model"}
    for name in (MODEL, "economy"):
        assert sdk.models.retrieve(name) == names[name]
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-nope")


@pytest.mark.parametrize(
    ("model", "policy", "fidelity"),
    [
        (MODEL, "direct", "exact"),
        ("economy", "economy", "approximate"),
        ("swift", "swift", "exact"),
        (f"entropy_switch/{MODEL}", "entropy_switch", "approximate"),
        (f"direct/{MODEL}", "direct", "exact"),
    ],
)
def test_a_preset_is_a_model(sdk: OpenAI, model: str, policy: str, fidelity: str) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model=model, messages=ASKED, max_tokens=8, temperature=0
    )
    answer = raw.parse()
    assert answer.model == model
    assert raw.headers["x-farthing-policy"] == policy
    assert raw.headers["x-farthing-fidelity"] == fidelity
    assert answer.model_extra is not None
    assert answer.model_extra["farthing"]["policy"] == policy
    assert sum(answer.model_extra["farthing"]["models"].values()) == 8


@pytest.mark.parametrize("model", ["nope", "nope/smollm2-135m", "entropy_switch/nope"])
def test_a_model_that_there_is_not(sdk: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        ask(sdk, model=model)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert "economy" in raised.value.message or "smollm2-135m" in raised.value.message


def test_auto_says_which_way_it_took(sdk: OpenAI) -> None:
    answer = ask(sdk, model="auto", extra_headers={"X-Budget-Quality": "0.5"})
    assert answer.model_extra is not None and answer.usage is not None
    told = answer.model_extra["farthing"]
    assert told["policy"] == "auto" and told["preset"] and told["decided"]["kind"] == "plan"
    assert sum(told["models"].values()) == answer.usage.completion_tokens > 0


def test_headers_of_an_answer_and_of_a_stream(sdk: OpenAI) -> None:
    asked: Any = {"model": "economy", "messages": ASKED, "max_tokens": 8}
    headers = {"X-Budget-Usd": "0.0001", "X-Request-Id": "mine"}
    raw = sdk.chat.completions.with_raw_response.create(**asked, extra_headers=headers)
    assert raw.request_id == raw.headers["x-request-id"] == "mine"
    cost = float(raw.headers["x-farthing-cost-usd"])
    assert cost == raw.parse().usage.cost  # type: ignore[union-attr]  # a field of ours
    assert cost <= float(raw.headers["x-farthing-estimate-usd"]) <= 0.0001
    assert float(raw.headers["x-farthing-budget-usd"]) == 0.0001
    with sdk.chat.completions.with_streaming_response.create(
        **asked, stream=True, extra_headers=headers
    ) as stream:
        assert stream.headers["x-farthing-policy"] == "economy"
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.request_id == "mine"


def test_budget_and_policy_in_the_body(sdk: OpenAI) -> None:
    policy = {"name": "entropy_switch", "raise_at": "inf", "small": "smollm2-tiny"}
    extra = {"budget": {"usd": "0.00005", "fallback": "strict"}, "policy": policy}
    answer = ask(sdk, extra_body=extra)
    assert answer.farthing["models"] == {"smollm2-tiny": 8}
    with pytest.raises(openai.APIStatusError) as raised:
        ask(sdk, max_tokens=4000, extra_body=extra)
    assert (raised.value.status_code, raised.value.code) == (402, "budget_exceeded")


def test_policy_in_the_header(sdk: OpenAI) -> None:
    policy = 'entropy_switch;raise_at=0;lower_at="-inf";small=smollm2-tiny;start="large"'
    answer = ask(sdk, extra_headers={"X-Policy": policy, "X-Debug": "1"})
    assert answer.farthing["models"] == {MODEL: 8}
    with pytest.raises(openai.BadRequestError) as raised:
        ask(sdk, extra_headers={"X-Policy": "entropy_switch;raise_at=high"})
    assert raised.value.param == "X-Policy"


def test_a_budget_cuts_and_says_so(sdk: OpenAI) -> None:
    answer = ask(sdk, max_tokens=200, extra_headers={"X-Budget-Usd": "0.000004"})
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.finish_details == {"reason": "budget"}
    assert 0 < answer.usage.cost <= 0.000004


def test_errors_are_the_classes_that_programs_catch(gateway: Gateway, sdk: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as who:
        ask(sdk.with_options(api_key="sk-nobody"))
    assert who.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as bad:
        ask(sdk, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.PermissionDeniedError) as narrow:
        ask(sdk.with_options(api_key=gateway.new_key("narrow", models=["economy"])))
    assert narrow.value.param == "model"
    with pytest.raises(openai.APIStatusError) as poor:
        ask(sdk, extra_headers={"X-Budget-Usd": "0"})
    assert poor.value.status_code == 402
    for error in (who, bad, narrow, poor):
        assert error.value.request_id
        assert error.value.body["message"] in str(error.value)  # type: ignore[index]  # a dict


def requests(gateway: Gateway, key: str) -> int:
    return int(gateway.usage(key)["requests"])


def test_what_is_not_to_be_retried_is_not(sdk: OpenAI) -> None:
    """402 and 504 say so to the SDK, which would pay twice for a 504."""
    with counting(sdk.with_options(max_retries=3)) as (patient, statuses):
        with pytest.raises(openai.APIStatusError):
            ask(patient, extra_headers={"X-Budget-Usd": "0"})
        with pytest.raises(openai.InternalServerError):
            ask(patient, max_tokens=4000, extra_headers={"X-Budget-Latency-Ms": "30"})
    assert statuses == [402, 504]


@contextmanager
def counting(
    sdk: OpenAI, refused: Callable[[], object] = lambda: None
) -> Iterator[tuple[OpenAI, list[int]]]:
    """This client, and the status of each answer that it gets; `refused` is called at a 429."""
    statuses: list[int] = []

    def note(response: Any) -> None:
        statuses.append(response.status_code)
        if response.status_code == 429:
            refused()

    with openai.DefaultHttpxClient(event_hooks={"response": [note]}) as http:
        yield sdk.with_options(http_client=http), statuses


def test_a_rate_is_waited_for_and_paid_once(gateway: Gateway, sdk: OpenAI) -> None:
    key = gateway.new_key("slow", concurrency=1, usd_total="1")
    with sdk.with_options(api_key=key).chat.completions.stream(
        model=MODEL, messages=ASKED, max_tokens=2000
    ) as long:
        next(iter(long))
        with pytest.raises(openai.RateLimitError) as raised:
            ask(sdk.with_options(api_key=key))
        assert float(raised.value.response.headers["retry-after"]) > 0
        again = sdk.with_options(api_key=key, max_retries=10)
        with counting(again, refused=long.close) as (patient, statuses):
            assert ask(patient).usage.completion_tokens == 8
    assert statuses == [429] * (len(statuses) - 1) + [200]
    assert len(statuses) > 1
    until(lambda: requests(gateway, key) == 2)


def test_a_client_that_has_had_enough_stops_the_model(gateway: Gateway, sdk: OpenAI) -> None:
    key = gateway.new_key("hasty", usd_total="1")
    hasty = sdk.with_options(api_key=key)
    stream = ask(hasty, stream=True, max_tokens=2000)
    for seen, _ in enumerate(stream):
        if seen == 3:
            break
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        ask(hasty.with_options(timeout=0.5), max_tokens=4000, stream=False)
    until(lambda: requests(gateway, key) == 2)
    assert 0 < gateway.usage(key)["completion_tokens"] < 2000


def test_embeddings(sdk: OpenAI) -> None:
    """The SDK asks for base64 by itself, and gives floats."""
    texts = ["The sky is blue.", "Blue is the sky.", "def main(): return 0"]
    answer = sdk.embeddings.create(model=MODEL, input=texts)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    first, near, far = (entry.embedding for entry in answer.data)
    assert cosine(first, near) > cosine(first, far)
    plain = sdk.embeddings.create(model=MODEL, input=texts[0], encoding_format="float")
    assert cosine(plain.data[0].embedding, first) > 0.999
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > plain.usage.prompt_tokens
    with pytest.raises(openai.APIStatusError) as poor:
        sdk.embeddings.create(model=MODEL, input=texts, extra_headers={"X-Budget-Usd": "0"})
    assert poor.value.status_code == 402


def cosine(one: list[float], other: list[float]) -> float:
    return sum(map(operator.mul, one, other)) / (math.hypot(*one) * math.hypot(*other))
