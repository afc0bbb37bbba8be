"""A language of a few tokens, as a model and its draft would continue it, and answers in it."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.engines.embedded.sampling import Drawn, Row, Sampler, distribution, pick
from app.engines.embedded.speculation.acceptance import Acceptance, Draft
from app.types import Sampling

VOCABULARY = 8
PROMPT = (3, 5)
NUMBERS = random.Random(0)
"""That guesses are drawn with: never the same one twice, also where one was refused before."""
Logits: TypeAlias = npt.NDArray[np.float32]


def table(seed: int, scale: float = 1.5) -> Logits:
    """Logits of the next token behind each token, `[vocabulary, vocabulary]`."""
    numbers = np.random.default_rng(seed)
    return (numbers.standard_normal((VOCABULARY, VOCABULARY)) * scale).astype(np.float32)


MODEL, DRAFT = table(1), table(2)
"""Two that have hardly anything in common: most guesses are refused."""
NEAR = (MODEL + 0.5 * DRAFT).astype(np.float32)
"""A draft that is often right."""


def normal(weights: Row) -> Row:
    return np.asarray(weights / weights.sum())


def drawn(
    sampler: Sampler, last: int, count: int, by: Logits, columns: Sequence[int] | None = None
) -> Draft:
    """Guesses drawn as the engine draws them: with the answer's own warpers, over `columns`."""
    ids = np.arange(VOCABULARY) if columns is None else np.array(columns)
    draft = Draft(columns=None if columns is None else ids)
    for _ in range(count):
        row = by[last, ids].astype(np.float64)
        likely = normal(distribution(row, sampler.sampling))
        place = pick(likely, NUMBERS.random())
        last = int(ids[place])
        draft.draw(last, likely, float(likely[place]))
    return draft


def chosen(sampler: Sampler, last: int, count: int, by: Logits) -> Draft:
    """Guesses that are not drawn: what the draft holds likeliest."""
    draft = Draft()
    for _ in range(count):
        last = int(by[last].argmax())
        draft.choose([last])
    return draft


Drafter: TypeAlias = Callable[[Sampler, int, int], Draft]


@dataclass
class Answers:
    """How answers in this language are made."""

    rule: Acceptance
    drafter: Drafter
    model: Logits
    longest: int = 3

    def answer(self, sampler: Sampler, length: int) -> list[Drawn]:
        """So many tokens, guessed ahead and verified."""
        found: list[Drawn] = []
        last = PROMPT[-1]
        while len(found) < length:
            draft = self.drafter(sampler, last, self.longest)
            rows = self.model[[last, *draft.ids]]
            for token, _ in self.rule.verify(sampler, rows, draft):
                found.append(token)
                last = token.id
                if len(found) == length:
                    break
        return found

    def counts(self, sampling: Sampling, samples: int, length: int) -> Counter[tuple[int, ...]]:
        """How often each answer of so many tokens is given, by seeds from 0 on."""
        return Counter(
            tuple(token.id for token in self.answer(sampler, length))
            for sampler in samplers(sampling, samples)
        )


def samplers(sampling: Sampling, count: int) -> list[Sampler]:
    return [Sampler(replace(sampling, seed=seed), PROMPT) for seed in range(count)]


def plain(sampler: Sampler, model: Logits, length: int) -> list[Drawn]:
    """The answer token by token."""
    found: list[Drawn] = []
    last = PROMPT[-1]
    for _ in range(length):
        found.append(sampler.draw(model[last]))
        last = found[-1].id
    return found


def expected(sampling: Sampling, model: Logits, length: int) -> dict[tuple[int, ...], float]:
    """The probability of each answer of so many tokens, by multiplying it out."""
    found = {}
    for answer in itertools.product(range(VOCABULARY), repeat=length):
        probability, last = 1.0, PROMPT[-1]
        for place, id in enumerate(answer):
            sampler = Sampler(sampling, PROMPT, written=answer[:place])
            probability *= float(normal(sampler.weigh(model[last]))[id])
            last = id
        found[answer] = probability
    return found
