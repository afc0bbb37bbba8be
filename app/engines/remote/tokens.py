"""An answer token by token: ids go to a vLLM server, ids with text and entropy come back."""

from __future__ import annotations

import json
import operator
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from app.engines.remote.counting import Count
from app.engines.remote.entropy import interval
from app.engines.remote.events import Events, payload
from app.engines.remote.origin import Arrivals, Origin, drained, refusal_in_stream
from app.engines.stops import StopStrings
from app.errors import EngineError
from app.types import Call, Candidate, Chunk, Finish, Token
from app.vllm_plugins import asks

_REPLACEMENT = "\ufffd"  # stands for bytes that are no whole character
_TAIL = 16  # ids before a boundary: more than any character has tokens
_PLACEHOLDER = "token_id:"
Decode = Callable[[list[int]], Awaitable[str]]
Names = Callable[[Iterable[int]], Awaitable[Mapping[int, bytes]]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How one call's events are to be read."""

    vocabulary: int  # how many ids the model has
    decode: Decode  # ids to text
    names: Names  # what each of these ids says by itself
    top: int = 0  # how many of the likeliest tokens come along
    sentinel: int | None = None  # the id by which the plugin ends the call


async def stream(
    origin: Origin, body: dict[str, Any], call: Call, headers: dict[str, str], reading: Reading
) -> AsyncGenerator[Chunk]:
    """One chunk a token where entropy is asked for, else one an event; then the finish chunk.

    Raises as Origin.stream, and EngineError where the answer breaks off.
    """
    async with origin.stream("/v1/completions", body, {**headers, **call.trace}) as response:
        yield Chunk(model=call.model)  # the server has set to work
        text = Text(reading, call)
        await text.begin()
        reader = _Reader(call, reading, text)
        async with Arrivals(response, origin.patience.silence) as arrivals:
            while data := await arrivals.next():
                async with aclosing(reader.read(data)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if text.stopped_by is not None:
                    break  # the server has not ended yet: closing the connection ends it
                if reader.over:
                    await drained(response)
                    break
        yield reader.finish()


class Text:
    """What may be shown of an answer, as a function of all of its ids.

    A server's own text is right between two characters. Amid one it says nothing, not even what
    the same token shows before it; and where an answer was handed on there, it begins with what
    was shown already. So until the character is whole the tokens are asked for by their ids.
    """

    def __init__(self, reading: Reading, call: Call) -> None:
        self._decode = reading.decode
        self._names = reading.names
        self._written = list(call.written)
        self._said = call.said
        self._stops = StopStrings(call.sampling.stop)
        self._watched = bool(call.sampling.stop)
        self._open: list[int] = []  # ids since the last whole character, with some before them
        self._shown = ""  # of those, what was shown
        self._amid = False  # after a first part of a character, which the server keeps for itself

    @property
    def stopped_by(self) -> str | None:
        return self._stops.stopped_by

    async def begin(self) -> None:
        """Take as shown what was written before."""
        if not self._written:
            self._stops.push(self._said)
            return
        if self._watched:
            before = await self._decode(self._written)
            self._stops.push(self._said + before.rstrip(_REPLACEMENT))
        if (await self._name(self._written[-1]))[-1:] not in ("", _REPLACEMENT):
            return  # as nearly always, and known without asking
        tail = self._written[-_TAIL:]
        text = await self._decode(tail)
        if text.endswith(_REPLACEMENT):
            self._open, self._shown = tail, text.rstrip(_REPLACEMENT)

    async def push(self, ids: Sequence[int], text: str, ended: bool = False) -> str:
        """What may be shown after these ids, which the server says show `text`.

        `ended`: the last of them is the model's end, which shows nothing.
        """
        self._written += ids
        if self._open:
            text = await self._ask(ids[:-1] if ended else ids)
        elif not text and not ended and (self._amid or not await self._hides(ids)):
            new = await self._alone(ids)
            text = new if self._open else ""  # else it is none that shows anything
        else:
            self._amid = not text and not ended
        return self._stops.push(text)

    async def split(self, ids: Sequence[int], text: str, ended: bool = False) -> list[str]:
        """What each of these ids adds, where the server gave the text of all of them.

        Fewer than there are ids where a stop string ends the answer before.
        """
        if len(ids) == 1:
            return [await self.push(ids, text, ended)]
        amid, parts = bool(self._open), list[str]()
        for id in ids[:-1] if ended else ids:
            self._written.append(id)
            parts.append(await (self._ask([id]) if self._open else self._alone([id])))
        said = "".join(parts)
        if not amid and said != text and not (self._open and said.startswith(text)):
            # Some tokenizers space words otherwise where they see a few of them only.
            parts = [*[""] * (len(parts) - 1), text]
        shown = list[str]()
        for part in [*parts, *[""] * ended]:
            shown.append(self._stops.push(part))
            if self.stopped_by is not None:
                break
        return shown

    def flush(self) -> str:
        return self._stops.flush()

    async def _name(self, id: int) -> str:
        """What this id says by itself: asked once for all answers."""
        return (await self._names([id]))[id].decode()

    async def _hides(self, ids: Sequence[int]) -> bool:
        """Whether this is one token that is nothing but a part of a character."""
        return len(ids) == 1 and not (await self._name(ids[0])).strip(_REPLACEMENT)

    async def _alone(self, ids: Sequence[int]) -> str:
        """The text that these last ids add, where none before them is amid a character."""
        tail = self._written[-_TAIL - len(ids) : -len(ids)]
        before = await self._decode(tail) if tail else ""
        self._open, self._shown, self._amid = tail, before.rstrip(_REPLACEMENT), False
        return await self._ask(ids)

    async def _ask(self, ids: Sequence[int]) -> str:
        """The text that these ids complete, by all ids since the last whole character."""
        if not ids:
            return ""
        self._open = [*self._open, *ids]
        text = await self._decode(self._open)
        whole = text.rstrip(_REPLACEMENT)
        new = whole[len(self._shown) :]
        if whole == text:
            self._open, self._shown = [], ""
        else:
            self._shown = whole
        return new


@dataclass
class _Reader:
    """Turns events into chunks: running totals into differences, placeholders into ids."""

    call: Call
    reading: Reading
    text: Text
    over: bool = False
    begun: bool = False
    written: int = 0  # tokens of this call
    reason: str | None = None
    stop: str | int | None = None
    mean: float | None = None
    reported: dict[int, float] = field(default_factory=dict)  # bits, by index in this call

    def __post_init__(self) -> None:
        self.events = Events(self.call.model)
        self.count = Count(self.call.decoding)

    async def read(self, data: bytes) -> AsyncGenerator[Chunk]:
        parsed = [found for event in self.events.feed(data) if (found := self._parse(event))]
        for content in parsed:  # all of them first: what we report is then as new as can be
            self.count.take(content.get("usage"))
            self.count.take_guesses(content.get("metrics"))
        for content in parsed:
            for choice in content.get("choices") or ():
                async with aclosing(self._choice(choice)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if self.text.stopped_by is not None:
                    return

    def finish(self) -> Chunk:
        """The finish chunk. Raises EngineError where the answer was not whole."""
        usage = self.count.last_news(self.written)
        by = self.text.stopped_by
        if by is not None:
            return Chunk(model=self.call.model, usage=usage, finish="stop", stopped_by=by)
        if self.reason is None:
            raise EngineError(f"The engine of {self.call.model} broke off in mid-answer")
        finish: Finish = "length" if self.reason == "length" else "stop"
        if self.reason in ("abort", "error"):
            raise EngineError(f"The engine of {self.call.model} gave up ({self.reason})")
        stopped_by, mean = self.stop, None
        if self._fired:
            stop = self.call.decoding.stop
            level = None if stop is None else stop.level
            finish, stopped_by, mean = "entropy", None, level if self.mean is None else self.mean
        rest = self.text.flush()
        return Chunk(rest, (), self.call.model, 0, usage, finish, stopped_by=stopped_by, mean=mean)

    @property
    def _fired(self) -> bool:
        sentinel = self.reading.sentinel
        return sentinel is not None and self.stop == sentinel

    def _parse(self, event: bytes) -> dict[str, Any] | None:
        data = payload(event)
        if data is None:
            self._report(event)  # a comment, if anything
            return None
        if data == b"[DONE]":
            self.over = True
            return None
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._malformed() from error
        if not isinstance(content, dict):
            raise self._malformed()
        if "choices" not in content:
            raise refusal_in_stream(self.call.model, data, begun=self.begun)
        self.begun = True
        return content

    def _report(self, event: bytes) -> None:
        report = asks.parse_report(event)
        if report is not None:
            self.reported |= enumerate(report.bits, report.first)
            self.mean = report.mean if report.mean is not None else self.mean
        placed = asks.parse_placed(event)
        if placed is not None:
            self.count.placed = placed

    async def _choice(self, choice: Any) -> AsyncGenerator[Chunk]:
        try:
            ids, text = (
                [operator.index(id) for id in choice["token_ids"] or ()],
                str(choice["text"] or ""),
            )
            if text and not ids:
                raise ValueError("text of no tokens")
            self.reason = choice["finish_reason"] or self.reason
            self.stop = choice.get("stop_reason", self.stop)
            tokens = self._tokens(ids, choice.get("logprobs"))
            if self.call.sampling.logprobs is not None:
                tokens = await self._named(tokens)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise self._malformed() from error
        if self._fired and ids:
            ids, tokens = ids[:-1], tokens[:-1]  # what the plugin wrote is no token of the answer
        if not ids:
            return
        model = self.call.model
        ended = choice["finish_reason"] == "stop" and not self._fired
        if self.call.decoding.entropy and len(ids) > 1:
            for token, part in zip(tokens, await self.text.split(ids, text, ended), strict=False):
                yield Chunk(part, (token,), model, usage=self.count.news(self.written))
            return
        yield Chunk(
            await self.text.push(ids, text, ended),
            tokens,
            model,
            usage=self.count.news(self.written),
        )

    def _tokens(self, ids: list[int], logprobs: Any) -> tuple[Token, ...]:
        first = self.written
        self.written += len(ids)
        if logprobs is None:
            return tuple(
                Token(id, entropy=self._reported(index)) for index, id in enumerate(ids, first)
            )
        found = []
        for place, id in enumerate(ids):
            likeliest = logprobs["top_logprobs"][place] or {}
            own = logprobs["token_logprobs"][place]
            top = [(_id(name), float(logprob)) for name, logprob in likeliest.items()]
            top.sort(key=lambda pair: -pair[1])
            found.append(self._token(id, own, top, first + place))
        return tuple(found)

    def _token(self, id: int, own: float | None, top: list[tuple[int, float]], index: int) -> Token:
        asked = self.call.sampling.logprobs
        entropy = self._reported(index)
        if entropy is None and self.call.decoding.entropy and top:
            # The token drawn comes along even where it is not among the likeliest.
            likeliest = [logprob for _, logprob in top]
            if len(top) > self.reading.top:
                likeliest.remove(dict(top)[id])
            entropy = interval(likeliest, self.reading.vocabulary)
        if asked is None:
            return Token(id, entropy=entropy)
        shown = tuple(Candidate(other, b"", logprob) for other, logprob in top[:asked])
        return Token(id, b"", own, shown, entropy)

    async def _named(self, tokens: tuple[Token, ...]) -> tuple[Token, ...]:
        """With the bytes of each token and candidate, as far as a server says them."""
        ids = {token.id for token in tokens} | {c.id for token in tokens for c in token.top}
        names = await self.reading.names(ids)
        return tuple(
            replace(
                token,
                piece=names[token.id],
                top=tuple(replace(other, piece=names[other.id]) for other in token.top),
            )
            for token in tokens
        )

    def _reported(self, index: int) -> tuple[float, float] | None:
        bits = self.reported.pop(index, None) if self.call.decoding.entropy else None
        return None if bits is None else (bits, bits)

    def _malformed(self) -> EngineError:
        return EngineError(f"The engine of {self.call.model} sent a malformed event")


def _id(name: str) -> int:
    if not name.startswith(_PLACEHOLDER):
        raise ValueError(name)
    return int(name[len(_PLACEHOLDER) :])
