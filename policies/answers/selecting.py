"""Which of several answers is given: by a vote, a verifier's scores, or their likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from app.types import Alternative
from policies.answers.asking import Reply
from policies.answers.voting import Group, groups

Reads: TypeAlias = Callable[[Reply], str | None]
"""What a reply answers, so that equal answers are equal; None: nothing that could be found."""

_MOST_TOLD = 16  # answers that are told of


@dataclass(frozen=True, slots=True)
class Selected:
    """One of several answers, and why it is the one."""

    reply: Reply
    confidence: float | None  # 0 to 1
    detail: str
    considered: tuple[Alternative, ...]


def usable(replies: Sequence[Reply]) -> list[Reply]:
    """Those that their model ended; without any, those that the client's own bound ended, or the
    budget, or all."""
    whole = [reply for reply in replies if reply.whole]
    ended = [reply for reply in replies if reply.finish is not None]
    return whole or [reply for reply in ended if not reply.cut] or ended or list(replies)


def voted(replies: Sequence[Reply], reads: Reads) -> list[Group]:
    """The groups of those that may be given, by their answers."""
    found = usable(replies)
    return groups([reads(reply) for reply in found], [reply.mean_logprob for reply in found])


def by_vote(replies: Sequence[Reply], reads: Reads) -> Selected:
    """Of the answer that most of them give, the likeliest one; without an answer, of all."""
    found, ranked = usable(replies), voted(replies, reads)
    if not ranked:
        return by_likelihood(replies, "no answer was found in any of them, so ")
    first, total = ranked[0], len(replies)
    tied = len(ranked) > 1 and ranked[1].votes == first.votes
    ways = tuple(
        Alternative(
            kind="answer",
            name=f"answer {number}",
            chosen=group is first,
            reason=f"{_of(group.votes, total)} gave it"
            + (", the likeliest" * (tied and group is first)),
        )
        for number, group in enumerate(ranked[:_MOST_TOLD], 1)
    )
    detail = f"{_of(first.votes, total)} gave this answer"
    without = total - sum(group.votes for group in ranked)
    detail += f", {without} gave none" if without else ""
    detail += "; a tie went to the likeliest" if tied else ""
    return Selected(found[first.members[0]], first.votes / total, detail, ways)


def by_scores(
    replies: Sequence[Reply], scores: Sequence[float | None], reads: Reads, passes: float
) -> Selected:
    """Of the highest score; of several of them, what they vote for. None: could not be verified."""
    found = usable(replies)
    score = {id(reply): one for reply, one in zip(replies, scores, strict=True)}
    known = [one for reply in found if (one := score[id(reply)]) is not None]
    if not known:
        return by_vote(replies, reads)
    best = max(known)
    chosen = by_vote([reply for reply in found if score[id(reply)] == best], reads).reply
    ways = tuple(
        Alternative(
            kind="answer",
            name=f"answer {number}",
            chosen=reply is chosen,
            reason=_verified(score[id(reply)], passes),
        )
        for number, reply in enumerate(replies[:_MOST_TOLD], 1)
    )
    passed = sum(one is not None and one >= passes for one in scores)
    unknown = sum(one is None for one in scores)
    detail = f"{_of(passed, len(replies))} passed the verifier"
    detail += f", {unknown} could not be verified" if unknown else ""
    return Selected(chosen, best, detail, ways)


def by_likelihood(replies: Sequence[Reply], why: str = "") -> Selected:
    """Whose tokens were likeliest in the mean."""
    found = usable(replies)
    chosen = max(found, key=lambda reply: _likelihood(reply.mean_logprob))
    ways = tuple(
        Alternative(
            kind="answer",
            name=f"answer {number}",
            chosen=reply is chosen,
            reason=_told(reply.mean_logprob),
        )
        for number, reply in enumerate(replies[:_MOST_TOLD], 1)
    )
    mean = chosen.mean_logprob
    detail = f"{why}the likeliest of {len(replies)}"
    return Selected(chosen, None if mean is None else math.exp(min(mean, 0.0)), detail, ways)


def _of(some: int, total: int) -> str:
    return f"{some} of {total}"


def _likelihood(mean: float | None) -> float:
    return -math.inf if mean is None else mean


def _told(mean: float | None) -> str:
    return "no log-probabilities" if mean is None else f"mean log-probability {mean:.3f}"


def _verified(score: float | None, passes: float) -> str:
    if score is None:
        return "it could not be verified"
    if score >= passes:
        return f"it passed the verifier ({score:.2f})"
    return f"it did not pass the verifier ({score:.2f})"
