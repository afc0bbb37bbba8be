"""Requests in Anthropic's shape, and the way from them to a chat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import BadRequest
from routers.body import Closed, string
from routers.terms import BudgetField
from routers.wire import Count, StopString

Block = dict[str, Any]
_EXTRA = ("budget", "policy", "model", "max_tokens", "temperature", "top_p", "top_k", "stream")
# Of Anthropic's own service; to answer without them would be to answer something else.
_NOT_SERVED = ("container", "mcp_servers", "context_management", "n")
_IGNORED = ("service_tier", "cache_control", "inference_geo", "speed", "diagnostics")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class OutputConfig(Closed):
    effort: str | None = None
    format: dict[str, Any] | None = None


class Thinking(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: Literal["enabled", "disabled", "adaptive"]


class Prompt(BaseModel):
    """What is said to the model."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=256)
    messages: Annotated[list[Block], Field(fail_fast=True, min_length=1)]
    system: str | Annotated[list[Block], Field(fail_fast=True)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    policy: str | dict[str, Any] | None = None

    def chat(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The body of the chat that this is. Raises BadRequest naming the field."""
        extra = self.model_extra or {}
        for name in _NOT_SERVED:
            if extra.get(name) is not None:
                raise BadRequest(f"{name}: is not supported", param=name)
        rest = {key: value for key, value in extra.items() if key not in _IGNORED}
        chat = {**rest, **{key: document[key] for key in _EXTRA if key in document}}
        chat["messages"] = _messages(self.system, self.messages)
        if chat["messages"][-1]["role"] == "assistant":
            # The answer goes on from where the client has begun it.
            chat |= {"continue_final_message": True, "add_generation_prompt": False}
        if self.tools:
            chat["tools"] = [_tool(tool, f"tools.{i}") for i, tool in enumerate(self.tools)]
        if self.tool_choice is not None:
            chat |= _choice(self.tool_choice)
        config = self.output_config or OutputConfig()
        if config.format is not None:
            chat["response_format"] = _format(config.format)
        off = self.thinking is not None and self.thinking.type == "disabled"
        effort = "none" if off else config.effort
        return chat if effort is None else {**chat, "reasoning_effort": effort}


class CountTokensRequest(Prompt):
    """The body of POST /v1/messages/count_tokens."""


class MessagesRequest(Prompt):
    """The body of POST /v1/messages. A field that is not here goes on as a chat's does."""

    max_tokens: Count
    stop_sequences: Annotated[list[StopString], Field(fail_fast=True, max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    metadata: dict[str, Any] | None = None
    stream: bool | None = None
    budget: BudgetField | None = None

    def chat(self, document: Mapping[str, Any]) -> dict[str, Any]:
        chat = super().chat(document)
        if self.stop_sequences:
            chat["stop"] = self.stop_sequences
        user = (self.metadata or {}).get("user_id")
        return chat | ({"user": user} if isinstance(user, str) else {})


def _messages(system: str | list[Block] | None, turns: Iterable[Block]) -> list[Block]:
    messages: list[Block] = []
    if system:
        messages.append({"role": "system", "content": _content(system, "system")})
    for index, turn in enumerate(turns):
        param, role, content = f"messages.{index}", turn.get("role"), turn.get("content")
        if role == "assistant":
            messages.append(_assistant(_blocks(content, f"{param}.content"), f"{param}.content"))
        elif role in ("user", "system"):
            blocks = _blocks(content, f"{param}.content")
            messages += _said(role, blocks, f"{param}.content")
        else:
            raise BadRequest(f"{param}.role: must be user or assistant", param=f"{param}.role")
    return messages


def _said(role: str, blocks: list[Block], param: str) -> list[Block]:
    """What a user says: the results of tools are messages of their own, and come first."""
    messages: list[Block] = []
    parts: list[Block] = []
    for index, block in enumerate(blocks):
        where = f"{param}.{index}"
        if block.get("type") == "tool_result":
            id = string(block, "tool_use_id", where)
            content = _content(block.get("content") or "", f"{where}.content")
            messages.append({"role": "tool", "tool_call_id": id, "content": content})
        else:
            parts.append(_part(block, where))
    if parts or not messages:
        messages.append({"role": role, "content": _plain(parts)})
    return messages


def _assistant(blocks: list[Block], param: str) -> Block:
    text: list[str] = []
    reasoning: list[str] = []
    calls: list[Block] = []
    for index, block in enumerate(blocks):
        where, kind = f"{param}.{index}", block.get("type")
        if kind == "text":
            text.append(string(block, "text", where))
        elif kind == "thinking":
            reasoning.append(string(block, "thinking", where))
        elif kind == "tool_use":
            if not isinstance(block.get("input"), dict):
                raise BadRequest(f"{where}.input: must be an object", param=f"{where}.input")
            arguments = json.dumps(block["input"], ensure_ascii=False)
            function = {"name": string(block, "name", where), "arguments": arguments}
            id = string(block, "id", where)
            calls.append({"id": id, "type": "function", "function": function})
        else:
            raise _unsupported(kind, f"{where}.type")
    message: Block = {"role": "assistant", "content": "".join(text) or (None if calls else "")}
    if reasoning:
        message["reasoning"] = "".join(reasoning)
    return message | ({"tool_calls": calls} if calls else {})


def _blocks(content: Any, param: str) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise BadRequest(f"{param}: must be a string or an array of objects", param=param)
    return content


def _content(content: Any, param: str) -> str | list[Block]:
    blocks = _blocks(content, param)
    return _plain([_part(block, f"{param}.{index}") for index, block in enumerate(blocks)])


def _plain(parts: list[Block]) -> str | list[Block]:
    """One text as a string: some engines read nothing else."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts or ""


def _part(block: Mapping[str, Any], param: str) -> Block:
    kind, source = block.get("type"), block.get("source")
    if kind == "text":
        return {"type": "text", "text": string(block, "text", param)}
    if kind in ("image", "document") and isinstance(source, dict):
        where = f"{param}.source"
        if source.get("type") == "text":
            return {"type": "text", "text": string(source, "data", where)}
        if kind == "image" and source.get("type") == "url":
            return {"type": "image_url", "image_url": {"url": string(source, "url", where)}}
        if source.get("type") == "base64":
            data = string(source, "data", where)
            url = f"data:{string(source, 'media_type', where)};base64,{data}"
            if kind == "image":
                return {"type": "image_url", "image_url": {"url": url}}
            return {"type": "file", "file": {"file_data": url}}
        raise _unsupported(source.get("type"), f"{where}.type")
    raise _unsupported(kind, f"{param}.type")


def _tool(tool: Mapping[str, Any], param: str) -> Block:
    if tool.get("type") not in (None, "custom"):
        kind = str(tool["type"])[:64]
        raise BadRequest(f"{param}.type: {kind!r} is not served here", param=f"{param}.type")
    function = {"name": string(tool, "name", param), "parameters": tool.get("input_schema")}
    if not isinstance(function["parameters"], dict):
        where = f"{param}.input_schema"
        raise BadRequest(f"{where}: must be an object", param=where)
    more = {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": {**function, **more}}


def _choice(choice: Mapping[str, Any]) -> Block:
    kind = choice.get("type")
    more = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    if kind == "tool":
        function = {"name": string(choice, "name", "tool_choice")}
        return {"tool_choice": {"type": "function", "function": function}, **more}
    if not isinstance(kind, str) or kind not in _CHOICES:
        where = "tool_choice.type"
        raise BadRequest(f"{where}: must be auto, any, tool or none", param=where)
    return {"tool_choice": _CHOICES[kind], **more}


def _format(form: Mapping[str, Any]) -> Block:
    where = "output_config.format"
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise BadRequest(f"{where}: must be a json_schema with a schema", param=where)
    schema = {"name": "output", "schema": form["schema"], "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _unsupported(kind: Any, param: str) -> BadRequest:
    return BadRequest(f"{param}: {str(kind)[:64]!r} is not supported", param=param)
