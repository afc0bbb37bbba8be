"""Answers in OpenAI's JSON: whole, or as the events of a stream."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from app.errors import FarthingError
from app.gateway import Answer
from app.types import Candidate, Chunk, Token
from routers import relayed
from routers.costs import cost, summary, switch
from routers.tool_calls import ToolDelta, ToolReader
from routers.wire import Asked
from routers.wordings import openai

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LOWEST = -9999.0  # what OpenAI and vLLM write for a logprob that JSON has no number for
# Line breaks to some readers of event streams, though not to the standard.
_BREAKS = str.maketrans({c: f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"})

DONE = "data: [DONE]\n\n"


def event(content: object, name: str | None = None) -> str:
    """One server-sent event, where its shape has names under its name."""
    data = _event(_encode(content))
    return data if name is None else f"event: {name}\n{data}"


def _event(text: str) -> str:
    return f"data: {text if text.isascii() else text.translate(_BREAKS)}\n\n"


@dataclass
class _Choice:
    """One choice of an answer that goes out whole."""

    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)  # where logprobs are asked for
    finish: Chunk = Chunk()


class Scribe(ABC):
    """Writes one answer down."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    nothing: ClassVar[str]  # the member of a stream's choice that adds nothing, in JSON

    def __init__(self, answer: Answer, asked: Asked) -> None:
        self.answer = answer
        self.debug = asked.debug
        self.include_usage = asked.include_usage
        self.logprobs = asked.order.call.sampling.logprobs is not None
        self._choices = asked.order.call.choices
        self._gathered: defaultdict[int, _Choice] = defaultdict(_Choice)
        self.id = asked.order.call.id
        self.envelope = {
            "id": self.id,
            "object": self.chunk_object if asked.stream else self.whole_object,
            "created": int(time.time()),
            "model": answer.model,
        }
        # All that is the same in every chunk is encoded once.
        self._head = _encode(self.envelope)[:-1] + ',"choices":['
        self._tail = '],"usage":null' if self.include_usage else "]"

    @abstractmethod
    def _opening(self) -> str:
        """Events before the first token."""

    @abstractmethod
    def _delta(self, chunk: Chunk) -> str:
        """The member of a stream's choice that holds what the chunk adds, in JSON; empty where it
        adds nothing."""

    @abstractmethod
    def _whole(self, text: str, index: int) -> dict[str, Any]:
        """The member of a whole answer's choice that holds the text."""

    @abstractmethod
    def _logprobs(self, tokens: Iterable[Token], index: int) -> dict[str, Any]: ...

    def opening(self, first: Chunk) -> str:
        """Events before the first token; the engine's own bytes bring theirs along."""
        return "" if first.raw is not None else self._opening()

    def content(self, chunk: Chunk) -> str | bytes:
        """The event for this chunk's text, logprobs and debug fields; empty without any."""
        return self._content(chunk) if chunk.raw is None else chunk.raw

    def gather(self, chunk: Chunk) -> None:
        """Note a chunk of an answer that goes out whole."""
        choice = self._gathered[chunk.index]
        choice.text.append(chunk.text)
        if self.logprobs:
            choice.tokens += chunk.tokens
        if chunk.finish is not None:
            choice.finish = chunk

    def _content(self, chunk: Chunk) -> str:
        delta = self._delta(chunk)
        extra = self._debug_fields(chunk) if self.debug else None
        scored = self.logprobs and chunk.tokens
        if not (delta or scored or extra):
            return ""
        logprobs = _encode(self._logprobs(chunk.tokens, chunk.index)) if scored else "null"
        choice = (
            f'{{"index":{chunk.index},{delta or self.nothing},'
            f'"logprobs":{logprobs},"finish_reason":null}}'
        )
        return self._chunk(choice, extra)

    def ending(self, finish: Chunk) -> str:
        """The last events of a choice, while others are still written."""
        return self._ended(finish, None)

    async def closing(self, finish: Chunk) -> str:
        """The last events, when the bill is final."""
        if finish.raw is not None:
            documents = relayed.documents(finish.raw, self.id)
            relayed.complete(
                documents,
                finish,
                summary(self.answer, self.debug),
                cost(self.answer),
                self.include_usage,
            )
            return "".join(map(event, documents)) + DONE
        frames = self._ended(finish, summary(self.answer, self.debug))
        if self.include_usage:
            frames += event({**self.envelope, "choices": [], "usage": self._usage()})
        return frames + DONE

    async def broken(self, error: FarthingError) -> str:
        """The last events of a stream that ends with this error."""
        return event(openai(error)) + DONE

    async def whole(self, finish: Chunk) -> dict[str, Any]:
        """The body of what was gathered."""
        farthing = summary(self.answer, self.debug)
        if finish.raw is not None:
            document = relayed.document(finish.raw, self.id)
            relayed.complete([document], finish, farthing, cost(self.answer), True)
            return document
        choices = [
            {
                "index": index,
                **self._whole("".join(choice.text), index),
                "logprobs": self._logprobs(choice.tokens, index) if self.logprobs else None,
                **self._ending(choice.finish, index),
            }
            for index, choice in sorted(self._gathered.items())
        ]
        return {**self.envelope, "choices": choices, "usage": self._usage(), "farthing": farthing}

    def _ended(self, finish: Chunk, farthing: object) -> str:
        held = self._content(finish)
        ending = _encode(self._ending(finish, finish.index))[1:]
        choice = f'{{"index":{finish.index},{self.nothing},"logprobs":null,{ending}'
        return held + self._chunk(choice, farthing)

    def _ending(self, finish: Chunk, index: int) -> dict[str, Any]:
        return _ending(finish)

    def _chunk(self, choice: str, farthing: object = None) -> str:
        extra = "" if farthing is None else f',"farthing":{_encode(farthing)}'
        return _event(f"{self._head}{choice}{self._tail}{extra}}}")

    def _usage(self) -> dict[str, Any]:
        bill = self.answer.bill
        return {
            "prompt_tokens": bill.prompt,
            "completion_tokens": bill.completion,
            "total_tokens": bill.prompt + bill.completion,
            "prompt_tokens_details": {"cached_tokens": bill.cached},
            **cost(self.answer),
        }

    def _debug_fields(self, chunk: Chunk) -> dict[str, Any] | None:
        if not (chunk.text or chunk.tokens or chunk.decision):
            return None
        fields: dict[str, Any] = {
            "model": chunk.model,
            "entropy": _entropy(chunk.tokens),
            "accepted": chunk.usage.accepted,
        }
        if chunk.decision is not None:
            fields["switch"] = switch(chunk.decision)
        return fields


