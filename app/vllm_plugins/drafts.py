"""How long the draft of each request in a batch becomes, and which of its guesses pass leniently.

A draft ends by SpecDec++'s rule (Huang et al. 2024, arXiv 2405.19715): the product of P(accept)
over its guesses is the chance that all of them stay, and where the chance that one does not
passes a level, no more are made. P(accept) is an acceptance head's word, or the probability that
the draft model itself gave the guess. Lenience is DistillSpec's (Zhou et al. 2023, arXiv
2310.08461). Nothing here knows vLLM; `draft_proposer.py` fits it in there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from app.vllm_plugins import asks

MOST_GUESSES = 1 << 16  # any larger `spec_k` is a mistake


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks of its drafts."""

    longest: int | None = None  # guesses; None: as many as the server makes
    stop: float | None = None  # P(some guess is refused) above which the draft ends
    confidence: float | None = None  # a guess less likely than it ends the draft
    lenience: float = 1.0

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Self:
        """From a request's `vllm_xargs`. Raises ValueError for what is malformed."""
        given = given or {}
        lenience = _number(given, asks.SPEC_LENIENCE)
        if lenience is not None and lenience < asks.LEAST_LENIENCE:
            raise ValueError(f"{asks.SPEC_LENIENCE} is to be {asks.LEAST_LENIENCE:g} at least")
        return cls(
            _guesses(given),
            _number(given, asks.SPEC_STOP),
            _number(given, asks.SPEC_CONFIDENCE),
            1.0 if lenience is None else lenience,
        )

    @classmethod
    def lenient_read(cls, given: Mapping[str, Any] | None) -> Self:
        """The same, but malformed asks are as if there were none: for what the door let pass."""
        try:
            return cls.read(given)
        except ValueError:
            return cls()


def _guesses(given: Mapping[str, Any]) -> int | None:
    value = given.get(asks.SPEC_K)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MOST_GUESSES:  # True is an int, but no number
        raise ValueError(f"{asks.SPEC_K} is to be a whole number from 0 on, not {value!r}")
    return value


