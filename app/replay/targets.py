"""Policies to evaluate: always one way, or the planner with other options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.errors import ConfigError
from app.replay.decisions import Decided, Way, names_of
from policies.plans.choosing import MOST_EXPLORED, NEARLY, SURE, Option, Wish, choose, fits

PLANNER = ("auto", "planner")
LOGGED = "as logged"
_OPTIONS = (
    "quality",
    "usd",
    "latency",
    "first_token",
    "explore",
    "cautious",
    "alike",
    "sure",
    "delay_price",
    "ways",
)

Choose = Callable[[Decided], Mapping[str, float]]
"""How likely each way is to be taken for a request, by its name; they sum to 1."""


@dataclass(frozen=True)
class Target:
    """A policy to evaluate."""

    name: str
    choose: Choose
    plans: bool = False  # whether the planner chooses anew, by what the log holds of ways


def logged() -> Target:
    """The policy that made the log."""
    return Target(LOGGED, lambda one: {way.name: way.propensity for way in one.alternatives})


def parse(text: str, decided: Sequence[Decided]) -> Target:
    """`careful` or `careful;threshold=0.5`: always that way. `auto;quality=0.9`: the planner with
    other options. Raises ConfigError for what the log does not know."""
    name, _, options = text.partition(";")
    if name in PLANNER:
        return Target(text, _Planner.of(options).choose, plans=True)
    known = names_of(decided)
    if text not in known:
        raise ConfigError(
            f"--policy {text}: no request of the log weighed it; there are: {', '.join(known)};"
            f" and {PLANNER[0]};{'=;'.join(_OPTIONS)}="
        )
    return Target(text, lambda one: {text: 1.0})


@dataclass(frozen=True)
class _Planner:
    """The planner, with what the request asked, and as it was set, unless an option says otherwise.
    An old log does not hold how sure it is what is expected of a way: then that decides, as with
    `cautious` off."""

    quality: float | None = None
    usd: float | None = None
    latency: float | None = None
    first_token: float | None = None
    explore: float = 0.0
    cautious: float | None = None  # 0: by expectation
    alike: float | None = None  # standard errors
    sure: float | None = None  # least chance to keep to money and time
    delay_price: float | None = None  # quality for a second
    ways: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> _Planner:
        """Raises ConfigError."""
        said = [part.partition("=") for part in text.split(";") if part.strip()]
        numbers: dict[str, float] = {}
        ways: tuple[str, ...] = ()
        for name, _, value in ((name.strip(), equals, value) for name, equals, value in said):
            if name not in _OPTIONS:
                known = ", ".join(_OPTIONS)
                raise ConfigError(f"--policy: the planner has no {name!r} here; it has: {known}")
            if name == "ways":
                ways = tuple(value.replace(",", " ").split())
            else:
                numbers[name] = _number(name, value)
        return cls(**numbers, ways=ways)

    def choose(self, one: Decided) -> Mapping[str, float]:
        wish, then = self._wish(one), _asked(one)
        options = [
            _option(way, out=_was_out(way, then))
            for way in one.alternatives
            if not self.ways or way.name in self.ways or way.name.partition(";")[0] in self.ways
        ]
        if not options:
            raise ConfigError(
                f"--policy: answer {one.id}: it weighed none of the ways {', '.join(self.ways)}"
            )
        return {
            choice.option.name: choice.propensity
            for choice in choose(options, wish, self.explore)
            if choice.propensity
        }

    def _wish(self, one: Decided) -> Wish:
        then = _asked(one)
        return Wish(
            usd=then.usd if self.usd is None else self.usd,
            latency=then.latency if self.latency is None else self.latency,
            first_token=then.first_token if self.first_token is None else self.first_token,
            quality=then.quality if self.quality is None else self.quality,
            cautious=then.cautious if self.cautious is None else bool(self.cautious),
            strict=then.strict,
            alike=then.alike if self.alike is None else self.alike,
            sure=then.sure if self.sure is None else self.sure,
            delay_price=then.delay_price if self.delay_price is None else self.delay_price,
        )


def _asked(one: Decided) -> Wish:
    """What the request asked, and how the planner was set."""
    strict, sure = one.request.fallback == "strict", one.plan.options.get("sure", SURE)
    return Wish(
        usd=one.estimate.budget_usd,
        latency=one.request.deadline_s,
        first_token=one.request.first_token_s,
        quality=one.quality,
        cautious=one.plan.options.get("cautious", True) is not False,
        strict=strict,
        sure=max(sure, NEARLY) if strict else sure,
        alike=one.plan.options.get("alike", 0.0),
        delay_price=one.plan.options.get("delay_price", 0.0),
    )


def _was_out(way: Way, then: Wish) -> bool:
    """Whether something kept it out that is not in the log: its models were down, it could not do
    what was asked, or it was not known well enough. What kept it out then does so again."""
    if way.able is False:
        return True
    return way.fits is False and way.propensity == 0 and fits(_option(way, out=False), then)


def _option(way: Way, out: bool) -> Option:
    return Option(
        name=way.name,
        quality=way.quality,
        cost=way.usd,
        first_token=way.first_token_s,
        latency=way.latency_s,
        quality_low=way.low_quality,
        cost_high=way.high_usd,
        first_token_high=way.high_first_token_s,
        latency_high=way.high_latency_s,
        worst=way.worst_usd,
        unable="it was kept out when it was logged" if out else "",
        doubt=way.quality_doubt or 0.0,
        delay=way.others_later_s or 0.0,
    )


def _number(name: str, text: str) -> float:
    most = {"quality": 1.0, "explore": MOST_EXPLORED, "cautious": 1.0, "sure": 1.0}.get(
        name, float("inf")
    )
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most or value == float("inf"):
        bound = "a number of 0 or more" if most > 1 else f"a number from 0 to {most:g}"
        raise ConfigError(f"--policy: {name}: must be {bound}, not {text!r}")
    return value
