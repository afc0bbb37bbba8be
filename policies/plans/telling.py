"""How a choice of the planner's is told: in a line, and way by way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from app.catalog import PICO
from app.errors import FarthingError
from app.types import Alternative, Bounds, PlanKind, Promise
from policies.plans.choosing import NEARLY, Bound, Choice, Option, Wish, missed
from policies.plans.courses import Course

_NOTHING: Mapping[Bound, str] = {
    "usd": "no way is likely to cost less than the budget; this is the cheapest",
    "latency": "no way is likely to be whole by the deadline; this is the quickest",
    "first_token": "no way is likely to begin in time; this one begins first",
    "quality": "no way that fits is known to be that good; this is the best",
}
HEADERS: Mapping[Bound, str] = {
    "usd": "X-Budget-Usd",
    "latency": "X-Budget-Latency-Ms",
    "first_token": "X-Budget-Ttft-Ms",
    "quality": "X-Budget-Quality",
}
"""By which each bound is set."""


def why(choice: Choice, first: Choice, wish: Wish) -> str:
    """Why this one is taken; `first`: the one that should be."""
    if choice.missed is not None:
        return _NOTHING[choice.missed]
    if choice is not first:
        return f"drawn, to learn of it; else {first.option.name} answers"
    if choice.option.unable:
        return f"no way can serve it as it is; {choice.option.unable}"
    if wish.quality is not None:
        return f"the cheapest that is known to have {wish.quality:g} of the best quality"
    return "the best that fits"


def line(choice: Choice, first: Choice, wish: Wish, failed: Mapping[str, FarthingError]) -> str:
    """Of a Decision: which way, why, and what is expected of it. `failed`: other ways before."""
    option = choice.option
    expected = f"quality {option.quality:.3g}, {option.cost:.3g} USD, {option.latency:.3g} s"
    before = "".join(f"{name} failed ({type(e).__name__}); " for name, e in failed.items())
    return f"{option.name}: {before}{why(choice, first, wish)}; expected: {expected}"[:200]


def promise(course: Course, taken: Choice, first: Choice, after: tuple[str, ...]) -> Promise:
    """What is expected of the way that is taken; `after`: ways that failed before."""
    option = taken.option
    short = taken.missed is not None or bool(option.unable)
    kind: PlanKind = "short" if short else "best" if taken is first else "explored"
    return Promise(
        way=option.name,
        preset=course.way.preset,
        cost=option.cost,
        first_token=option.first_token,
        latency=option.latency,
        kind="failover" if after else kind,
        after=after,
        cost_high=option.cost_high,
        first_token_high=option.first_token_high,
        latency_high=option.latency_high,
    )


def instead(
    told: Callable[[], Sequence[Alternative]], choice: Choice, failed: Mapping[str, FarthingError]
) -> list[Alternative]:
    """All ways as they were weighed at first, with which failed then, and which answers."""
    found = []
    for way in told():
        chosen, reason = way.name == choice.option.name, way.reason
        if chosen:
            reason = "the best of those that had not failed"
        elif way.name in failed:
            reason = f"it failed before its first word ({type(failed[way.name]).__name__})"
        found.append(replace(way, chosen=chosen, reason=reason))
    return found


def alternatives(
    options: Sequence[Option], choices: Sequence[Choice], taken: Choice, wish: Wish
) -> list[Alternative]:
    """Every way that was weighed, with what is expected of it and how likely it was to be taken."""
    likely = {choice.option.name: choice.propensity for choice in choices}
    first, found = choices[0], list[Alternative]()
    for option in options:
        chosen = option is taken.option
        bound = missed(option, wish)
        reason = why(taken, first, wish) if chosen else _why_not(option, bound, first.option, wish)
        found.append(
            Alternative(
                kind="preset",
                name=option.name,
                chosen=chosen,
                reason=reason,
                cost=round(option.cost * PICO),
                fits=bound is None,
                first_token=option.first_token,
                latency=option.latency,
                quality=option.quality,
                bounds=Bounds(
                    cost=option.cost_high,
                    first_token=option.first_token_high,
                    latency=option.latency_high,
                    quality=option.quality_low,
                    doubt=option.doubt,
                    worst=option.worst,
                    able=not option.unable,
                ),
                propensity=likely.get(option.name, 0.0),
                delay=option.delay,
                chance=wish.chance(option),
            )
        )
    return found


def _why_not(option: Option, bound: str | None, best: Option, wish: Wish) -> str:
    if bound is not None:
        return _misses(option, bound, wish)
    if option is best:
        return "it would be taken, but for what is learned of others"
    chance = wish.chance(option)
    if wish.quality is not None:
        if chance < min(NEARLY, wish.chance(best)):
            return f"it keeps to the budget and to time in {chance:.0%} of the cases only"
        return f"{best.name}, which costs less, is enough"
    better = wish.quality_of(option) > wish.quality_of(best) or option.quality > best.quality
    if better and chance < wish.chance(best):
        return f"it keeps to the budget and to time in {chance:.0%} of the cases only"
    more = wish.delay_price * (option.delay - best.delay)
    if better and more > wish.quality_of(option) - wish.quality_of(best):
        return f"others would wait {option.delay:.3g} s for it, {best.delay:.3g} for {best.name}"
    known = "costs less, and is as good as far as is known"
    return f"{best.name} {known if better else 'is expected to do no worse'}"


def _misses(option: Option, bound: str, wish: Wish) -> str:
    if bound == "exact":
        return "it is approximate"
    if bound == "usd":
        within = f"{wish.chance_of(option, 'usd'):.0%} of the time"
        return f"it may cost {wish.cost_of(option):.3g} USD; {wish.usd_of(option):.3g} do {within}"
    if bound == "latency":
        within = f"{wish.chance_of(option, 'latency'):.0%} of the time"
        return f"it may take {wish.latency_of(option):.3g} s; {wish.latency:.3g} do {within}"
    if bound == "first_token":
        first, within = wish.first_token, f"{wish.chance_of(option, 'first_token'):.0%} of the time"
        return f"it may begin after {wish.first_token_of(option):.3g} s; by {first:.3g} {within}"
    if bound == "quality":
        return f"it is only known to have {wish.quality_of(option):.3g} of the best quality"
    return option.unable
