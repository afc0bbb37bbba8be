"""Reads an answer piece by piece: text, reasoning, tool calls and its end, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from app.errors import EngineError
from app.gateway import Answer
from app.types import Call, Chunk
from routers import relayed
from routers.body import objects
from routers.scribe import scores
from routers.tool_calls import ToolDelta, ToolReader

Finish: TypeAlias = Literal["stop", "length", "content_filter"]
_FINISHES: Mapping[str, Finish] = {"length": "length", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Piece:
    """What came of the answer's words; `logprobs` as OpenAI's chat has them."""

    kind: Literal["text", "reasoning", "refusal"]
    text: str
    logprobs: tuple[Mapping[str, Any], ...] = ()


Delta: TypeAlias = Piece | ToolDelta


def place(delta: Delta) -> tuple[str, int]:
    """What it is a part of: a kind of words and -1, or `call` and which."""
    return ("call", delta.index) if isinstance(delta, ToolDelta) else (delta.kind, -1)


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended."""

    finish: Finish = "stop"
    reason: str | None = None  # why it was cut, where that was not its own limit
    stopped_by: str | None = None  # the client's stop string
    prompt: int | None = None  # tokens, as an engine with words of its own counts them
    cached: int = 0  # of these
    reasoning: int = 0  # of the answer's


class Deltas:
    """Reads the chunks of one answer, our own tokens as well as an engine's own bytes.

    What it tells of a call is in order, and one call follows the other.
    """

    def __init__(self, call: Call) -> None:
        self._id = call.id
        self._whole = call.whole
        self._reader = ToolReader(call.id) if call.offers else None
        self._logprobs = call.sampling.logprobs is not None
        self._scores: list[Mapping[str, Any]] = []  # of tokens whose text is still to come
        self._calls: dict[int, int] = {}  # the engine's numbers of tool calls, and ours
        self._finish = ""
        self._stop: str | None = None
        self._used: Mapping[str, Any] = {}

    def feed(self, chunk: Chunk) -> list[Delta]:
        """What this chunk adds. Raises EngineError for bytes that cannot be read."""
        if chunk.raw is not None:
            return list(self._native(chunk.raw))
        return self._own(chunk)

    def end(self, finish: Chunk) -> End:
        """How the answer ended, once its finish chunk was fed."""
        stopped = finish.stopped_by if isinstance(finish.stopped_by, str) else self._stop
        cut = finish.finish == "length"
        how: Finish = "length" if cut else _FINISHES.get(self._finish, "stop")
        prompt = self._used.get("prompt_tokens")
        return End(
            how,
            finish.reason,
            stopped,
            prompt if isinstance(prompt, int) else None,
            _detail(self._used, "prompt_tokens_details", "cached_tokens"),
            _detail(self._used, "completion_tokens_details", "reasoning_tokens"),
        )

    def _own(self, chunk: Chunk) -> list[Delta]:
        if self._logprobs:
            self._scores += scores(chunk.tokens)
        if self._reader is None:
            pieces: list[str | ToolDelta] = [chunk.text] if chunk.text else []
        else:
            pieces = self._reader.feed(chunk.text)
            if chunk.finish is not None:
                pieces += self._reader.flush()
        return [self._told(piece) for piece in pieces]

    def _told(self, piece: str | ToolDelta) -> Delta:
        told, self._scores = tuple(self._scores), []
        return Piece("text", piece, told) if isinstance(piece, str) else piece

    def _native(self, raw: bytes) -> Iterator[Delta]:
        if self._whole:
            found, member = [relayed.document(raw, self._id)], "message"
        else:
            found, member = relayed.documents(raw, self._id), "delta"
        for document in found:
            used = document.get("usage")
            self._used = used if isinstance(used, Mapping) else self._used
            for choice in objects(document.get("choices")):
                if choice.get("index", 0) == 0:
                    yield from self._choice(choice, member)

    def _choice(self, choice: Mapping[str, Any], member: str) -> Iterator[Delta]:
        said = choice.get(member)
        if isinstance(said, Mapping):
            yield from self._said(said, choice.get("logprobs"))
        self._finish = _string(choice.get("finish_reason")) or self._finish
        stop = choice.get("stop_reason")
        self._stop = stop if isinstance(stop, str) else self._stop

    def _said(self, said: Mapping[str, Any], logprobs: Any) -> Iterator[Delta]:
        # Older engines say `reasoning_content`, some say both.
        reasoning = _string(said.get("reasoning")) or _string(said.get("reasoning_content"))
        if reasoning:
            yield Piece("reasoning", reasoning)
        theirs = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        text = _string(said.get("content"))
        if text:
            yield Piece("text", text, tuple(objects(theirs)))
        if refusal := _string(said.get("refusal")):
            yield Piece("refusal", refusal)
        for position, call in enumerate(objects(said.get("tool_calls"))):
            number = call.get("index")
            yield self._call(number if isinstance(number, int) else position, call)

    def _call(self, number: int, call: Mapping[str, Any]) -> ToolDelta:
        function = call.get("function")
        function = function if isinstance(function, Mapping) else {}
        arguments = _string(function.get("arguments"))
        if number not in self._calls:
            index = self._calls[number] = len(self._calls)
            id = _string(call.get("id")) or f"call_{self._id.rpartition('_')[2]}{index:02d}"
            return ToolDelta(index, id, _string(function.get("name")), arguments)
        if self._calls[number] != len(self._calls) - 1:
            raise EngineError("The engine writes two tool calls at once")
        return ToolDelta(self._calls[number], None, None, arguments)


def used(answer: Answer, end: End) -> tuple[int, int, int]:
    """Tokens of the prompt, of these from a cache, and of the answer, as its client is told.

    An engine with words of its own may have counted exactly what we only had a bound for.
    """
    bill = answer.bill
    if end.prompt is None:
        return bill.prompt, bill.cached, bill.completion
    return end.prompt, min(end.cached, end.prompt), bill.completion


def _detail(usage: Mapping[str, Any], kind: str, name: str) -> int:
    details = usage.get(kind)
    told = details.get(name) if isinstance(details, Mapping) else None
    return told if isinstance(told, int) else 0


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
