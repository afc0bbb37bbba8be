"""When to stop guessing: one small interface, and the published rules behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from app.types import LengthRule, Speculation

_ROC_AFTER = 5  # observations, before a confidence threshold is set by them


@dataclass(frozen=True, slots=True)
class Guess:
    """One token that the draft model guessed, and what is known of it."""

    id: int
    probability: float = 1.0  # by the draft model
    entropy: float = 0.0  # nats, of the distribution that it came from
    chance: float = 1.0  # of being accepted, by the acceptance head


class Rule(Protocol):
    """Says after each guess whether to make another; one for each sequence."""

    def begin(self) -> int:
        """A draft begins. How many guesses it may have at most."""
        ...

    def goes_on(self, guess: Guess) -> bool:
        """Whether to guess on after this one, which is part of the draft in any case."""
        ...

    def learn(self, accepted: int, verified: int) -> None:
        """The first `verified` guesses of the draft were put to the model, and of these the first
        so many accepted. (What is hardly worth its time is guessed and not verified.)"""
        ...


class Fixed:
    """Always as many."""

    def __init__(self, longest: int) -> None:
        self._longest = longest

    def begin(self) -> int:
        return self._longest

    def goes_on(self, guess: Guess) -> bool:
        return True

    def learn(self, accepted: int, verified: int) -> None:
        """Nothing to learn."""


class Heuristic:
    """Hugging Face's schedule "heuristic": two more after a draft that was accepted whole, else
    one less; at least one."""

    def __init__(self, longest: int, start: int = 5) -> None:
        self._longest = longest
        self._next = min(start, longest)

    def begin(self) -> int:
        return self._next

    def goes_on(self, guess: Guess) -> bool:
        return True

    def learn(self, accepted: int, verified: int) -> None:
        whole = accepted >= verified
        self._next = min(self._next + 2, self._longest) if whole else max(self._next - 1, 1)


class Confidence:
    """Stops after a guess that the draft model itself holds less likely than the threshold.

    Hugging Face's `assistant_confidence_threshold`, 0.4 at first. Unless a level was named, the
    threshold is then set to the one with the least FPR + 3 FNR over the guesses verified so far,
    as transformers does: a guess let through that is refused, and a guess held back for nothing.
    """

    def __init__(self, longest: int, level: float | None = None) -> None:
        self._longest = longest
        self._learns = level is None
        self._level = 0.4 if level is None else level
        self._seen: list[tuple[float, bool]] = []
        self._probabilities: list[float] = []

    @property
    def level(self) -> float:
        return self._level

    def begin(self) -> int:
        self._probabilities = []
        return self._longest

    def goes_on(self, guess: Guess) -> bool:
        self._probabilities.append(guess.probability)
        return guess.probability >= self._level

    def learn(self, accepted: int, verified: int) -> None:
        if not self._learns:
            return
        # What follows a refused guess tells nothing.
        judged = self._probabilities[: min(accepted + 1, verified)]
        self._seen += [(value, place < accepted) for place, value in enumerate(judged)]
        del self._seen[:-256]
        good = sum(accepted for _, accepted in self._seen)
        if len(self._seen) > _ROC_AFTER and 0 < good < len(self._seen):
            self._level = _best_level(self._seen, good)


def _best_level(seen: list[tuple[float, bool]], good: int) -> float:
    """The threshold with the least FPR + 3 FNR, where a guess at or above it is let through."""
    through_good, through_bad = 0, 0
    bad = len(seen) - good
    best, level = math.inf, 1.0
    ranked = sorted(seen, reverse=True)
    for place, (value, accepted) in enumerate(ranked):
        through_good += accepted
        through_bad += not accepted
        if place + 1 < len(ranked) and ranked[place + 1][0] == value:
            continue  # a threshold lets all equals through
        cost = through_bad / bad + 3 * (good - through_good) / good
        if cost < best:
            best, level = cost, value
    return level


class AdaEDL:
    """Stops where a lower bound of the acceptance, from the draft's entropy, is under a level.

    AdaEDL (Agrawal et al. 2024, arXiv 2410.18351): stop at `1 - sqrt(gamma * H) < level`, H in
    nats, gamma 0.2. Unless it was named the level follows the acceptance as in Draft & Verify
    (Zhang et al. 2023): up where the smoothed share of accepted guesses is under 0.9, else down.
    """

    _GAMMA, _TARGET, _SMOOTH, _KEEP, _STEP = 0.2, 0.9, 0.5, 0.9, 0.01

    def __init__(self, longest: int, level: float | None = None) -> None:
        self._longest = longest
        self._learns = level is None
        self._level = 0.5 if level is None else level
        self._accepted = self._TARGET

    @property
    def level(self) -> float:
        return self._level

    def begin(self) -> int:
        return self._longest

    def goes_on(self, guess: Guess) -> bool:
        return 1 - math.sqrt(self._GAMMA * max(guess.entropy, 0.0)) >= self._level

    def learn(self, accepted: int, verified: int) -> None:
        if not self._learns or not verified:
            return
        share = accepted / verified
        self._accepted = self._SMOOTH * self._accepted + (1 - self._SMOOTH) * share
        step = self._STEP if self._accepted < self._TARGET else -self._STEP
        wanted = self._level + step
        self._level = self._KEEP * self._level + (1 - self._KEEP) * wanted


class HeadRule:
    """Stops where the draft will probably not be accepted whole, by the acceptance head.

    SpecDec++ (Huang et al. 2024, arXiv 2405.19715): stop at `1 - product of chances > level`, at
    0.7 unless it was named or fitted. Chances are calibrated (`AcceptanceHead.probability`); the
    paper's come of weighted rejections as they are. Where the head sees the state after a guess
    was fed, as in the paper, `chance` is of the guess before, and 1 with the first.
    """

    def __init__(self, longest: int, level: float | None = None) -> None:
        self._longest = longest
        self._level = 0.7 if level is None else level
        self._survival = 1.0

    def begin(self) -> int:
        self._survival = 1.0
        return self._longest

    def goes_on(self, guess: Guess) -> bool:
        self._survival *= guess.chance
        return 1 - self._survival <= self._level

    def learn(self, accepted: int, verified: int) -> None:
        """Trained beforehand."""


def make_rule(asked: Speculation, longest: int, fitted: float | None = None) -> Rule:
    """The rule that was asked for, of at most `longest` guesses; `fitted`: the level that the
    acceptance head was found to do best with."""
    own = fitted if asked.level is None else asked.level
    makers: dict[LengthRule, Rule] = {
        "fixed": Fixed(longest),
        "heuristic": Heuristic(longest),
        "confidence": Confidence(longest, asked.level),
        "adaedl": AdaEDL(longest, asked.level),
        "head": HeadRule(longest, own),
    }
    return makers[asked.rule]
