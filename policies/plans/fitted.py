"""What a fleet's profile is to a planner: its ways, read once and not for each request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias, TypeVar

from app.catalog import PICO, Catalog, Tariff
from app.errors import BadRequest
from app.profile import Law, Profile, Way
from app.prompt_features import Classifier
from policies.plans.courses import Course, courses
from policies.plans.crowd import Crowd
from policies.plans.pace import Pace
from policies.plans.predicting import Forecast

_KEPT = 16  # of each kind
_LONG = (1000, 256)  # tokens of a prompt, and of an answer
_PROBES = ((1, 1), (7, 64), (100, 1), (1000, 37), (3001, 2048), (20000, 9973))  # tokens
T = TypeVar("T")
log = logging.getLogger(__name__)


_Found: TypeAlias = tuple[list[Course], dict[str, str], Pace]


@dataclass(frozen=True)
class Groups:
    """Ways that are alike in something, so that it is asked once of each group."""

    keys: Sequence[Any]
    firsts: Sequence[int]  # the first way of each group
    places: Sequence[int]  # the group of each way

    @classmethod
    def of(cls, keys: Sequence[Any]) -> Groups:
        """Of ways with these keys."""
        groups = list(dict.fromkeys(keys))
        return cls(groups, [*map(keys.index, groups)], [*map(groups.index, keys)])

    def each(self, told: Callable[[Any], T]) -> list[T]:
        """For each way what is told of its group's key."""
        known = [told(key) for key in self.keys]
        return [known[place] for place in self.places]


@dataclass(frozen=True)
class Fitted:
    """What a fleet's profile is to a planner."""

    courses: Sequence[Course]  # the best one first, over all kinds of prompts
    forecast: Forecast  # of these
    kinds: Classifier
    asked: Groups  # by the models that they ask: most ways differ in a dial alone
    priced: Groups  # and by what they may cost at worst
    models: Sequence[str]  # all of these
    firsts: Sequence[str]  # of these, that a way asks first
    beside: Mapping[str, frozenset[str]]  # of the fleet, by model: what runs where it does
    prices: Mapping[str, Tariff]
    profile: Profile
    pace: Pace  # of this process, whatever ways are left
    crowd: Crowd = field(default_factory=Crowd)  # as its requests found it
    _parts: dict[frozenset[str], Fitted] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Sequence[Course], profile: Profile, catalog: Catalog, pace: Pace) -> Fitted:
        prices = catalog.prices()
        return cls(
            **_of(found, profile, prices),
            kinds=profile.kinds,
            beside=catalog.beside(),
            prices=prices,
            profile=profile,
            pace=pace,
        )

    def only(self, names: frozenset[str]) -> Fitted:
        """With the ways of these names."""
        if names not in self._parts:
            found = [course for course in self.courses if course.way.name in names]
            part = replace(self, **_of(found, self.profile, self.prices), _parts={})
            _make_room(self._parts)
            self._parts[names] = part
        return self._parts[names]


def _of(found: Sequence[Course], profile: Profile, prices: Mapping[str, Tariff]) -> dict[str, Any]:
    """What is told of these ways."""
    return {
        "courses": tuple(found),
        "forecast": Forecast([_feared(course, profile, prices) for course in found], profile),
        "asked": Groups.of([course.way.models for course in found]),
        "priced": Groups.of([_worst(course) for course in found]),
        "firsts": tuple(dict.fromkeys(course.first for course in found)),
        "models": tuple(dict.fromkeys(m for course in found for m in course.way.models)),
    }


def _feared(course: Course, profile: Profile, prices: Mapping[str, Tariff]) -> Way:
    """The way, of which nothing counts as free or instant because nobody told: it costs what it may
    at worst, and takes as long as the slowest of all."""
    way = course.way
    changes = {} if way.cost.known else {"cost": _priced(course, prices)}
    for name in ("first_token", "latency"):
        if not getattr(way, name).known:
            changes[name] = _slowest([getattr(each, name) for each in profile.ways])
    return way.model_copy(update=changes)


