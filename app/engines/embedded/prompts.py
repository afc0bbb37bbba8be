"""The prompt of a call as token ids, rendered once and off the event loop where it is long."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from app.engines.embedded.tools import offered
from app.types import Call, Message

_LONG = 8192  # characters; fewer are tokenised in about a millisecond
_KEPT = 32  # renderings: a call's count and its hand-overs come close together


class Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def continued(self, text: str) -> list[int]: ...

    def chat(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]: ...


class Prompts:
    """Reads calls with one tokenizer; belongs to the event loop's thread."""

    def __init__(self, encoder: Encoder, longest: int) -> None:
        """`longest`: tokens of the longest prompt worth keeping, since longer ones are refused."""
        self._encoder = encoder
        self._longest = longest
        # By identity: to compare long chats would cost what we save. The value holds the key's
        # object, so its identity is not given to another meanwhile.
        self._kept: OrderedDict[int, tuple[object, list[int]]] = OrderedDict()

    async def ids(self, call: Call) -> Sequence[int]:
        """The prompt's ids, `written` not included. Raises BadRequest as the tokenizer does."""
        ids = await self._prompt(call)
        return [*ids, *self._encoder.continued(call.said)] if call.said else ids

    async def _prompt(self, call: Call) -> Sequence[int]:
        if isinstance(call.prompt, tuple):
            return call.prompt
        if isinstance(call.prompt, str) and call.extra.get("add_special_tokens") is False:
            return self._encoder.continued(call.prompt)
        # The tools of a call come and go with its messages: both are of one request.
        source: object = call.messages if call.prompt is None else call.prompt
        kept = self._kept.get(id(source))
        if kept is not None:
            self._kept.move_to_end(id(source))
            return kept[1]
        if _characters(call) > _LONG:
            ids = await asyncio.to_thread(self._encode, call)
        else:
            ids = self._encode(call)
            await asyncio.sleep(0)  # others have their turn between many prompts of one request
        if len(ids) > self._longest:
            return ids
        self._kept[id(source)] = (source, ids)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return ids

    def _encode(self, call: Call) -> list[int]:
        if isinstance(call.prompt, str):
            return self._encoder.encode(call.prompt)
        return self._encoder.chat(call.messages, _tools(call))


def _tools(call: Call) -> Sequence[Any]:
    """Those that the model is told of. Raises BadRequest naming the field."""
    return call.extra["tools"] if offered(call) is not None else ()


def _characters(call: Call) -> int:
    if isinstance(call.prompt, str):
        return len(call.prompt)
    size = sum(_size(message, "content") for message in call.messages)
    return size + len(str(call.extra.get("tools") or ""))


def _size(value: Any, field: str) -> int:
    """Characters of this field's text, of whatever shape it is: it is not checked yet."""
    inner = value.get(field) if isinstance(value, Mapping) else None
    if isinstance(inner, str):
        return len(inner)
    return sum(_size(part, "text") for part in inner) if isinstance(inner, list | tuple) else 0
