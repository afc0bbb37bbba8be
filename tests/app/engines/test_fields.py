"""A field that a token loop cannot honour is refused by its name, unless it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from app.engines.fields import check
from app.errors import EngineUnsupported
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
    ("store", True),
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