class ChatScribe(Scribe):
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    nothing = '"delta":{}'

    def __init__(self, answer: Answer, asked: Asked) -> None:
        super().__init__(answer, asked)
        self._readers = [
            ToolReader(f"{self.id}:{index}")
            for index in range(self._choices if asked.order.call.offers else 0)
        ]

    def _opening(self) -> str:
        content = "null" if self._readers else '""'
        return "".join(
            self._chunk(
                f'{{"index":{index},"delta":{{"role":"assistant","content":{content}}},'
                '"logprobs":null,"finish_reason":null}'
            )
            for index in range(self._choices)
        )

    def _delta(self, chunk: Chunk) -> str:
        if not self._readers:
            return f'"delta":{{"content":{_encode(chunk.text)}}}' if chunk.text else ""
        text, calls = self._told(chunk.text, chunk.index, ends=chunk.finish is not None)
        delta = ({"content": text} if text else {}) | ({"tool_calls": calls} if calls else {})
        return f'"delta":{_encode(delta)}' if delta else ""

    def _whole(self, text: str, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._readers:
            said, calls = self._told(text, index, ends=True)
            if calls:
                made = [{key: call[key] for key in call if key != "index"} for call in calls]
                message |= {"content": said or None, "tool_calls": made}
        return {"message": message}

    def _ending(self, finish: Chunk, index: int) -> dict[str, Any]:
        ending = super()._ending(finish, index)
        if self._readers and finish.finish == "stop" and self._readers[index].done:
            ending["finish_reason"] = "tool_calls"
        return ending

    def _told(self, text: str, index: int, ends: bool) -> tuple[str, list[dict[str, Any]]]:
        """What this adds to the choice: to its text, and to each of its calls."""
        reader = self._readers[index]
        pieces = [*reader.feed(text), *(reader.flush() if ends else ())]
        calls: dict[int, dict[str, Any]] = {}
        for piece in pieces:
            if isinstance(piece, ToolDelta):
                named = {"id": piece.id, "type": "function"} if piece.id else {}
                function = {"name": piece.name} if piece.name else {}
                call = calls.setdefault(
                    piece.index,
                    {"index": piece.index, **named, "function": {**function, "arguments": ""}},
                )
                call["function"]["arguments"] += piece.arguments
        return "".join(piece for piece in pieces if isinstance(piece, str)), [*calls.values()]

    def _logprobs(self, tokens: Iterable[Token], index: int) -> dict[str, Any]:
        return {"content": scores(tokens), "refusal": None}


class TextScribe(Scribe):
    whole_object = "text_completion"
    chunk_object = "text_completion"
    nothing = '"text":""'

    def __init__(self, answer: Answer, asked: Asked) -> None:
        super().__init__(answer, asked)
        self._characters = Counter[int]()  # that the tokens of a choice so far have begun

    def _opening(self) -> str:
        return ""

    def _delta(self, chunk: Chunk) -> str:
        return f'"text":{_encode(chunk.text)}' if chunk.text else ""

    def _whole(self, text: str, index: int) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: Iterable[Token], index: int) -> dict[str, Any]:
        columns: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in tokens:
            chosen = _text(token.piece)
            likeliest = {_text(other.piece): _number(other.logprob) for other in token.top}
            columns["tokens"].append(chosen)
            if token.logprob is None and not token.top:  # a prompt's first: nothing is before it
                columns["token_logprobs"].append(None)
                columns["top_logprobs"].append(None)
            else:
                columns["token_logprobs"].append(_number(token.logprob))
                columns["top_logprobs"].append({chosen: _number(token.logprob), **likeliest})
            columns["text_offset"].append(self._offset(token.piece, index))
        return columns

    def _offset(self, piece: bytes, index: int) -> int:
        """The character of the answer in which this token begins, perhaps amid its bytes."""
        within = bool(piece) and piece[0] & 0xC0 == 0x80
        offset = max(self._characters[index] - within, 0)
        self._characters[index] += sum(byte & 0xC0 != 0x80 for byte in piece)
        return offset


