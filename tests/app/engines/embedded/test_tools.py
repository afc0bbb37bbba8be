"""What a request offers of tools, and how a model that knows none is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.engines.embedded.grammar import Grammars
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer
from app.engines.embedded.tools import Tool, offered, spelled, told
from app.errors import BadRequest
from app.types import Call

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FREE: dict[str, Any] = {"type": "object", "properties": {}}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TWO = [tool("f", SCHEMA), tool("g", FREE)]


def asking(**extra: Any) -> Call:
    return Call("tiny", ({"role": "user", "content": "x"},), extra=extra)


def written(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


F, G = written("f", '{"n": 3}'), written("g", "{}")
NAMED = {"type": "function", "function": {"name": "g"}}
JSON = {"type": "json_object"}


@pytest.mark.parametrize(
    ("extra", "takes", "refuses"),
    [
        ({}, [F, "Hi.", f"See: {F}", f"{F}\n{G}", "<tool_"], [written("h", "{}"), f"{F} and"]),
        ({"tool_choice": "auto"}, [G], [written("f", "{}"), written("g", '{"a": 1}')]),
        ({"tool_choice": "required"}, [F, f"{G}\n{F}"], ["Hi.", " " + F]),
        ({"tool_choice": NAMED}, [G], [F, f"{G}\n{G}", "Hi."]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [F], [f"{F}\n{G}"]),
        ({"parallel_tool_calls": False}, [F, "Hi."], [f"{F}\n{G}"]),
        ({"response_format": JSON}, [F, '{"a": 1}'], ["Hi.", "[1]"]),
        ({"tool_choice": "required", "response_format": JSON}, [F], ['{"a": 1}']),
    ],
)
async def test_what_an_answer_may_be(
    grammars: Grammars,
    tiny: Tokenizer,
    extra: dict[str, Any],
    takes: list[str],
    refuses: list[str],
) -> None:
    for text in (*takes, *refuses):
        constraint = await grammars.constraint(asking(tools=TWO, **extra))
        assert constraint is not None
        ends = constraint.advance(tiny.continued(text)) and (
            constraint.over or bool(constraint.allowed(258)[sorted(tiny.eos_ids)].all())
        )
        assert ends == (text in takes), text


async def test_who_may_call_nothing_is_free(grammars: Grammars) -> None:
    assert await grammars.constraint(asking(tools=TWO, tool_choice="none")) is None


def test_an_offer_is_understood() -> None:
    offer = offered(asking(tools=TWO, tool_choice={"type": "function", "function": {"name": "f"}}))
    assert offer is not None and offer.several
    assert offer.choice == Tool("f", SCHEMA, "tools.0.function.parameters")
    assert offered(asking(tools=None, tool_choice="auto")) is None


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": "f"}, "tools"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools"),
        ({"tools": [tool("f"), tool("f")]}, "tools"),
        ({"tools": ["f"]}, "tools.0"),
        ({"tools": [{"type": "custom"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function.name"),
        ({"tools": [tool("a b")]}, "tools.0.function.name"),
        ({"tools": [tool("f", {"type": "array"})]}, "tools.0.function.parameters"),
        ({"tools": TWO, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TWO[:1], "tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TWO, "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)  # fmt: skip
def test_what_is_no_offer_is_refused_by_name(extra: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        offered(asking(**extra))
    assert caught.value.param == param


def test_tools_are_for_chats() -> None:
    with pytest.raises(BadRequest, match="chats"):
        offered(Call("tiny", prompt="x", extra={"tools": TWO}))


CALLED = {"type": "function", "function": {"name": "f", "arguments": {"n": 3}}}
PLAIN: list[dict[str, Any]] = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "", "tool_calls": [CALLED, CALLED]},
    {"role": "tool", "content": "4"},
    {"role": "tool", "content": "5"},
]


def test_calls_and_results_are_spelled_as_models_learnt_them() -> None:
    assert spelled(PLAIN, ()) == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": f"{F}\n{F}"},
        {
            "role": "user",
            "content": "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>",
        },
    ]


def test_tools_are_told_of_in_the_system_s_message() -> None:
    alone, *_ = spelled(PLAIN, TWO)
    assert alone == {"role": "system", "content": told(TWO)}
    assert all(json.dumps(each) in alone["content"] for each in TWO)
    after, *rest = spelled([{"role": "system", "content": "Be brief."}, *PLAIN], TWO)
    assert after["content"] == f"Be brief.\n\n{told(TWO)}"
    assert [each["role"] for each in rest] == ["user", "assistant", "user"]


KNOWS = (
    "{% if tools %}TOOLS {{ tools | length }} as <tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
)


def test_a_template_that_knows_tools_says_so_itself(tiny_folder: Path) -> None:
    knows = load_tokenizer(tiny_folder)
    knows._fast.chat_template = KNOWS
    called = {"function": {"name": "f", "arguments": '{"n": 3}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "content": "4"},
    ]
    said = 'user:x;assistant:{"n": 3};tool:4;'
    assert knows.render(messages, TWO) == f"TOOLS 2 as <tool_call>{said}"
    assert knows.render(messages) == said


def test_arguments_that_are_nested_too_deeply_are_refused(tiny_folder: Path) -> None:
    """Their JSON is a string, in which nobody else counts. Read it can be, but not written."""
    knows = load_tokenizer(tiny_folder)
    knows._fast.chat_template = KNOWS
    called = {"function": {"name": "f", "arguments": '{"a":' * 700 + "1" + "}" * 700}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
    ]
    with pytest.raises(BadRequest) as caught:
        knows.render(messages)
    assert caught.value.param == "messages"
