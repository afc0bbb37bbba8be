"""The tools that a request offers, and how a model that knows none is told of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import BadRequest, EngineUnsupported
from app.types import Call, Message

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_MOST = 128
_encode = json.JSONEncoder(ensure_ascii=False).encode

# Word for word what Qwen2.5's template tells it (and Hermes' told that): models know it.
_TOLD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]  # a JSON schema
    param: str  # the field of the request that holds the schema


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request, and what it says of their use."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] | Tool  # which one is to be called, where one is named
    several: bool  # whether an answer may call more than one


def offered(call: Call) -> Offer | None:
    """What the call offers; None: nothing. Raises BadRequest naming the field."""
    given, choice = call.extra.get("tools"), call.extra.get("tool_choice")
    if not given:
        if choice not in (None, "none", "auto"):
            raise BadRequest("tool_choice: there are no tools to choose from", param="tool_choice")
        return None
    if call.prompt is not None:
        raise EngineUnsupported("tools: are for chats", param="tools")
    tools = _tools(given)
    if choice == "none":
        return None
    several = call.extra.get("parallel_tool_calls")
    if not isinstance(several, bool | None):
        raise BadRequest("parallel_tool_calls: must be a boolean", param="parallel_tool_calls")
    return Offer(tools, _choice(choice, tools), several is not False)


def told(tools: Iterable[Any]) -> str:
    """The words about these tools, as OpenAI's JSON has them, for a system message."""
    return _TOLD.format(tools="\n".join(map(_encode, tools)))


def spelled(messages: Sequence[Message], tools: Iterable[Any]) -> list[dict[str, str]]:
    """Plain messages that say what these say with tools, their calls and their results.

    `messages` as `readable` gives them.
    """
    plain: list[dict[str, str]] = []
    first, words = messages[0], told(tools) if tools else ""
    if words and first["role"] != "system":
        plain.append({"role": "system", "content": words})
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if message is first and words and role == "system":
            content = f"{content}\n\n{words}"
        for made in message.get("tool_calls", ()):
            called = _encode(made["function"])
            content += f"{content and chr(10)}{OPEN}\n{called}\n{CLOSE}"
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
            if i and messages[i - 1]["role"] == "tool":
                content = f"{plain.pop()['content']}\n{content}"
        plain.append({"role": role, "content": content})
    return plain


def calls(message: Message, where: str) -> list[dict[str, Any]]:
    """The calls that an assistant's message made, arguments as objects: as templates want them.

    Raises BadRequest naming the field.
    """
    made = message.get("tool_calls") or ()
    if not isinstance(made, list | tuple):
        raise BadRequest("tool_calls must be a list", param=f"{where}.tool_calls")
    found = []
    for i, each in enumerate(made):
        at = f"{where}.tool_calls.{i}.function"
        function = each.get("function") if isinstance(each, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str):
            raise BadRequest("a tool call needs a function with a name", param=at)
        arguments = _object(function.get("arguments"))
        if arguments is None:
            raise BadRequest("arguments must be an object's JSON", param=f"{at}.arguments")
        found.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    return found


def _object(arguments: Any) -> dict[str, Any] | None:
    if not isinstance(arguments, str):
        return None
    try:
        value = json.loads(arguments or "{}")  # some servers write nothing for no arguments
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _tools(given: Any) -> tuple[Tool, ...]:
    if not isinstance(given, list | tuple) or len(given) > _MOST:
        raise BadRequest(f"tools: must be a list of at most {_MOST}", param="tools")
    tools = tuple(_tool(each, f"tools.{i}") for i, each in enumerate(given))
    if len({tool.name for tool in tools}) < len(tools):
        raise BadRequest("tools: two have the same name", param="tools")
    return tools


def _tool(given: Any, where: str) -> Tool:
    if not isinstance(given, Mapping):
        raise BadRequest(f"{where}: must be an object", param=where)
    if given.get("type") != "function":
        raise EngineUnsupported(f"{where}.type: must be `function`", param=f"{where}.type")
    function = given.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        at = f"{where}.function.name"
        raise BadRequest(f"{at}: must be 1 to 128 letters, digits and any of _.:-", param=at)
    param, schema = f"{where}.function.parameters", function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise BadRequest(f"{param}: must be the JSON schema of an object", param=param)
    return Tool(name, {**schema, "type": "object"}, param)


def _choice(choice: Any, tools: Sequence[Tool]) -> Literal["auto", "required"] | Tool:
    if choice is None or choice == "auto":
        return "auto"
    if choice == "required":
        return "required"
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or choice.get("type") != "function":
        raise EngineUnsupported(
            "tool_choice: must be auto, none, required or a named function", param="tool_choice"
        )
    named = next((tool for tool in tools if tool.name == name), None)
    if named is None:
        raise BadRequest(f"tool_choice: no tool has the name {name!r}", param="tool_choice")
    return named
