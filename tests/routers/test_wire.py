"""What a body says reaches the Call, and what it may not say is refused by field."""

import time

import pytest
from fastapi.datastructures import Headers

from app.errors import BadRequest
from app.types import Sampling
from routers.wire import ChatRequest, CompletionRequest, understand
from tests.routers.reading import QUESTION, asking


def chat(headers=None, **fields):
    return understand(ChatRequest, asking(**fields), Headers(headers or {}), time.monotonic())


def text(**fields):
    document = {"model": "large", "prompt": "a b", **fields}
    return understand(CompletionRequest, document, Headers({}), 0.0).order.call


def test_every_sampling_field_reaches_the_call():
    call = chat(
        max_tokens=7,
        temperature=0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "17": 2.5},
        seed=-3,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        logprobs=True,
        top_logprobs=2,
    ).order.call
    assert call.max_tokens == 7
    assert call.sampling == Sampling(
        temperature=0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        logit_bias={5: -100.0, 17: 2.5},
        seed=-3,
        stop=("a", "b"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
        logprobs=2,
    )


def test_null_is_as_if_it_were_not_there():
    fields = set(ChatRequest.model_fields) - {"model", "messages"}
    plain, nulls = chat().order.call, chat(**dict.fromkeys(fields)).order.call
    assert nulls.sampling == plain.sampling == Sampling()
    assert (nulls.max_tokens, nulls.extra) == (None, {})


def test_what_we_do_not_know_goes_on_untouched():
    tools = [{"type": "function", "function": {"name": "f"}}]
    call = chat(tools=tools, user="ann", refuse=1, budget={"usd": 1}).order.call
    assert call.extra == {"tools": tools, "user": "ann", "refuse": 1}


def test_messages_stay_as_they_were_sent():
    parts = [{"type": "text", "text": "hi", "cache": 1}, {"type": "image_url", "image_url": {}}]
    messages = [*QUESTION, {"role": "user", "name": "ann", "content": parts}]
    assert list(chat(messages=messages).order.call.messages) == messages


def test_an_assistant_that_only_called_a_tool_has_no_content():
    called = {"role": "assistant", "tool_calls": []}
    (message,) = chat(messages=[called]).order.call.messages
    assert message == {**called, "content": None}


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 5),
    ],
)
def test_the_lower_token_limit_counts(fields, limit):
    assert chat(**fields).order.call.max_tokens == limit


def test_logprobs_without_top_are_of_the_token_alone():
    assert chat(logprobs=True).order.call.sampling.logprobs == 0
    assert chat(logprobs=False, top_logprobs=0).order.call.sampling.logprobs is None


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [("a b", "a b"), (["a b"], "a b"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2))],
)
def test_one_prompt_may_be_text_or_ids_alone_or_in_a_list(prompt, taken):
    assert text(prompt=prompt).prompt == taken


def test_a_completion_is_short_unless_asked():
    assert (text().max_tokens, text(max_tokens=None).max_tokens) == (16, None)


def test_a_deadline_counts_from_the_arrival():
    asked = understand(ChatRequest, asking(), Headers({"x-budget-latency-ms": "1500"}), 100.0)
    assert asked.order.call.goals.deadline == 101.5


def test_every_answer_has_an_id_of_its_own_and_of_its_kind():
    ids = {chat().order.call.id for _ in range(3)}
    assert len(ids) == 3 and all(id.startswith("chatcmpl-") for id in ids)
    assert text().id.startswith("cmpl-")


BAD_CHAT = [
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages.0"),
    ({"messages": [*QUESTION, {"content": "hi"}]}, "messages.1.role"),
    ({"messages": [{"role": "", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "r" * 65, "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0.type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 5.0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"temperature": "warm"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", 5]}, "stop.1"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"n": 129}, "n"),
    ({"n": 0}, "n"),
    ({"n": "1"}, "n"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": -2}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"budget": 1}, "budget"),
    ({"budget": {"usd": True}}, "budget.usd"),
    ({"budget": {"usd": -1}}, "budget.usd"),
    ({"budget": {"usd": "1e400"}}, "budget.usd"),
    ({"budget": {"latency_ms": 0}}, "budget.latency_ms"),
    ({"budget": {"latency_ms": "5"}}, "budget.latency_ms"),
    ({"budget": {"ttft_ms": -1}}, "budget.ttft_ms"),
    ({"budget": {"fallback": "none"}}, "budget.fallback"),
    ({"budget": {"gpu_seconds": -1}}, "budget.gpu_seconds"),
    ({"budget": {"quality": 2}}, "budget.quality"),
    ({"policy": 5}, "policy"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHAT, ids=lambda value: str(value)[:50])
def test_a_bad_field_of_a_chat_is_refused_by_its_path(fields, param):
    with pytest.raises(BadRequest) as refusal:
        chat(**fields)
    assert refusal.value.param == param
    assert refusal.value.message.startswith(f"{param}: ")


BAD_TEXT = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt.1"),
    ({"prompt": [1.5]}, "prompt.0"),
    ({"prompt": [-1]}, "prompt.0"),
    ({"prompt": [True]}, "prompt.0"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": -2}, "logprobs"),
    ({"echo": 1}, "echo"),
    ({"suffix": 3}, "suffix"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"best_of": 2, "n": 3}, "best_of"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_TEXT, ids=lambda value: str(value)[:50])
def test_a_bad_field_of_a_completion_is_refused_by_its_path(fields, param):
    with pytest.raises(BadRequest) as refusal:
        text(**fields)
    assert refusal.value.param == param
    assert refusal.value.message.startswith(f"{param}: ")


def test_what_asks_for_nothing_is_taken():
    assert text(echo=False, suffix="", best_of=1, n=1).prompt == "a b"


def test_keys_that_are_no_token_ids_are_named_but_not_all_of_many():
    with pytest.raises(BadRequest, match=r"^logit_bias: .*, not 'a', 'b'$"):
        chat(logit_bias={"a": 1, "7": 1, "b": 1})
    with pytest.raises(BadRequest) as refusal:
        chat(logit_bias={f"{i}" + "x" * 1000: 1 for i in range(1000)})
    assert len(refusal.value.message) < 300


def test_a_role_that_only_a_template_knows_goes_on_to_the_engine():
    messages = [{"role": "critic", "content": "hi"}]
    assert chat(messages=messages).order.call.messages == tuple(messages)


@pytest.mark.parametrize("number", [-1, 21, 49152])
def test_how_many_of_the_likeliest_a_server_tells_is_its_own_affair(number):
    assert chat(logprobs=True, top_logprobs=number).order.call.sampling.logprobs == number
    assert text(logprobs=number).sampling.logprobs == number


@pytest.mark.parametrize(
    ("ask", "field"),
    [(chat, "messages"), (chat, "stop"), (chat, "stop_token_ids"), (text, "prompt")],
)
def test_a_million_faults_cost_no_more_than_one(ask, field):
    began = time.monotonic()
    with pytest.raises(BadRequest):
        ask(**{field: [None] * 1_000_000})
    assert time.monotonic() - began < 1
