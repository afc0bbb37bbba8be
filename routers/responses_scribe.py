"""Writes an answer as a response in OpenAI's newer shape: whole, or as typed events."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from app.errors import BadRequest, FarthingError, Overloaded
from app.gateway import Answer
from app.types import Chunk
from routers.costs import cost, summary
from routers.deltas import Delta, Deltas, End, Piece, place, used
from routers.scribe import event
from routers.tool_calls import ToolDelta
from routers.wire import Asked

Keep: TypeAlias = Callable[[dict[str, Any]], Awaitable[bool]]
"""Keeps a response that has ended; False: it cannot be named again."""

PREFIX = "resp_"
_ITEM = {"text": "msg", "refusal": "msg", "reasoning": "rs", "call": "fc"}
# The events of a part's words, and the member of the part that holds them.
_PART = {
    "text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning": ("response.reasoning_text", "text"),
}


@dataclass
class _Open:
    """The output item that is being written."""

    kind: str
    call: int  # which tool call; -1: none
    item: dict[str, Any]
    said: list[str] = field(default_factory=list)
    logprobs: list[Mapping[str, Any]] = field(default_factory=list)


class ResponseScribe:
    """Writes one answer down."""

    def __init__(
        self, answer: Answer, asked: Asked, echo: Mapping[str, Any], keep: Keep | None
    ) -> None:
        """`echo`: what the response says of its request; `keep`: where it is kept, if at all."""
        self.id = asked.order.call.id
        self._answer = answer
        self._debug = asked.debug
        self._keep = keep
        self._deltas = Deltas(asked.order.call)
        self._output: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._sequence = 0
        self._envelope = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": answer.model,
            "store": keep is not None,
            **echo,
        }

    def begun(self) -> dict[str, Any]:
        """The response before there is anything of it."""
        return self._response("in_progress")

    def gather(self, chunk: Chunk) -> None:
        """Note a chunk of an answer that goes out whole."""
        self._take(self._deltas.feed(chunk))

    async def whole(self, finish: Chunk) -> dict[str, Any]:
        """The body of what was gathered."""
        return (await self._ended(finish))[0]

    def opening(self, first: Chunk | None = None) -> str:
        """Events before those of the first chunk."""
        begun = self.begun()
        return "".join(
            self._event(f"response.{name}", response=begun) for name in ("created", "in_progress")
        )

    def content(self, chunk: Chunk) -> str:
        """The events of this chunk."""
        return "".join(self._take(self._deltas.feed(chunk)))

    def ending(self, finish: Chunk) -> str:
        """There is one choice, and so none that is not the last."""
        raise AssertionError("a response is one answer")

    async def closing(self, finish: Chunk) -> str:
        """The last events, when the bill is final."""
        events = self._take(self._deltas.feed(finish))
        response, last = await self._ended(finish)
        name = "completed" if response["status"] == "completed" else "incomplete"
        return "".join([*events, *last, self._event(f"response.{name}", response=response)])

    async def broken(self, error: FarthingError) -> str:
        """The last events of a stream that ends with this error."""
        events = [] if self._sequence else [self.opening()]
        events += self._close("incomplete")
        told = {"code": _code(error), "message": error.message}
        response = await self._kept(self._response("failed", error=told, usage=self._usage(End())))
        return "".join([*events, self._event("response.failed", response=response)])

    async def _ended(self, finish: Chunk) -> tuple[dict[str, Any], list[str]]:
        """The response as it is now that it has ended, and the events of its last item."""
        end = self._deltas.end(finish)
        status = "completed" if end.finish == "stop" else "incomplete"
        events = self._close(status)
        if not self._output:
            events += [*self._begin(Piece("text", "")), *self._close(status)]
        details = None
        if end.reason == "cancelled":
            status = "cancelled"
        elif status == "incomplete":
            details = _details(end)
        response = self._response(status, incomplete_details=details, usage=self._usage(end))
        if status == "completed":
            response["completed_at"] = int(time.time())
        response["farthing"] = summary(self._answer, self._debug)
        return await self._kept(response), events

    async def _kept(self, response: dict[str, Any]) -> dict[str, Any]:
        if self._keep is not None:
            response["store"] = await self._keep(response)
        return response

    def _take(self, deltas: Iterable[Delta]) -> list[str]:
        events: list[str] = []
        for delta in deltas:
            if self._open is None or (self._open.kind, self._open.call) != place(delta):
                events += [*self._close("completed"), *self._begin(delta)]
            events += self._more(delta)
        return events

    def _begin(self, delta: Delta) -> list[str]:
        kind, call = place(delta)
        index = len(self._output)
        id = f"{_ITEM[kind]}_{self.id.removeprefix(PREFIX)}{index:02x}"
        item: dict[str, Any] = {"id": id, "status": "in_progress"}
        if isinstance(delta, ToolDelta):
            item |= {"type": "function_call", "call_id": delta.id, "name": delta.name}
            item["arguments"] = ""
        elif kind == "reasoning":
            item |= {"type": "reasoning", "summary": [], "content": []}
        else:
            item |= {"type": "message", "role": "assistant", "content": []}
        self._open = _Open(kind, call, item)
        events = [self._event("response.output_item.added", output_index=index, item=item)]
        self._output.append(item)
        if kind in _PART:
            events.append(self._part("added", _part(kind, "", [])))
        return events

    def _more(self, delta: Delta) -> list[str]:
        assert self._open is not None
        said = delta.arguments if isinstance(delta, ToolDelta) else delta.text
        self._open.said.append(said)
        if not said:
            return []
        if isinstance(delta, ToolDelta):
            return [self._said("response.function_call_arguments.delta", delta=said)]
        more: dict[str, Any] = {"content_index": 0, "delta": said}
        if delta.kind == "text":
            more["logprobs"] = list(delta.logprobs)
            self._open.logprobs += delta.logprobs
        return [self._said(f"{_PART[delta.kind][0]}.delta", **more)]

    def _close(self, status: str) -> list[str]:
        """The last events of the item that is being written, if one is."""
        if self._open is None:
            return []
        item, said = self._open.item, "".join(self._open.said)
        item["status"] = status
        if self._open.kind == "call":
            item["arguments"] = said
            name = "response.function_call_arguments.done"
            events = [self._said(name, arguments=said, name=item["name"])]
        else:
            part = _part(self._open.kind, said, self._open.logprobs)
            item["content"] = [part]
            name, member = _PART[self._open.kind]
            more = {"logprobs": self._open.logprobs} if self._open.kind == "text" else {}
            done = self._said(f"{name}.done", content_index=0, **{member: said}, **more)
            events = [done, self._part("done", part)]
        index = len(self._output) - 1
        events.append(self._event("response.output_item.done", output_index=index, item=item))
        self._open = None
        return events

    def _part(self, what: str, part: Mapping[str, Any]) -> str:
        return self._said(f"response.content_part.{what}", content_index=0, part=part)

    def _said(self, name: str, /, **fields: Any) -> str:
        """An event of the item that is being written."""
        item = self._output[-1]["id"]
        return self._event(name, item_id=item, output_index=len(self._output) - 1, **fields)

    def _event(self, name: str, /, **fields: Any) -> str:
        content = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event(content, name)

    def _response(self, status: str, **members: Any) -> dict[str, Any]:
        known = {"error": None, "incomplete_details": None, "usage": None, **members}
        return {**self._envelope, "status": status, "output": list(self._output), **known}

    def _usage(self, end: End) -> dict[str, Any]:
        prompt, cached, written = used(self._answer, end)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": end.reasoning},
            "total_tokens": prompt + written,
            **cost(self._answer),
        }


def _part(kind: str, said: str, logprobs: list[Mapping[str, Any]]) -> dict[str, Any]:
    if kind == "text":
        return {"type": "output_text", "text": said, "annotations": [], "logprobs": logprobs}
    if kind == "refusal":
        return {"type": "refusal", "refusal": said}
    return {"type": "reasoning_text", "text": said}


def _details(end: End) -> dict[str, Any]:
    if end.finish == "content_filter":
        return {"reason": "content_filter"}
    details: dict[str, Any] = {"reason": "max_output_tokens"}
    if end.reason is not None:
        details["finish_details"] = {"reason": end.reason}
    return details


def _code(error: FarthingError) -> str:
    """The few codes that a failed response may have."""
    if isinstance(error, Overloaded):
        return "rate_limit_exceeded"
    return "invalid_prompt" if isinstance(error, BadRequest) else "server_error"
