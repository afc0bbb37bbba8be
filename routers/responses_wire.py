"""Requests for a response in OpenAI's newer shape, and the way from them to a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.errors import BadRequest
from routers.body import Closed, few, objects, string
from routers.terms import BudgetField
from routers.wire import Count

LOGPROBS = "message.output_text.logprobs"
_SAME = ("model", "stream", "temperature", "top_p")  # as a chat has them
# Of OpenAI's own service; to answer without them would be to answer something else.
_NOT_SERVED = ("conversation", "prompt", "context_management", "moderation", "messages")
Item = dict[str, Any]


class TextConfig(Closed):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    effort: str | None = None


class ResponsesRequest(BaseModel):
    """The body of POST /v1/responses. A field that is not here goes on as a chat's does."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=256)
    input: str | Annotated[list[Item], Field(fail_fast=True, min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Count | None = None  # of tools that none is served
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[str], Field(fail_fast=True, max_length=16)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(few), Field(max_length=16)] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, Field(max_length=96)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    budget: BudgetField | None = None
    policy: str | dict[str, Any] | None = None

    def refuse(self) -> None:
        """Raises BadRequest for what is well-formed but not served."""
        if self.background:
            raise BadRequest("background: is not supported; stream instead", param="background")
        if self.truncation == "auto":
            raise BadRequest("truncation: nothing is cut off here", param="truncation")
        extra = self.model_extra or {}
        for name in _NOT_SERVED:
            if extra.get(name) is not None:
                raise BadRequest(f"{name}: is not supported", param=name)
        if extra.get("n") not in (None, 1):
            raise BadRequest("n: a response is one answer", param="n")

    @property
    def items(self) -> list[Item]:
        """The input, item by item."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    def chat(self, document: Mapping[str, Any], messages: Sequence[Item]) -> dict[str, Any]:
        """The body of the chat that this is, its messages given."""
        ours = {key: document[key] for key in (*_SAME, "budget", "policy") if key in document}
        chat = {**(self.model_extra or {}), **ours, "messages": list(messages)}
        if self.max_output_tokens is not None:
            chat["max_completion_tokens"] = self.max_output_tokens
        if self.tools:
            chat["tools"] = [_tool(tool, f"tools.{i}") for i, tool in enumerate(self.tools)]
            if self.parallel_tool_calls is not None:
                chat["parallel_tool_calls"] = self.parallel_tool_calls
        if self.tool_choice is not None:
            chat["tool_choice"] = _choice(self.tool_choice)
        if self.reasoning is not None and self.reasoning.effort is not None:
            chat["reasoning_effort"] = self.reasoning.effort
        if self.top_logprobs or LOGPROBS in (self.include or ()):
            chat |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return chat | _text(self.text or TextConfig())

    def echo(self) -> dict[str, Any]:
        """What a response says of its request."""
        text = self.text or TextConfig()
        shown = {"format": text.format or {"type": "text"}, "verbosity": text.verbosity}
        effort = None if self.reasoning is None else self.reasoning.effort
        parallel = self.parallel_tool_calls
        extra = self.model_extra or {}
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": True if parallel is None else parallel,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": effort, "summary": None},
            "service_tier": "default",
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {key: value for key, value in shown.items() if value is not None},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": extra.get("user"),
        }


class Conversation:
    """Messages of a chat, from the items of responses: several may be one message."""

    def __init__(self, instructions: str | None) -> None:
        self._messages: list[Item] = []
        if instructions:
            self._messages.append({"role": "system", "content": instructions})

    @property
    def messages(self) -> list[Item]:
        """Without what only reasoned and came to nothing."""
        return [m for m in self._messages if m["content"] is not None or m.get("tool_calls")]

    def add(self, items: Iterable[Item]) -> None:
        """Raises BadRequest naming the field of an item that is not served, like input.0.type."""
        kinds: dict[Any, Callable[[Item, str], None]] = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._output,
            "reasoning": self._reasoning,
        }
        for index, item in enumerate(items):
            kind = item.get("type") or ("message" if "role" in item else None)
            take = kinds.get(kind) if isinstance(kind, str) else None
            if take is None:
                where = f"input.{index}.type"
                raise BadRequest(f"{where}: {str(kind)[:64]!r} is not supported", param=where)
            take(item, f"input.{index}")

    def _message(self, item: Item, param: str) -> None:
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            where = f"{param}.role"
            raise BadRequest(f"{where}: must be user, assistant, system or developer", param=where)
        content = _content(item.get("content"), f"{param}.content", plain=role == "assistant")
        if role == "assistant" and self._is_open("content"):
            self._messages[-1]["content"] = content
        else:
            self._messages.append({"role": role, "content": content})

    def _call(self, item: Item, param: str) -> None:
        if not self._is_open():
            self._messages.append({"role": "assistant", "content": None})
        function = {key: string(item, key, param) for key in ("name", "arguments")}
        call = {"id": string(item, "call_id", param), "type": "function", "function": function}
        self._messages[-1].setdefault("tool_calls", []).append(call)

    def _output(self, item: Item, param: str) -> None:
        content = _content(item.get("output"), f"{param}.output")
        id = string(item, "call_id", param)
        self._messages.append({"role": "tool", "tool_call_id": id, "content": content})

    def _reasoning(self, item: Item, param: str) -> None:
        if item.get("encrypted_content"):
            where = f"{param}.encrypted_content"
            raise BadRequest(f"{where}: cannot be read here", param=where)
        parts = objects(item.get("content")) or objects(item.get("summary"))
        text = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        if text:
            self._messages.append({"role": "assistant", "content": None, "reasoning": text})

    def _is_open(self, *without: str) -> bool:
        """Whether the last message is the assistant's, and has none of these yet nor a call."""
        last = self._messages[-1] if self._messages else {"role": None}
        if last["role"] != "assistant":
            return False
        return not without or (last["content"] is None and not last.get("tool_calls"))


def _content(content: Any, param: str, *, plain: bool = False) -> str | list[Item]:
    """A chat's content: text, or parts; `plain`: text only."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise BadRequest(f"{param}: must be a string or an array of objects", param=param)
    parts = [_part(part, f"{param}.{index}") for index, part in enumerate(content)]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(texts) == len(parts) and (plain or len(texts) < 2):
        return "".join(texts)
    if plain:
        raise BadRequest(f"{param}: the assistant's is text", param=param)
    return parts


def _part(part: Mapping[str, Any], param: str) -> Item:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": string(part, "text", param)}
    if kind == "refusal":
        return {"type": "text", "text": string(part, "refusal", param)}
    if kind == "input_image":
        image = {"url": string(part, "image_url", param)}
        if isinstance(part.get("detail"), str):
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        file = {key: part[key] for key in ("file_data", "filename") if key in part}
        return {"type": "file", "file": file}
    where = f"{param}.type"
    raise BadRequest(f"{where}: {str(kind)[:64]!r} is not supported", param=where)


def _tool(tool: Mapping[str, Any], param: str) -> Item:
    if tool.get("type") != "function":
        where, kind = f"{param}.type", str(tool.get("type"))[:64]
        raise BadRequest(f"{where}: {kind!r} is not served here, only functions are", param=where)
    string(tool, "name", param)
    fields = ("name", "description", "parameters", "strict")
    function = {key: tool[key] for key in fields if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _choice(choice: str | Mapping[str, Any]) -> str | Item:
    if isinstance(choice, str):
        if choice in ("none", "auto", "required"):
            return choice
    elif choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise BadRequest("tool_choice: must be none, auto, required or a function", param="tool_choice")


def _text(text: TextConfig) -> Item:
    chat: Item = {} if text.verbosity is None else {"verbosity": text.verbosity}
    form = text.format or {"type": "text"}
    kind = form.get("type")
    if kind == "json_schema":
        string(form, "name", "text.format")
        chat["response_format"] = {
            "type": kind,
            "json_schema": {key: value for key, value in form.items() if key != "type"},
        }
    elif kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind != "text":
        where = "text.format.type"
        raise BadRequest(f"{where}: must be text, json_object or json_schema", param=where)
    return chat
