"""An answer and what was made of it, which of these is kept, and how that one is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from app.types import Alternative, Chunk, Decision, Message, Usage
from policies.answers.asking import Reply, shown

_WORDS = 200  # characters of a decision's detail


@dataclass(slots=True)
class Version:
    """An answer, and what the check made of it."""

    reply: Reply
    score: float | None = None  # 0 to 1; None: it was not checked
    why: str = "nothing was held against it"


@dataclass(slots=True)
class Versions:
    """The first answer to a conversation, and the later ones."""

    all: list[Version]
    seconds: float  # that the first one took
    kept: int = 0  # the first of those with the highest score
    ended: str = "the last round"  # why there was no further one
    said: Sequence[Message] = ()  # the conversation
    hint: str = ""  # of how they were checked

    @property
    def first(self) -> Version:
        return self.all[0]

    @property
    def best(self) -> Version:
        return self.all[self.kept]

    def add(self, version: Version) -> None:
        self.all.append(version)
        if version.score is None:
            return
        version.why = f"the check gives it {version.score:.3f}"
        if self.best.score is None or version.score > self.best.score:
            self.kept = len(self.all) - 1

    def shown(self, confidence: float | None) -> Iterator[Chunk]:
        """The one that is kept, as an answer to the client's own prompt, with the reasons."""
        detail = f"{_name(self.kept)} of {len(self.all)} kept; ended by: {self.ended}{self.hint}"
        reply = self.best.reply
        decided = Decision(
            "refine",
            reply.model,
            0,
            confidence=confidence,
            answers=len(self.all),
            detail=detail[:_WORDS],
        )
        ways = tuple(
            Alternative("answer", _name(number), number == self.kept, version.why)
            for number, version in enumerate(self.all)
        )
        return shown(_in_place_of(self.first.reply, reply), decided, ways)


def lacks(reply: Reply, best: Reply) -> str:
    """Why this answer is not even checked against the best one; empty: it is."""
    if not reply.text.strip():
        return "it is empty"
    if best.whole and not reply.whole:
        return "it does not come to an end"
    return ""


def read_by(reply: Reply) -> Usage:
    """Of its prompt."""
    total = sum((chunk.usage for chunk in _all(reply)), Usage())
    return Usage(prompt=total.prompt, cached=total.cached, predicted=total.predicted)


def _all(reply: Reply) -> list[Chunk]:
    return reply.chunks if reply.finish is None else [*reply.chunks, reply.finish]


def _in_place_of(first: Reply, reply: Reply) -> Reply:
    """This answer, with the first one's prompt for its own: that is what the client sent."""
    if reply is first:
        return reply
    ours, *others = [
        replace(chunk, usage=replace(chunk.usage, prompt=0, cached=0, predicted=0))
        for chunk in _all(reply)
    ]
    ours = replace(ours, usage=ours.usage + read_by(first))
    *chunks, finish = ours, *others
    return Reply(reply.call, chunks, finish)


def _name(number: int) -> str:
    return f"answer of round {number}" if number else "first answer"
