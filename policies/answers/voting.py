"""A vote of several answers: who is ahead, and whether those still to come can change that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Answers that are alike."""

    answer: str
    members: tuple[int, ...]  # which of the answers, the likeliest first

    @property
    def votes(self) -> int:
        return len(self.members)


def groups(answers: Sequence[str | None], logprobs: Sequence[float | None]) -> list[Group]:
    """Equal answers together, the most frequent ones first; ties go to the likeliest single one.

    `logprobs`: the mean log-probability of each answer, None: not known. An answer that is None
    has no vote.
    """
    alike: dict[str, list[int]] = {}
    for at, answer in enumerate(answers):
        if answer is not None:
            alike.setdefault(answer, []).append(at)

    def likelihood(at: int) -> float:
        known = logprobs[at]
        return -math.inf if known is None else known

    found = [
        Group(answer, tuple(sorted(members, key=lambda at: -likelihood(at))))
        for answer, members in alike.items()
    ]
    return sorted(found, key=lambda group: (-group.votes, -likelihood(group.members[0])))


def ahead(first: int, second: int) -> float:
    """The chance that the answer with `first` votes is the more probable one, where its best rival
    has `second`: Adaptive-Consistency's stopping rule (Aggarwal et al. 2023, arXiv 2305.11860).

    P(p > 1/2), p ~ Beta(first + 1, second + 1): of integers the sum of a binomial's terms, exact
    but for the last division.
    """
    trials = first + second + 1
    below: int = sum(math.comb(trials, k) for k in range(first + 1))
    return below / 2.0**trials


def decided(votes: Sequence[int], left: int, sure: float) -> bool:
    """Whether a vote may stop that `left` further answers could join.

    `votes`: of each answer, the most first. It may where nothing can change any more, and where the
    first one is ahead with the probability `sure`; 1: never for that alone.
    """
    if not votes:
        return left == 0
    first, second = votes[0], votes[1] if len(votes) > 1 else 0
    if left == 0 or first > second + left:
        return True
    return sure < 1 and ahead(first, second) >= sure
