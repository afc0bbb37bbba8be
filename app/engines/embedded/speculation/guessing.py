"""A draft model at work: its caches, its passes over several sequences at once, its guesses."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.engines.embedded.kv_cache import KVMemory, SequenceCache
from app.engines.embedded.model import Decoder, Span
from app.engines.embedded.sampling import Row, Sampler, distribution, pick
from app.engines.embedded.speculation.goodput import Chances, clock_of
from app.engines.embedded.speculation.lengths import Guess
from app.nets.acceptance_head import AcceptanceHead

# Share of guesses that were accepted, by tenths of the draft's own probability of its likeliest
# token: smollm2-tiny before smollm2-135m on Spec-Bench. Where to begin; what is measured counts.
_CHANCES = (0.07, 0.15, 0.27, 0.33, 0.43, 0.44, 0.51, 0.55, 0.70, 0.88)
_DRAWN = (0.35, 0.40, 0.42, 0.45, 0.48, 0.50, 0.55, 0.60, 0.72, 0.88)  # of guesses that are drawn
_MANY = 16  # tokens of a pass that is told the pace of reading by


@dataclass
class DraftModel:
    """A model that guesses for others of its family."""

    name: str
    decoder: Decoder
    memory: KVMemory
    head: AcceptanceHead | None = None
    chances: Chances = field(default_factory=lambda: Chances((*_CHANCES, *_DRAWN), 40.0))

    def __post_init__(self) -> None:
        self.clock = clock_of(self.decoder.device)
        self._reading = 0.0

    @property
    def reading(self) -> float:
        """Seconds that it takes to read a token of many, rolling; 0 before it has read any."""
        return self._reading

    def read(self, pen: Pen, most: int) -> None:
        """Catch up with the sequence, by at most so many tokens."""
        some, began = pen.pending[:most], self.clock()
        hidden = self.decoder.forward(torch.tensor(some), [Span(pen.cache, len(some))])
        hidden[-1, 0].item()  # waits for the result
        if len(some) >= _MANY:
            took = (self.clock() - began) / len(some)
            self._reading += (took - self._reading) * (0.2 if self._reading else 1.0)

    @property
    def columns(self) -> npt.NDArray[np.int64] | None:
        """The ids it guesses among, ascending; None: all."""
        ids = self.decoder.drafting
        return None if ids is None else ids.numpy()


@dataclass
class Pen:
    """One sequence as a draft model sees it: what it has read, what it guesses."""

    cache: SequenceCache
    sampler: Sampler
    drawn: bool  # whether guesses are drawn, as the answer is; else the likeliest is taken
    start: int  # of the sequence's tokens, the first one that it reads
    tokens: Sequence[int]  # of the sequence, as they grow
    guesses: list[Guess] = field(default_factory=list)
    drawn_from: list[Row | None] = field(default_factory=list)
    headed: bool = False  # whether an acceptance head tells of each guess

    @property
    def pending(self) -> list[int]:
        """The tokens to read before the next guess."""
        written, length = len(self.tokens), self.start + self.cache.length
        ahead = [guess.id for guess in self.guesses]
        if length >= written:
            return ahead[length - written :]
        return [*self.tokens[length:], *ahead]

    @property
    def read(self) -> Sequence[int]:
        """The tokens that the cache holds, and what follows them in the sequence."""
        return self.tokens[self.start :]

    @property
    def room(self) -> int:
        """How many guesses the cache has room for; where it is full the draft model's context is
        less than the sequence needs."""
        # The last guess is not read.
        return self.cache.capacity + 1 - (len(self.tokens) - self.start)

    def begin(self) -> None:
        self.guesses, self.drawn_from = [], []

    def settle(self, kept: int) -> None:
        """The first `kept` guesses were accepted: forget what was read of the others."""
        # All guesses but the last one were read, each when the next one was made.
        wrong = max(len(self.guesses) - 1 - kept, 0)
        self.cache.truncate(self.cache.length - wrong)
        self.guesses, self.drawn_from = [], []

    def drop(self) -> None:
        """Forget all guesses, also where an error came in the middle of one."""
        self.cache.truncate(min(self.cache.length, len(self.tokens) - self.start))
        self.guesses, self.drawn_from = [], []


def guess(model: DraftModel, pens: Sequence[Pen], told: bool) -> None:
    """One more guess for each: reads what is pending, in one pass.

    `told`: with the probability and entropy of each, and the head's chance where there is one.
    """
    tokens: list[int] = []
    spans: list[Span] = []
    last: list[int] = []
    for pen in pens:
        pending = pen.pending
        tokens += pending
        spans.append(Span(pen.cache, len(pending)))
        last.append(len(tokens) - 1)
    hidden = model.decoder.forward(torch.tensor(tokens), spans)
    rows = hidden if len(last) == len(tokens) else hidden[last]
    logits = model.decoder.draft_logits(rows)
    _hold(model, pens, logits)
    ids, likely, entropies = _choose(model, pens, logits, told)
    chances = [1.0] * len(pens)
    if told and model.head is not None:
        chances = _chances(model, model.head, pens, rows, likely, entropies)
    for place, pen in enumerate(pens):
        pen.guesses.append(Guess(ids[place], likely[place], entropies[place], chances[place]))


def _hold(model: DraftModel, pens: Sequence[Pen], logits: Tensor) -> None:
    """Take out what the form of an answer refuses: a guess of it would be for nothing. Where
    nothing is left of what the draft model guesses among, it guesses for nothing."""
    for place, pen in enumerate(pens):
        if pen.sampler.held is not None:
            ahead = [made.id for made in pen.guesses]
            allowed = pen.sampler.held.allowed(model.decoder.config.vocabulary, ahead)
            if model.columns is not None:
                allowed = allowed[model.columns]
            if allowed.any():
                refused = torch.from_numpy(~allowed).to(logits.device)
                logits[place].masked_fill_(refused, -torch.inf)


def kind(pen: Pen, place: int) -> int:
    """Which of the table's chances is this guess's."""
    made = pen.guesses[place]
    # A head that sees the state after a guess tells of it too late for this.
    sign = made.chance if pen.headed else made.probability
    return min(int(sign * 10), 9) + 10 * pen.drawn


def _choose(
    model: DraftModel, pens: Sequence[Pen], logits: Tensor, told: bool
) -> tuple[list[int], list[float], list[float]]:
    """Ids, their probabilities by the draft, entropies in nats; the last two where `told`."""
    count = len(pens)
    places = logits.argmax(-1)
    likely, entropies = [1.0] * count, [0.0] * count
    if told:
        logs = torch.log_softmax(logits, -1)
        likely = logs.gather(1, places[:, None]).squeeze(1).exp().tolist()
        entropies = torch.special.entr(logs.exp()).sum(-1).tolist()
    chosen: list[int] = places.tolist()
    for place, pen in enumerate(pens):
        drawn_from: Row | None = None
        if pen.drawn:
            row = logits[place].cpu().numpy().astype(np.float64)
            drawn_from = distribution(row, pen.sampler.sampling)
            drawn_from /= drawn_from.sum()
            # A new number for each guess, also where one was refused before: how many guesses
            # there are may depend on those, and so on the numbers that they were drawn with.
            chosen[place] = pick(drawn_from, secrets.randbits(53) * 2.0**-53)
            likely[place] = float(drawn_from[chosen[place]])
        pen.drawn_from.append(drawn_from)
    drafting = model.decoder.drafting
    ids = chosen if drafting is None else drafting[chosen].tolist()
    return ids, likely, entropies


def _chances(
    model: DraftModel,
    head: AcceptanceHead,
    pens: Sequence[Pen],
    rows: Tensor,
    likely: Sequence[float],
    entropies: Sequence[float],
) -> list[float]:
    """What the head says; of the guess before, where it sees states after."""
    states = model.decoder.trained_states(rows)
    if head.sees == "before":
        told = [
            [_log(q), h, float(not pen.drawn)]
            for q, h, pen in zip(likely, entropies, pens, strict=True)
        ]
    else:
        told = [_before(pen) for pen in pens]
    raw = head.probability(head(states, torch.tensor(told, device=states.device))).tolist()
    if head.sees == "after":
        # The first state is of a token that is in the answer already.
        return [chance if pen.guesses else 1.0 for chance, pen in zip(raw, pens, strict=True)]
    return list(raw)


def _before(pen: Pen) -> list[float]:
    if not pen.guesses:
        return [0.0, 0.0, float(not pen.drawn)]
    last = pen.guesses[-1]
    return [_log(last.probability), last.entropy, float(not pen.drawn)]


def _log(probability: float) -> float:
    return float(np.log(max(probability, 1e-30)))
