"""Writes an answer as a message in Anthropic's shape: whole, or as its events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from app.errors import FarthingError
from app.gateway import Answer
from app.types import Chunk
from routers.costs import cost, summary
from routers.deltas import Delta, Deltas, End, Piece, place, used
from routers.scribe import event
from routers.tool_calls import ToolDelta
from routers.wire import Asked
from routers.wordings import anthropic

_KINDS = {"text": "text", "refusal": "text", "reasoning": "thinking", "call": "tool_use"}
_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


class MessageScribe:
    """Writes one answer down."""

    def __init__(self, answer: Answer, asked: Asked) -> None:
        self.id = asked.order.call.id
        self._answer = answer
        self._debug = asked.debug
        self._stops = asked.order.call.sampling.stop
        self._deltas = Deltas(asked.order.call)
        self._content: list[dict[str, Any]] = []
        self._said: list[str] = []  # by the last block
        self._call = -1  # the tool call that the last block is
        self._callable = False  # whether the last call is whole

    def gather(self, chunk: Chunk) -> None:
        """Note a chunk of an answer that goes out whole."""
        self._take(self._deltas.feed(chunk))

    async def whole(self, finish: Chunk) -> dict[str, Any]:
        """The body of what was gathered."""
        self._last()
        end = self._deltas.end(finish)
        return self._message(self._ending(end), {**self._usage(end), **cost(self._answer)})

    def opening(self, first: Chunk) -> str:
        """Events before those of the first chunk."""
        message = self._message({"stop_reason": None, "stop_sequence": None}, self._usage(End()))
        del message["farthing"]  # nothing is decided yet
        return _event("message_start", message=message) + _event("ping")

    def content(self, chunk: Chunk) -> str:
        """The events of this chunk."""
        return "".join(self._take(self._deltas.feed(chunk)))

    def ending(self, finish: Chunk) -> str:
        """There is one choice, and so none that is not the last."""
        raise AssertionError("a message is one answer")

    async def closing(self, finish: Chunk) -> str:
        """The last events, when the bill is final."""
        events = self._take(self._deltas.feed(finish)) + self._last()
        end = self._deltas.end(finish)
        usage = {**self._usage(end), **cost(self._answer)}
        told = summary(self._answer, self._debug)
        events.append(_event("message_delta", delta=self._ending(end), usage=usage, farthing=told))
        return "".join([*events, _event("message_stop")])

    async def broken(self, error: FarthingError) -> str:
        """The last event of a stream that ends with this error."""
        return event(anthropic(error), "error")

    def _take(self, deltas: Iterable[Delta]) -> list[str]:
        events: list[str] = []
        for delta in deltas:
            told, call = place(delta)
            kind = _KINDS[told]
            last = self._content[-1]["type"] if self._content else None
            if (last, self._call) != (kind, call):
                events += [*self._close(), self._begin(kind, call, delta)]
            said = delta.arguments if isinstance(delta, ToolDelta) else delta.text
            if said:
                self._said.append(said)
                events.append(self._more(kind, said))
        return events

    def _begin(self, kind: str, call: int, delta: Delta) -> str:
        block: dict[str, Any]
        if isinstance(delta, ToolDelta):
            block = {"type": kind, "id": delta.id, "name": delta.name, "input": {}}
        elif kind == "thinking":
            block = {"type": kind, "thinking": "", "signature": ""}
        else:
            block = {"type": kind, "text": "", "citations": None}
        self._call = call
        self._content.append(block)
        return _event("content_block_start", index=len(self._content) - 1, content_block=block)

    def _more(self, kind: str, said: str) -> str:
        name, member = _DELTAS.get(kind, ("input_json_delta", "partial_json"))
        delta = {"type": name, member: said}
        return _event("content_block_delta", index=len(self._content) - 1, delta=delta)

    def _close(self) -> list[str]:
        """The end of the last block."""
        if not self._content:
            return []
        block, said = self._content[-1], "".join(self._said)
        self._said.clear()
        if block["type"] == "tool_use":
            found = _arguments(said)
            block["input"], self._callable = found or {}, found is not None
        else:
            block[block["type"]] = said
        return [_event("content_block_stop", index=len(self._content) - 1)]

    def _last(self) -> list[str]:
        """The end of all blocks; an answer without words has an empty one."""
        events = [] if self._content else [self._begin("text", -1, Piece("text", ""))]
        return events + self._close()

    def _message(self, ending: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._answer.model,
            "content": list(self._content),
            **ending,
            "usage": usage,
            "farthing": summary(self._answer, self._debug),
        }

    def _ending(self, end: End) -> dict[str, Any]:
        if end.finish == "length":
            told: dict[str, Any] = {"stop_reason": "max_tokens", "stop_sequence": None}
            return told | ({"finish_details": {"reason": end.reason}} if end.reason else {})
        if end.finish == "content_filter":
            return {"stop_reason": "refusal", "stop_sequence": None}
        called = any(block["type"] == "tool_use" for block in self._content)
        if end.stopped_by in self._stops and not (called and self._callable):
            return {"stop_reason": "stop_sequence", "stop_sequence": end.stopped_by}
        if called:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _usage(self, end: End) -> dict[str, Any]:
        """What came out of a cache is not counted among the input, as Anthropic has it."""
        prompt, cached, written = used(self._answer, end)
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": written,
            "output_tokens_details": {"thinking_tokens": end.reasoning},
        }


def _event(name: str, **fields: Any) -> str:
    return event({"type": name, **fields}, name)


def _arguments(text: str) -> dict[str, Any] | None:
    """A call's input; None where it was cut amid it, which `stop_reason` says."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
