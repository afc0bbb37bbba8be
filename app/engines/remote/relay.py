"""An answer in the engine's own bytes: we read what they say of usage and of the end, no more."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeGuard

from app.engines.remote.events import Events, payload
from app.engines.remote.origin import UNTOLD, Arrivals, Origin, drained, refusal_in_stream
from app.errors import EngineError
from app.types import NO_USAGE, Call, Chunk, Finish, Usage

_USAGE = re.compile(rb',\s*"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|null)')
_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,10})')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,10})')
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,10})')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]+)"')
_SAYS = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)"\s*:\s*"[^"]')
_INDEX = re.compile(rb'"index"\s*:\s*(\d{1,4})')
_EMPTY = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_ID = re.compile(rb'(?:^\{|(?="id"\s*:\s*"(?:chat)?cmpl-))"id"\s*:\s*"[^"\\]{1,256}"')
log = logging.getLogger(__name__)


async def stream(
    origin: Origin, path: str, body: Mapping[str, Any], call: Call, headers: Mapping[str, str]
) -> AsyncGenerator[Chunk]:
    """The events of a streamed answer as they come, in chunks of `raw`.

    `body` must ask for usage. Raises as Origin.stream, and EngineError where the answer breaks off
    or is no stream of events.
    """
    scan = Scan(call)
    async with origin.stream(path, body, {**headers, **call.trace}) as response:
        if response.content_type != "text/event-stream":
            raise EngineError(f"The engine of {call.model} does not stream")
        yield Chunk(model=call.model)  # the server has set to work
        # All that has arrived, not one event at a time: usage is then as new as can be.
        async with Arrivals(response, origin.patience.silence) as arrivals:
            while data := await arrivals.next():
                chunk = scan.read(data)
                if chunk is not None:
                    yield chunk
                if scan.over:
                    await drained(response)
                    break
        yield scan.finish()


async def whole(
    origin: Origin, path: str, body: Mapping[str, Any], call: Call, headers: Mapping[str, str]
) -> AsyncGenerator[Chunk]:
    """An answer in one piece. Its first chunk says only that the engine has been asked."""
    yield Chunk(model=call.model)
    patience, headers = origin.patience.whole, {**headers, **call.trace}
    async with origin.stream(path, body, headers, silence=patience) as response:
        async with asyncio.timeout(patience):
            raw = await response.read()
    try:
        content = json.loads(raw)
        reasons = [choice["finish_reason"] for choice in content["choices"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EngineError(f"The engine of {call.model} answered in no JSON of ours") from error
    if len(reasons) < call.choices:
        raise EngineError(f"The engine of {call.model} answered without choices")
    usage = content.get("usage")
    yield Chunk(
        model=call.model,
        raw=raw,
        usage=_usage(usage, call),
        finish="length" if "length" in reasons else "stop",
    )


async def embeddings(origin: Origin, body: Mapping[str, Any], call: Call) -> AsyncGenerator[Chunk]:
    """Vectors, in the engine's own words. Its first chunk says only that it has been asked."""
    yield Chunk(model=call.model)
    patience = origin.patience.whole
    async with origin.stream("/v1/embeddings", body, call.trace, patience) as response:
        async with asyncio.timeout(patience):
            raw = await response.read()
    try:
        content = json.loads(raw)
        number, usage = len(content["data"]), content.get("usage")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EngineError(f"The engine of {call.model} answered in no JSON of ours") from error
    if number != len(call.beside) + 1:
        raise EngineError(f"The engine of {call.model} gave {number} vectors")
    told = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    read = told if _is_count(told) and told else UNTOLD
    yield Chunk(model=call.model, raw=raw, usage=Usage(prompt=read), finish="stop")


