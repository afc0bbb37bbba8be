"""An engine whose answers say how likely they are right, and are so as often."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator
from pathlib import Path

from app.engines.fake import Fake, Script
from app.types import Call, Candidate, Chunk, Token

MODEL = "oracle"


def write_questions(path: Path, number: int) -> Path:
    """A file of GSM8K's shape, whose answers are their own numbers."""
    lines = [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(number)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


class Oracle(Fake):
    """Log-probabilities are those of a model that is too sure of itself, by a rule that is known:
    with an answer of mean log-probability m it is right with the chance 1 + m, m being -1 to 0.
    """

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__({MODEL: Script(words=())})
        self.asked: list[Call] = []
        self.silent = silent  # tells no log-probabilities

    async def generate(self, call: Call) -> AsyncGenerator[Chunk]:
        self.asked.append(call)
        question = str(call.messages[0]["content"])
        drawn = random.Random(question)
        chance = drawn.random()
        number = int(question.split("?")[0].split()[-1])
        right = drawn.random() < chance
        if len(call.messages) > 1:  # it is asked about its answer, and knows
            top = (Candidate(1, b"Yes", -0.1 if right else -3), Candidate(2, b"No", -1.5))
            yield Chunk(tokens=(Token(1, logprob=-0.1, entropy=(0.5, 0.5), top=top),))
        else:
            for place in range(drawn.choice((6, 20))):
                logprob = None if self.silent else (chance - 1) * (1.5 if place % 2 else 0.5)
                yield Chunk(tokens=(Token(place, logprob=logprob, entropy=(1 - chance, 1.0)),))
            yield Chunk(text=f"#### {number if right else number + 1}")
        yield Chunk(finish="stop")
