"""Several approaches to one question, as the model proposes them (Naik et al. 2023, DIV-SE)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.types import Call, Chunk, Message, Token, Usage
from policies.answers.asking import Reply, as_read, asked, at_most
from policies.answers.comparing import beside

_PROPOSE = (
    "Do not answer yet. Propose {n} approaches to answer this that differ from each other, one on"
    ' a line, as "1. ...", each in ten words at most.'
)
_FOLLOW = "Take this approach: {approach}"
_ALL = (
    "Answer this {n} times, each time by another approach. Begin each with a line"
    ' "Approach 1: ...", "Approach 2: ..." and so on, and end each with its answer.'
)
_EACH = 32  # tokens of an approach, at most
_LONGEST = 200  # characters of one, as it is told again
_LISTED = re.compile(r"^[ \t]*(?:[*_]*[0-9]{1,2}[.):][*_]*|[-*•])[ \t]+(.+)$", re.MULTILINE)
_BEGINS = re.compile(
    r"^[^\w\n]*approach\s+[0-9]{1,2}\b[^\S\n]*[:.)*_-]*[^\S\n]*", re.I | re.MULTILINE
)


def proposing(call: Call, said: Sequence[Message], n: int) -> Call:
    """The call that asks for `n` approaches to this conversation."""
    messages = beside(said, _PROPOSE.format(n=n))
    return asked(call, messages, max_tokens=_EACH * n, seed=call.sampling.seed)


def proposed(text: str, n: int) -> list[str]:
    """The approaches that this text lists, `n` at most, no two alike."""
    found = [line.strip(" \t*_") for line in _LISTED.findall(text)]
    return [line[:_LONGEST] for line in dict.fromkeys(filter(None, found))][:n]


def following(call: Call, said: Sequence[Message], approach: str) -> Call:
    """The client's call, to be answered by this approach."""
    messages = beside(said, _FOLLOW.format(approach=approach))
    return replace(call, messages=messages, prompt=None)


def together(call: Call, said: Sequence[Message], n: int) -> Call:
    """The client's call, to be answered in `n` ways in one go.

    Its stop strings and its bound are of one answer: they hold for the part that is shown.
    """
    most = None if call.max_tokens is None else n * call.max_tokens
    sampling = replace(call.sampling, stop=(), stop_token_ids=())
    messages = beside(said, _ALL.format(n=n))
    return replace(call, messages=messages, prompt=None, max_tokens=most, sampling=sampling)


def worst(prompt: int, completion: int, n: int, each: bool) -> Usage:
    """The most that `n` answers of `completion` tokens to a prompt of so many read and write."""
    if not each:
        return Usage(prompt + at_most(_ALL), completion=n * completion)
    proposal, told = _EACH * n, as_read(_EACH) + at_most(_FOLLOW)
    read = prompt + at_most(_PROPOSE) + n * (prompt + told)
    return Usage(read, completion=proposal + n * completion)


def parts(reply: Reply, call: Call, n: int) -> list[Reply]:
    """Each of the ways in which one reply answers `call`, as a reply that keeps to what it asks:
    its bound and its stop strings; `n` at most. Where it does not tell them apart it is one.
    """
    text, tokens = reply.text, reply.tokens
    heads = [head.span() for head in _BEGINS.finditer(text)] or [(0, 0)]
    ends = [begin for begin, _ in heads[1:]] + [len(text)]
    spans = [(begin, end) for (_, begin), end in zip(heads, ends, strict=True)]
    found = [(begin, end) for begin, end in spans if text[begin:end].strip()]
    usage = sum((chunk.usage for chunk in reply.chunks), Usage())
    why = "deadline" if reply.finish is None else reply.finish.reason
    cut = Chunk(model=reply.model, finish="length", reason=why)
    ended = Chunk(model=reply.model, finish="stop")
    edges = _edges(tokens)
    made = []
    for number, (begin, end) in enumerate(found[:n], 1):
        finish = ended if reply.whole or number < len(found) else cut
        part = _Part(call, text, begin, end, finish)
        said, stopped_by = part.until_stop()
        inside = part.tokens(said, tokens, edges)
        made.append(part.reply(said, stopped_by, inside, usage))
    return made or [reply]


def _edges(tokens: Sequence[Token]) -> list[int]:
    """At which byte each token ends."""
    edges, at = list[int](), 0
    for token in tokens:
        at += len(token.piece)
        edges.append(at)
    return edges


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a text, the characters in which it answers once."""

    call: Call
    text: str
    begin: int
    end: int
    finish: Chunk

    def until_stop(self) -> tuple[str, str | None]:
        """What of it is shown, and the stop string that ended it."""
        stops = self.call.sampling.stop
        found = [
            (at, one) for one in stops if (at := self.text.find(one, self.begin, self.end)) >= 0
        ]
        at, stopped_by = min(found, default=(self.end, None))
        return self.text[self.begin : at].strip(), stopped_by

    def tokens(self, said: str, tokens: Sequence[Token], edges: Sequence[int]) -> list[Token]:
        """Those that spell it; `edges`: at which byte of the text each ends."""
        start = len(self.text[: self.text.index(said, self.begin)].encode())
        end = start + len(said.encode())
        spelled = zip(tokens, (0, *edges), edges, strict=False)
        return [token for token, before, after in spelled if after > start and before < end]

    def reply(self, said: str, stopped_by: str | None, tokens: list[Token], usage: Usage) -> Reply:
        finish, most = self.finish, self.call.max_tokens
        if stopped_by is not None:
            finish = Chunk(model=self.call.model, finish="stop", stopped_by=stopped_by)
        if most is not None and len(tokens) > most:
            tokens = tokens[:most]
            said = b"".join(token.piece for token in tokens).decode(errors="ignore").lstrip()
            finish = Chunk(model=self.call.model, finish="length")
        return Reply(self.call, [Chunk(said, tuple(tokens), self.call.model, usage=usage)], finish)
