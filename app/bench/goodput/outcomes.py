"""Whether an answer came in time, for its budget, and right; and if not, why not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from app.bench.goodput.demands import Slo, Wanted
from app.bench.goodput.replays import Kept, Replay
from app.bench.opinions import worth
from app.tariffs import PICO

_AT_ONCE = 4  # of what is graded: some of it runs code

Why: TypeAlias = Literal["", "refused", "failed", "deadline", "budget", "late", "slow", "over"]
WHYS: Mapping[Why, str] = {
    "refused": "turned away before anything was made: 4xx, 503",
    "failed": "broke off otherwise",
    "deadline": "not whole by its deadline: 504, or cut",
    "budget": "cut as the money ended",
    "late": "began too late",
    "slow": "whole too late, by our clock",
    "over": "cost more than its budget",
}


@dataclass(frozen=True)
class Outcome:
    """Of one request in one way."""

    seed: int
    number: int
    way: str
    kind: str
    slo: str
    why: Why  # what it did not keep to; empty: it kept to all
    worth: float  # 0 to 1
    right: bool  # kept to all, and worth as much as is asked
    cost: int | None  # 1e-12 USD; None: nobody can say
    budget: int | None  # 1e-12 USD
    first: float | None  # seconds, of an answer that is there
    seconds: float | None
    lag: float
    chosen: str  # the way that answered, of the planner's; else the preset, or the policy
    promise: Mapping[str, Any] | None  # of the planner's way

    @property
    def met(self) -> bool:
        return not self.why

    @property
    def over(self) -> bool:
        return self.cost is not None and self.budget is not None and self.cost > self.budget

    @property
    def used(self) -> float | None:
        """Share of the budget, of an answer whose cost is known."""
        if self.cost is None or not self.budget or self.why in ("refused", "failed"):
            return None
        return self.cost / self.budget

    @property
    def whole(self) -> bool:
        return self.why not in ("refused", "failed", "deadline", "budget")


async def outcomes(
    found: Mapping[Replay, Sequence[Kept]],
    windows: Mapping[int, Sequence[Wanted]],
    *,
    right: float,
) -> list[Outcome]:
    """Of all answers. `right`: the least worth of one that counts as right."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(kept: Kept) -> Outcome:
        of = windows[kept.seed][kept.number]
        graded = 0.0
        if not kept.answer.failed:
            async with places:
                graded = await worth(of.question, kept.answer.texts[0])
        return _outcome(kept, of, graded, right)

    return list(await asyncio.gather(*(one(kept) for part in found.values() for kept in part)))


def _outcome(kept: Kept, of: Wanted, graded: float, right: float) -> Outcome:
    answer, cost = kept.answer, _cost(kept)
    why = _why(kept, of.slo, cost)
    promise = (kept.explained or {}).get("way")
    told = answer.farthing
    return Outcome(
        seed=kept.seed,
        number=kept.number,
        way=kept.way,
        kind=of.question.task.name,
        slo=of.slo.name,
        why=why,
        worth=graded,
        right=not why and graded >= right,
        cost=cost,
        budget=of.slo.usd,
        first=None if answer.failed else answer.first_s or answer.seconds,
        seconds=None if answer.failed else answer.seconds,
        lag=kept.lag,
        chosen=promise["name"] if promise else told.get("preset") or told.get("policy") or "",
        promise=promise,
    )


def _cost(kept: Kept) -> int | None:
    """What was billed: as the answer says, else as the log does."""
    answer = kept.answer
    if answer.cost is not None:
        return round(answer.cost * PICO)
    if kept.explained is not None and kept.explained["usd"] is not None:
        return round(float(kept.explained["usd"]) * PICO)
    return 0 if _refused(answer.failed) else None


def _refused(failed: str) -> bool:
    return failed[:1] == "4" or failed.startswith("503")


def _why(kept: Kept, slo: Slo, cost: int | None) -> Why:
    answer = kept.answer
    first = answer.first_s or answer.seconds or 0.0
    if cost is not None and slo.usd is not None and cost > slo.usd:
        return "over"  # whatever else: this must not be
    if answer.failed.startswith("504") or answer.cut == "deadline":
        return "deadline"
    if answer.failed:
        return "refused" if _refused(answer.failed) else "failed"
    if answer.cut:
        return "budget"
    if slo.first_token is not None and first > slo.first_token:
        return "late"
    if slo.latency is not None and (answer.seconds or 0.0) > slo.latency:
        return "slow"
    return ""
