"""Models that answer, review, rewrite and vote as they are told, for tests of what is refined."""

import asyncio
import math
from contextlib import aclosing
from dataclasses import dataclass, field

from app.engines.fake import Fake, Script
from app.types import Call, Candidate, Chunk, Token, Usage

FIRST, SECOND, THIRD = "one two three", "one two three four", "one two three four five"
ROUND = ["review", "rewrite", "vote", "vote"]  # the calls of one


def kind_of(asked: Call) -> str:
    """What a call of this policy is for."""
    if asked.decoding.scores:
        return "score"
    last = str(asked.messages[-1]["content"]) if asked.messages else ""
    if "Answer B:" in last:
        return "vote"
    if asked.max_tokens == 2:
        return "judged"
    starts = {"Review the answer": "review", "Now answer the request": "rewrite"}
    return next((kind for start, kind in starts.items() if last.startswith(start)), "answer")


@dataclass
class Talker(Fake):
    """Says of each kind of call the next of these; in votes and scores it likes some texts."""

    scripts: dict[str, Script] = field(
        default_factory=lambda: {"small": Script(["s"]), "large": Script(["l"])}
    )
    says: dict[str, list[str]] = field(default_factory=dict)
    likes: dict[str, float] = field(default_factory=dict)  # log-odds, or log-probability
    bias: float = 0.0  # for the letter A
    fails: dict[str, Exception] = field(default_factory=dict)  # kinds of calls
    delays: dict[str, float] = field(default_factory=dict)
    stalls: int = 99  # the call that never ends
    begun: list[str] = field(default_factory=list)

    async def generate(self, call: Call):
        kind = kind_of(call)
        self.begun.append(kind)
        if kind in self.fails:
            raise self.fails[kind]
        if len(self.begun) == self.stalls:
            await asyncio.sleep(30)
        if kind in ("vote", "score"):
            self.calls.append(call)
            written = int(kind == "vote")
            self.produced[call.model] = self.produced.get(call.model, 0) + written
            usage = Usage(prompt=await self.count(call), completion=written)
            yield Chunk(tokens=self._told(kind, call), model=call.model, usage=usage)
            yield Chunk(model=call.model, finish="length")
            return
        words = self.says[kind].pop(0).split()
        script = Script(words, delay=self.delays.get(kind, 0.0), context=1000)
        saying = Fake(
            {call.model: script}, self.calls, self.running, self.produced, {}, self._words
        )
        async with aclosing(saying.generate(call)) as stream:
            async for chunk in stream:
                yield chunk

    def _told(self, kind: str, call: Call) -> tuple[Token, ...]:
        if kind == "score":
            words = [self._words[id] for id in call.prompt or ()]
            liked = self.likes[" ".join(words[5:])]  # what follows the client's prompt
            unlikely = [Token(id, logprob=-9.0) for id in call.prompt[:5]]
            return (*unlikely, *(Token(id, logprob=liked) for id in call.prompt[5:]))
        shown = str(call.messages[-1]["content"]).partition("Answer A:\n")[2]
        a, _, rest = shown.partition("\n\nAnswer B:\n")
        b = rest.partition("\n\n")[0]
        odds = self.likes[b.strip()] - self.likes[a.strip()] - self.bias
        letters = {"A": -math.log1p(math.exp(odds)), " B": -math.log1p(math.exp(-odds))}
        top = tuple(Candidate(n, w.encode(), p) for n, (w, p) in enumerate(letters.items()))
        return (Token(0, b"A", -0.1, top),)


def talker(*answers: str, reviews: list[str] | None = None, **more: object) -> Talker:
    first, *rewritten = answers
    said = reviews or [f"more {number}" for number in range(len(rewritten))]
    says = {"answer": [first], "review": said, "rewrite": list(rewritten)}
    return Talker(says=says, **more)