def _number(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is to be a number from 0 to 1, not {value!r}")
    return float(value)


class Head(Protocol):
    """An acceptance head, as `app.nets.acceptance_head` has it."""

    @property
    def sees(self) -> str:
        """`before`: the state that a guess was drawn from; `after`: the one once it was fed."""
        ...

    def __call__(self, states: torch.Tensor, extras: torch.Tensor) -> torch.Tensor:
        """Logits [n] from states [n, hidden] and extras [n, 3], float32."""
        ...

    def probability(self, logits: torch.Tensor) -> torch.Tensor:
        """P(accept) [n]."""
        ...


class Drafting:
    """The drafts of one batch in the making, a guess of each row at a time."""

    def __init__(
        self,
        given: Sequence[Ask],
        longest: int,
        greedy: torch.Tensor,
        head: Head | None = None,
    ) -> None:
        """`longest`: guesses of any row, at most. `greedy` [rows]: which rows are, on the device
        that all else will be on."""
        device = greedy.device
        caps = [longest if ask.longest is None else min(ask.longest, longest) for ask in given]
        levels = [(math.inf if ask.stop is None else ask.stop) for ask in given]
        least = [ask.confidence or 0.0 for ask in given]
        self.longest = max(caps, default=0)  # guesses that any row wants
        self._judged = any(ask.stop is not None for ask in given)
        self._weighed = self._judged or any(least)
        self._caps = torch.tensor(caps, device=device)
        self._levels = torch.tensor(levels, device=device)
        self._least = torch.tensor(least, device=device)
        self._greedy = greedy
        self._head = head
        self._alive = self._caps > 0
        self._lengths = torch.zeros_like(self._caps)
        self._stays = torch.ones_like(self._levels)  # P(all guesses so far stay)
        self._pending: torch.Tensor | None = None  # extras of the last guess, not yet judged
        self._guesses: list[torch.Tensor] = []

    def take(self, states: torch.Tensor, guesses: torch.Tensor, logs: torch.Tensor | None) -> bool:
        """Take in one guess of each row; whether any row wants another.

        `states` [rows, hidden]: the draft model's last ones, which `guesses` [rows] were drawn
        from; `logs` [rows, vocabulary]: natural log-probabilities of the distributions that they
        were drawn from, needed where `weighs` says so.
        """
        goes_on = self._alive
        if self._weighed and logs is not None:
            log_q = logs.gather(1, guesses.long().unsqueeze(1)).squeeze(1)
            goes_on = goes_on & (log_q.exp() >= self._least)
            if self._judged:
                self._judge(states, log_q, logs)
                goes_on = goes_on & (1 - self._stays <= self._levels)
        # A guess that ends a draft is part of it: it has been made, and costs little to verify.
        self._lengths += self._alive
        self._alive = goes_on & (self._lengths < self._caps)
        self._guesses.append(guesses)
        return bool(self._alive.any())

    @property
    def weighs(self) -> bool:
        """Whether `take` needs the log-probabilities."""
        return self._weighed

    def _judge(self, states: torch.Tensor, log_q: torch.Tensor, logs: torch.Tensor) -> None:
        """Multiply in P(accept) of the guess that is known now: this one's, or the last one's."""
        if self._head is None:
            self._stays = self._stays * log_q.exp()
            return
        extras = torch.stack([log_q, entropies(logs), self._greedy.float()], dim=1)
        judged: torch.Tensor | None = extras
        if self._head.sees == "after":
            judged, self._pending = self._pending, extras
        if judged is not None:
            self._stays = self._stays * self._head.probability(self._head(states.float(), judged))

    def drafts(self) -> list[list[int]]:
        """The guesses of each row."""
        if not self._guesses:
            return [[] for _ in range(len(self._caps))]
        rows = torch.stack(self._guesses, dim=1).tolist()
        return [row[:length] for row, length in zip(rows, self._lengths.tolist(), strict=True)]


def entropies(logs: torch.Tensor) -> torch.Tensor:
    """Entropies [rows], nats, of the distributions with these log-probabilities."""
    return -torch.where(logs == -math.inf, 0.0, logs.exp() * logs).sum(dim=-1)


def softened(
    draft_probs: torch.Tensor | None,
    guesses: torch.Tensor,
    lenience: torch.Tensor,
    vocabulary: int,
) -> torch.Tensor:
    """Draft probabilities [guesses, vocabulary] by which a guess passes with p / (epsilon q).

    Those of the guesses themselves are scaled by `lenience` [guesses]. Where a guess is refused
    its p is below epsilon q, so what is drawn in its place is never itself, as ever. None: each
    guess was certain to be made.
    """
    places = guesses.long().unsqueeze(1)
    if draft_probs is None:
        scaled = torch.zeros(len(guesses), vocabulary, device=guesses.device)
        return scaled.scatter_(1, places, lenience.unsqueeze(1).float())
    scaled = draft_probs.clone()
    return scaled.scatter_(1, places, scaled.gather(1, places) * lenience.unsqueeze(1))


def favour(
    logits: torch.Tensor, guesses: torch.Tensor, lenience: torch.Tensor, greedy: torch.Tensor
) -> torch.Tensor:
    """Logits [guesses, vocabulary], in place, of which a good enough guess is the likeliest.

    That is, in `greedy` rows, one with p >= epsilon times the likeliest token's p.
    """
    best = logits.max(dim=-1).values
    own = logits.gather(1, guesses.long().unsqueeze(1)).squeeze(1)
    passes = greedy & (lenience < 1) & (own - best >= lenience.log())
    rows = passes.nonzero().squeeze(1)
    logits[rows, guesses[rows].long()] = best[rows] + 1
    return logits