def _ending(finish: Chunk) -> dict[str, Any]:
    ending: dict[str, Any] = {"finish_reason": "stop" if finish.finish == "stop" else "length"}
    if finish.reason is not None:
        ending["finish_details"] = {"reason": finish.reason}
    if finish.stopped_by is not None:
        ending["stop_reason"] = finish.stopped_by
    return ending


def _entropy(tokens: Iterable[Token]) -> float | list[float] | None:
    """The mean over the tokens, in bits; [low, high] where the engine knows only bounds."""
    known = [token.entropy for token in tokens if token.entropy is not None]
    if not known:
        return None
    low = sum(entropy[0] for entropy in known) / len(known)
    high = sum(entropy[1] for entropy in known) / len(known)
    return low if low == high else [low, high]


def scores(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """The log-probabilities of tokens, as OpenAI's chat has them."""
    return [{**_scored(token), "top_logprobs": list(map(_scored, token.top))} for token in tokens]


def _scored(token: Token | Candidate) -> dict[str, Any]:
    return {
        "token": _text(token.piece),
        "logprob": _number(token.logprob),
        "bytes": list(token.piece),
    }


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", errors="replace")


def _number(logprob: float | None) -> float:
    return _LOWEST if logprob is None else max(logprob, _LOWEST)