class Scan:
    """Reads events without parsing them, but for the last."""

    def __init__(self, call: Call) -> None:
        self.over = False  # the engine has said that nothing follows
        options = call.body.get("stream_options") or {}
        self._call = call
        # As vLLM has it: running usage is for those who ask for usage at all.
        self._keeps_usage = bool(
            options.get("include_usage") and options.get("continuous_usage_stats")
        )
        self._events = Events(call.model)
        self._told = (0, 0, 0)  # prompt, cached, completion
        self._begun = False
        self._prompt = 0
        self._written: dict[bytes, int] = {}  # tokens by choice
        self._unsaid = 0  # events with text of an engine that tells its usage at the end only
        self._reasons: list[bytes] = []
        self._held: list[bytes] = []  # each choice's last event, and what follows them all
        self._total: Usage | None = None
        self._late: bytes | None = None  # the usage that came with the last choice's last event
        self._id: tuple[bytes, bytes] | None = None

    def read(self, data: bytes) -> Chunk | None:
        """What these bytes add, all that holds for the client but for our id."""
        raw = [kept for event in self._events.feed(data) if (kept := self._event(event))]
        usage = self._news()
        if not raw and usage is NO_USAGE:
            return None
        return Chunk(model=self._call.model, raw=b"".join(raw), usage=usage)

    def finish(self) -> Chunk:
        """The finish chunk. Raises EngineError where the answer was not whole."""
        if not self.over:
            self._events.end()
        if not self._ended:
            raise EngineError(f"The engine of {self._call.model} broke off in mid-answer")
        if self._total is None and self._late is not None:
            self._held.append(self._usage_event(self._late))
        if self._total is None and not self._prompt:
            log.warning("model %s: a stream without usage", self._call.model)
            self._total = _unknown(self._call)
        finish: Finish = "length" if b"length" in self._reasons else "stop"
        raw = b"".join(self._held)
        return Chunk(model=self._call.model, raw=raw, usage=self._news(), finish=finish)

    def _event(self, event: bytes) -> bytes:
        """The event as it goes on; empty for one that goes no further, or not yet."""
        data = payload(event)
        if data is None:
            return b""  # a comment keeps connections alive, and this one ends here
        if data == b"[DONE]":
            self.over = True
            return b""
        if not (data.startswith(b"{") and data.endswith(b"}")):
            raise self._malformed()
        if b'"choices"' not in data:
            raise refusal_in_stream(self._call.model, data, begun=self._begun)
        self._begun = True
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise self._malformed() from error
        ends = [] if self._ended else _FINISHED.findall(data)
        self._reasons += ends
        # One event is one line, also where the engine spread it over several.
        data = self._renamed(self._without_usage(data)).replace(b"\n", b" ")
        line = b"data: " + data + b"\n\n"
        if not self._prompt and _SAYS.search(data):
            self._unsaid += 1
        if ends or self._ended:
            self._held.append(line)
            return b""
        return line

    @property
    def _ended(self) -> bool:
        """Whether every choice has had its last event."""
        return len(self._reasons) >= self._call.choices

    def _usage_event(self, usage: bytes) -> bytes:
        """An event with this usage alone, for engines that send it with a choice."""
        try:
            last = json.loads(self._held[-1].removeprefix(b"data: "))
            found = json.loads(usage)
        except ValueError as error:
            raise self._malformed() from error
        self._total = _usage(found, self._call)
        content = {**last, "choices": [], "usage": found}
        return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"

    def _without_usage(self, data: bytes) -> bytes:
        """Note the running usage; cut it out where the client did not ask for it."""
        place = data.rfind(b'"usage"')
        found = _USAGE.search(data, max(place - 2, 0)) if place >= 0 else None
        if found is None:
            return data
        prompt, completion = _PROMPT.search(found[1]), _COMPLETION.search(found[1])
        if prompt is not None and completion is not None:
            self._prompt = max(self._prompt, int(prompt[1]))
            if _EMPTY.search(data):
                cached = _CACHED.search(found[1])
                self._total = Usage(
                    self._prompt or UNTOLD, int(cached[1]) if cached else 0, int(completion[1])
                )
                if self._ended:
                    return data
            else:
                if self._call.beside:
                    self._prompt = UNTOLD  # of one prompt; all have been set to
                self._late = found[1] if self._ended else None
                index = _INDEX.search(data)
                choice = b"" if index is None else index[1]
                self._written[choice] = max(self._written.get(choice, 0), int(completion[1]))
        return data if self._keeps_usage else data[: found.start()] + data[found.end() :]

    def _renamed(self, data: bytes) -> bytes:
        """The event under our id."""
        if self._id is None:
            found = _ID.search(data)
            theirs = found[0].removeprefix(b"{") if found else b""
            self._id = (theirs, b'"id":"' + self._call.id.encode() + b'"' if found else b"")
        theirs, ours = self._id
        return data if theirs == ours else data.replace(theirs, ours, 1)

    def _news(self) -> Usage:
        """What was used since it was last told."""
        total, told = self._total, self._told
        # What was counted stays so: it may have been told, or not, as the network cut the answer.
        written = max(sum(self._written.values()), self._unsaid)
        if total is None:
            now = (self._prompt, 0, written)
        else:
            now = (total.prompt, total.cached, max(total.completion, written))
        if now == told:
            return NO_USAGE
        prompt, cached, completion = map(max, now, told)
        self._told = (prompt, cached, completion)
        return Usage(prompt - told[0], cached - told[1], completion - told[2])

    def _malformed(self) -> EngineError:
        return EngineError(f"The engine of {self._call.model} sent a malformed event")


def _usage(found: Any, call: Call) -> Usage:
    """What an answer says of its usage, where it says it in numbers."""
    usage = found if isinstance(found, Mapping) else {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (_is_count(prompt) and _is_count(completion)):
        return _unknown(call)
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    return Usage(prompt or UNTOLD, min(cached, prompt) if _is_count(cached) else 0, completion)


def _is_count(number: Any) -> TypeGuard[int]:
    return isinstance(number, int) and number >= 0


def _unknown(call: Call) -> Usage:
    """What an engine that does not tell may have used: as much as it was allowed."""
    return Usage(prompt=UNTOLD, completion=(call.max_tokens or 0) * call.choices)
