"""A vLLM server in memory: a byte-level tokenizer, event streams, and an origin that plays them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from app.engines.remote.origin import Patience
from app.types import Call, Chunk, Sampling

REPLACEMENT = "\ufffd"
# Words, single bytes, parts of characters, what is no text at all, and nothing.
PIECES = (
    *(b"a", b"b", b" the", b"ab ", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98\x80"),
    *(b"\xc3", b"\xa9", b"", b"\xff"),
    *(b" \xe2\x82", b"\xa9a", b"<|end|>"),
)
END = 14  # reserved: it shows nothing in an answer, though it has a name


def decode(ids: Iterable[int]) -> str:
    """As /detokenize does, which leaves out no reserved token."""
    return b"".join(PIECES[id] for id in ids).decode("utf-8", "replace")


class DecodeStream:
    """How vLLM finds out what each token adds: the algorithm of the `tokenizers` library.

    Where the prompt ends amid a character, its first words are the whole prompt's.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids = list(prompt)
        self._prefix, self._index = "", 0

    def step(self, id: int) -> str:
        if not self._prefix and self._ids:
            prefix = decode(self._ids)
            if not prefix.endswith(REPLACEMENT):
                self._prefix, self._index = prefix, len(self._ids)
        self._ids.append(id)
        text = decode(id for id in self._ids if id != END)
        if len(text) <= len(self._prefix) or text.endswith(REPLACEMENT):
            return ""
        new, index = text[len(self._prefix) :], len(self._ids) - self._index
        self._ids = self._ids[self._index :]
        self._prefix, self._index = decode(id for id in self._ids if id != END), index
        return new


def event(content: Any) -> bytes:
    data = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
    return f"data: {data}\n\n".encode()


def choice(ids: Sequence[int], text: str = "", **more: Any) -> dict[str, Any]:
    return {"index": 0, "text": text, "token_ids": list(ids), "finish_reason": None, **more}


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"prompt_tokens": prompt, "completion_tokens": completion, **details}


def answer(
    prompt: Sequence[int],
    ids: Sequence[int],
    sizes: Sequence[int] = (1,),
    finish: str = "length",
    **last: Any,
) -> Iterator[bytes]:
    """The events of a call that reads `prompt` and writes `ids`, `sizes` of them at a time."""
    stream, done, turn = DecodeStream(prompt), 0, 0
    while done < len(ids):
        some = ids[done : done + sizes[turn % len(sizes)]]
        done, turn = done + len(some), turn + 1
        ended = {"finish_reason": finish, **last} if done == len(ids) else {}
        text = "".join(map(stream.step, some))
        yield event({"choices": [choice(some, text, **ended)], "usage": usage(len(prompt), done)})
    if not ids:
        yield event({"choices": [choice([], finish_reason=finish)], "usage": usage(len(prompt), 0)})
    yield event({"choices": [], "usage": usage(len(prompt), len(ids), 0)})
    yield event("[DONE]")


@dataclass
class Content:
    """A response's body, in the pieces that arrive."""

    pieces: deque[bytes]
    content_type: str = "text/event-stream"

    async def readany(self) -> bytes:
        return self.pieces.popleft() if self.pieces else b""

    async def read(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def content(self) -> Content:
        return self


@dataclass
class ToyOrigin:
    """An Origin without a network: `plays` are the answers to the next streams."""

    model: str = "m"
    plays: deque[Iterable[bytes] | Exception] = field(default_factory=deque)
    asked: list[SimpleNamespace] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)  # to small requests, by path
    patience: Patience = Patience()
    content_type: str = "text/event-stream"
    open: int = 0
    serve: Callable[[Mapping[str, Any]], Iterable[bytes] | Exception] | None = None  # by its body

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    async def json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        self.asked.append(SimpleNamespace(path=path, body=body, headers={}))
        if path == "/detokenize" and path not in self.answers:
            return {"prompt": decode(body["tokens"])}
        found = self.answers[path]
        if callable(found):
            found = found(body)
        if isinstance(found, Exception):
            raise found
        return found

    async def text(self, path: str) -> str:
        self.asked.append(SimpleNamespace(path=path, body=None, headers={}))
        found: str = self.answers[path]
        return found

    async def aclose(self) -> None:
        assert not self.open

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        silence: float | None = None,
    ) -> AsyncIterator[Content]:
        self.asked.append(SimpleNamespace(path=path, body=body, headers=headers, silence=silence))
        played = self.plays.popleft() if self.serve is None else self.serve(body)
        if isinstance(played, Exception):
            raise played
        self.open += 1
        try:
            yield Content(deque(played), self.content_type)
        finally:
            self.open -= 1


def call(**fields: Any) -> Call:
    sampling = Sampling(**fields.pop("sampling", {}))
    return Call("m", **{"prompt": (0,), "sampling": sampling, **fields})


async def collected(stream: Any) -> list[Chunk]:
    """Its chunks, but for those that only say that the server has set to work."""
    return [chunk async for chunk in stream if chunk != Chunk(model="m")]