def _priced(course: Course, prices: Mapping[str, Tariff]) -> Law:
    """By its worst case: of a long prompt and a long answer, and linear in both below them."""
    policy, (prompt, completion) = course.policy, _LONG

    def usd(prompt: int) -> float:
        worst = policy.worst_case(course.model, prompt, completion)
        costs = [prices[model].of(used) for model, used in worst.items()]
        return (max if policy.one_of else sum)(costs) / PICO

    alone = usd(0)
    return Law(base=0, prompt=(usd(prompt) - alone) / prompt, completion=alone / completion)


def _slowest(laws: Sequence[Law]) -> Law:
    fields = tuple(Law.model_fields)
    return Law(**{name: max(getattr(law, name) for law in laws) for name in fields})


def _worst(course: Course) -> tuple[object, ...]:
    """What tells apart ways of which the worst case differs. A dial that has no say in it leaves
    the same function of two numbers of tokens, which is known by some values. (That a budget is
    kept to, or `strict`, does not depend on it: the way that is taken is priced by itself.)"""
    policy = course.policy
    found = [tuple(policy.worst_case(course.model, *each).items()) for each in _PROBES]
    return type(policy), policy.one_of, course.model, *found


def _make_room(kept: dict[Any, Any]) -> None:
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]


# Of catalogs, by their ids and with them, so that these stay theirs.
_read: dict[int, tuple[Catalog, _Found]] = {}
_kept: dict[tuple[object, ...], tuple[Catalog, Fitted]] = {}


def fitted(catalog: Catalog, ways: tuple[str, ...], exact: bool, model: str | None) -> Fitted:
    """What is read of a profile once, not for each request. Raises BadRequest."""
    key = (id(catalog), ways, exact, model)
    if key not in _kept:
        made = _fit(catalog, ways, exact, model)
        _make_room(_kept)
        _kept[key] = catalog, made
    return _kept[key][1]


def _fit(catalog: Catalog, ways: tuple[str, ...], exact: bool, model: str | None) -> Fitted:
    profile = catalog.profile
    if profile is None:
        _refuse(
            "there is no profile of this fleet: run `farthing calibrate`, and name the file that it"
            " writes in farthing.toml: [planner] profile"
        )
    every, stale, pace = _found(catalog, profile)
    if not every:
        _refuse("no way of the profile is as it was measured: run `farthing calibrate` again")
    known = {name for course in every for name in (course.way.name, course.way.preset)}
    for name in sorted(set(ways) - known):
        if name in stale:
            _refuse(f"ways: {name} is not as it was measured: {stale[name]}")
        presets = ", ".join(dict.fromkeys(course.way.preset for course in every))
        _refuse(f"ways: the profile has no {name!r}; it has: {presets}")
    found = [
        course
        for course in every
        if (not ways or course.way.name in ways or course.way.preset in ways)
        and (not exact or course.way.fidelity == "exact")
        and (model is None or model in course.way.models)
    ]
    if not found:
        what = "is exact" if exact else "is left"
        _refuse(f"of the measured ways none {what}" + (f" with {model}" if model else ""))
    found.sort(key=lambda course: (course.way.name != profile.best, -_mean(course.way)))
    return Fitted.of(found, profile, catalog, pace)


def _found(catalog: Catalog, profile: Profile) -> _Found:
    """The ways that this fleet still has; of the others, by name, why they are not taken."""
    if id(catalog) not in _read:
        found, stale = courses(profile, catalog)
        for name, why in stale.items():
            log.warning("the planner does not take %s: %s", name, why)
        _make_room(_read)
        _read[id(catalog)] = catalog, (found, stale, Pace(catalog.beside()))
    return _read[id(catalog)][1]


def _refuse(why: str) -> NoReturn:
    raise BadRequest(f"policy planner: {why}", param="policy")


def _mean(way: Way) -> float:
    """Its quality over all kinds of prompts."""
    return sum(one.mean for one in way.quality.values()) / max(len(way.quality), 1)
