"""A field that a token loop cannot honour is refused by its name, unless it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.embedding_create_params import EmbeddingCreateParams

from app.engines.fields import FIELDS, check
from app.errors import EngineUnsupported
from routers.readings import EmbeddingRequest
from routers.wire import ChatRequest, CompletionRequest
from tests.app.engines.remote.toy import call

TOOL = {"type": "function", "function": {"name": "f"}}
REFUSED: list[tuple[str, Any]] = [
    ("tools", [TOOL]),
    ("tool_choice", "required"),
    ("tool_choice", TOOL),
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("response_format", "text"),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "alloy"}),
    ("web_search_options", {}),
    ("best_of", 2),
    ("echo", True),
    ("suffix", "x"),
    ("min_tokens", 5),
    ("use_beam_search", True),
    ("truncate_prompt_tokens", 100),
    ("skip_special_tokens", False),
    ("include_stop_str_in_output", True),
    ("prompt_logprobs", 0),
    ("structured_outputs", {"choice": ["a"]}),
    ("guided_json", {"type": "object"}),
    ("guided_regex", "a+"),
    ("guided_choice", ["a"]),
    ("guided_grammar", "root ::= 'a'"),
    ("bad_words", ["a"]),
    ("continue_final_message", True),
    ("add_generation_prompt", False),
]
RENDERED: list[tuple[str, Any]] = [
    ("chat_template", "{{ messages }}"),
    ("chat_template_kwargs", {"enable_thinking": False}),
    ("documents", [{"text": "x"}]),
]
HARMLESS: list[tuple[str, Any]] = [
    ("tools", []),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("response_format", {"type": "text"}),
    ("modalities", ["text"]),
    ("best_of", 1),
    ("echo", False),
    ("suffix", ""),
    ("min_tokens", 0),
    ("structured_outputs", {}),
    ("add_generation_prompt", True),
    ("user", "me"),
    ("metadata", {"a": "b"}),
    *((field, None) for field, _ in (*REFUSED, *RENDERED)),
]


@pytest.mark.parametrize("renders", [True, False])
@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_refused_by_its_name(field: str, value: Any, renders: bool) -> None:
    with pytest.raises(EngineUnsupported, match=f"^{field}: ") as raised:
        check(call(extra={field: value}), renders=renders)
    assert (raised.value.param, raised.value.code) == (field, "unsupported")


@pytest.mark.parametrize(("field", "value"), RENDERED)
def test_fields_of_the_template_need_an_engine_that_renders(field: str, value: Any) -> None:
    check(call(extra={field: value}), renders=True)
    with pytest.raises(EngineUnsupported, match=f"^{field}: "):
        check(call(extra={field: value}))


@pytest.mark.parametrize(("field", "value"), HARMLESS)
def test_what_changes_nothing_is_taken(field: str, value: Any) -> None:
    check(call(extra={field: value}))


def test_several_choices_are_not_written_token_by_token() -> None:
    with pytest.raises(EngineUnsupported, match="^n: ") as raised:
        check(call(choices=2))
    assert raised.value.param == "n"


@pytest.mark.parametrize("number", [-1, 21])
def test_token_by_token_no_more_than_20_of_the_likeliest_are_told(number: int) -> None:
    with pytest.raises(EngineUnsupported, match="^logprobs: ") as raised:
        check(call(sampling={"logprobs": number}))
    assert raised.value.param == "logprobs"
    with pytest.raises(EngineUnsupported) as raised:
        check(call(prompt=None, sampling={"logprobs": number}))
    assert raised.value.param == "top_logprobs"
    check(call(sampling={"logprobs": 20}))


@pytest.mark.parametrize("renders", [False, True])
def test_a_picture_is_not_lost_on_the_way_but_refused(renders: bool) -> None:
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = ({"role": "user", "content": "a"}, {"role": "user", "content": parts})
    with pytest.raises(EngineUnsupported) as caught:
        check(call(prompt=None, messages=messages), renders=renders)
    assert caught.value.param == "messages.1.content"
    check(call(prompt=None, messages=({"role": "user", "content": parts[:1]},)), renders=renders)


# Of vLLM 0.32's ChatCompletionRequest and CompletionRequest, beyond OpenAI's.
VLLMS = (
    *("add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words"),
    *("cache_salt", "chat_template", "chat_template_kwargs", "continue_final_message"),
    *("documents", "echo", "ignore_eos", "include_reasoning"),
    *("include_stop_str_in_output", "length_penalty", "logprob_token_ids"),
    *("media_io_kwargs", "min_p", "min_tokens", "mm_processor_kwargs", "priority"),
    *("prompt_logprobs", "repetition_detection", "repetition_penalty"),
    *("return_token_ids", "return_tokens_as_token_ids", "skip_special_tokens"),
    *("spaces_between_special_tokens", "stop_token_ids", "stream_interval"),
    *("structured_outputs", "thinking_token_budget", "top_k", "truncate_prompt_tokens"),
    *("truncation_side", "use_beam_search", "watermarking"),
)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (ChatRequest, chat_params.CompletionCreateParamsBase.__annotations__),
        (CompletionRequest, text_params.CompletionCreateParamsBase.__annotations__),
        (EmbeddingRequest, EmbeddingCreateParams.__annotations__),
        (ChatRequest, VLLMS),
        (CompletionRequest, VLLMS),
    ],
)
def test_somebody_has_decided_on_every_field_there_is(shape: Any, names: Any) -> None:
    """A new one of the SDK's is to be served, or to stand in the table."""
    assert set(names) - set(shape.model_fields) - set(FIELDS) == set()


def test_the_table_decides_on_nothing_that_is_read_elsewhere() -> None:
    """These three are of /v1/completions; a chat may have vLLM's `echo`."""
    assert set(FIELDS) & set(ChatRequest.model_fields) == set()
    assert set(FIELDS) & set(CompletionRequest.model_fields) == {"best_of", "echo", "suffix"}


@pytest.mark.parametrize(
    ("field", "harmless", "other"),
    [
        ("store", False, True),
        ("service_tier", "auto", "priority"),
        ("audio", None, {"voice": "a"}),
        ("web_search_options", None, {}),
        ("modalities", ["text"], ["audio"]),
        ("moderation", None, {"model": "m"}),
        ("allowed_token_ids", None, [1]),
        ("priority", 0, 1),
        ("cache_salt", None, "salt"),
        ("return_token_ids", False, True),
        ("logprob_token_ids", None, [1]),
        ("repetition_detection", None, {"max_pattern_size": 1}),
    ],
)
def test_what_would_change_the_answer_is_refused_by_its_name(
    field: str, harmless: Any, other: Any
) -> None:
    check(call(extra={field: harmless}))
    with pytest.raises(EngineUnsupported) as refusal:
        check(call(extra={field: other}))
    assert refusal.value.param == field


def test_what_a_server_takes_along_with_ids_is_its_own_to_judge() -> None:
    check(call(extra={"allowed_token_ids": [1], "cache_salt": "a", "priority": 2}), renders=True)


@pytest.mark.parametrize(
    "field",
    ["user", "metadata", "safety_identifier", "prompt_cache_key", "prediction", "verbosity"],
)
def test_what_changes_no_answer_is_taken(field: str) -> None:
    check(call(extra={field: {"type": "any"}}))
