"""For each request the way to answer that is measured to be best and fits its budget and time."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence, Set
from contextlib import aclosing, suppress
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from typing import ClassVar, Self

from pydantic import Field, PrivateAttr

from app.catalog import PICO, Catalog, Tariff
from app.errors import BudgetExceeded, FarthingError
from app.profile import Way
from app.prompt_features import features_of
from app.types import (
    Alternative,
    Call,
    Chunk,
    Decision,
    Fidelity,
    MeteredEngine,
    Took,
    Usage,
)
from policies.answers.asking import PASSED_ON
from policies.base import Models, Planned, Policy
from policies.plans import telling
from policies.plans.choosing import MOST_EXPLORED, NEARLY, SURE, Choice, Option, Wish, choose
from policies.plans.courses import Course, State, special, unable, worst_usd
from policies.plans.fitted import Fitted, fitted
from policies.plans.pace import Slower
from policies.plans.predicting import Situation

_AS_MEASURED = (Slower(),)
_MOST_TRIED = 3  # other ways, where the one that was taken fails before its first word


class Planner(Policy):
    """One of the ways that `farthing calibrate` has measured answers all of a request: the one of
    the best quality whose cost, time to the first token and latency fit, under the present load;
    where a least quality is asked for, the cheapest that has it.

    Where others are answered beside it what it takes from them counts, too (`delay_price`).

    It is not sure of what it was told: with `cautious` a way has the quality that it is known to
    have at least, and takes what nearly all answers do not pass (`sure`). Where nothing fits, what
    the budget allows goes before the time that is left, and that before quality.
    """

    chooses: ClassVar[bool] = True

    ways: Models = Field(
        (),
        max_length=64,
        description="models, presets and single ways of the profile that it may take; default: all",
    )
    quality: float | None = Field(
        None,
        ge=0,
        le=1,
        description="least quality, relative to the best way's, where the request names none: the"
        " cheapest way that has it answers",
    )
    cautious: bool = Field(
        True,
        description="by the bounds of what was measured; false: by the means",
    )
    sure: float = Field(
        SURE,
        ge=0.05,
        le=0.999,
        description="least chance that an answer keeps to money, and to each time, of a way that"
        " fits; of those that do, quality counts times the chance",
    )
    paced: bool = Field(
        True,
        description="times as this machine has kept to them lately; false: as they were measured",
    )
    exact: bool = Field(
        False, description="only ways whose answers are distributed as a model's own"
    )
    alike: float = Field(
        0.0,
        ge=0,
        le=4,
        description="standard errors of the best way's quality: what is nearer to it counts as as"
        " good, so that what it costs decides",
    )
    delay_price: float = Field(
        0.05,
        ge=0,
        le=10,
        description="quality that a second is worth by which other answers come later, all of them"
        " together; 0: what an answer takes from others does not count",
    )
    explore: float = Field(
        0.0,
        ge=0,
        le=MOST_EXPLORED,
        description="share of the requests that any way that fits may answer, to learn of it",
    )

    _fitted: Fitted | None = PrivateAttr(default=None)

    @property
    def fidelity(self) -> Fidelity:
        """Of all its ways; each answer has that of the one that was taken."""
        exact = all(course.way.fidelity == "exact" for course in self._courses)
        return "exact" if exact else "approximate"

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        """With a model named, by the ways in which that one may answer."""
        copy = self.model_copy()
        copy._fitted = fitted(catalog, self.ways, self.exact, model)
        return copy

    def narrowed(self, may: Callable[[Way], bool]) -> Self | None:
        allowed = frozenset(course.way.name for course in self._courses if may(course.way))
        if len(allowed) == len(self._courses):
            return self
        copy = self.model_copy()
        copy._fitted = self._known.only(allowed) if allowed else None
        return copy if allowed else None

    def best_first(self, model: str) -> Sequence[str]:
        named = (course.policy.best_first(course.model) for course in self._courses)
        return tuple(dict.fromkeys(model for models in named for model in models))

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        """That of any of its ways."""
        worst: dict[str, Usage] = {}
        for course in self._courses:
            for name, used in course.policy.worst_case(course.model, prompt, completion).items():
                worst[name] = _most(used, worst.get(name, used))
        return worst

    def most_calls(self, call: Call) -> int | None:
        most = [course.policy.most_calls(call.to(course.model)) for course in self._courses]
        known = [calls for calls in most if calls is not None]
        # Ways that fail before their first word have others tried.
        return (1 + _MOST_TRIED) * max(known) if len(known) == len(most) else None

    async def planned(
        self,
        call: Call,
        engine: MeteredEngine,
        prices: Mapping[str, Tariff],
        strict: bool = False,
        usd: int | None = None,
    ) -> Planned:
        return await self._planned(_Tries(call, engine, prices, strict), usd)

    async def _planned(self, tries: _Tries, usd: int | None) -> Planned:
        call, engine, prices, strict = tries.call, tries.engine, tries.prices, tries.strict
        known = self._known
        courses = known.courses
        found = await self._situation(call, engine, prices, strict)
        options = tries.left(known.forecast.options(found), courses)
        wish = self._wish(call, strict, usd)
        choices = choose(options, wish, 0.0 if tries.failed else self.explore)
        taken = _drawn(choices, call.id)
        tries.check(taken, choices[0], wish)
        place = next(i for i, c in enumerate(courses) if c.way.name == taken.option.name)
        course = courses[place]
        told = partial(telling.alternatives, options, choices, taken, wish)
        if tries.told is not None:
            told = partial(telling.instead, tries.told, taken, tries.failed)

        async def other(error: FarthingError, models: Set[str], usd: int | None) -> Planned:
            return await self._planned(tries.after(course, error, models, told), usd)

        return Planned(
            policy=course.policy.serving(call.to(course.model), engine, prices),
            model=course.model,
            promise=telling.promise(course, taken, choices[0], tuple(tries.failed)),
            decision=Decision(
                kind="plan",
                model=course.first,
                token=0,
                detail=telling.line(taken, choices[0], wish, tries.failed),
                steered=taken.missed == "usd",
            ),
            considered=told,
            other=other,
            # How long another way took to fail is no matter of pace either.
            ended=None if call.choices > 1 or tries.failed else partial(self._learn, place, found),
        )

    def _learn(self, place: int, found: Situation, took: Took, tokens: int) -> None:
        """What an answer of this way took, beside what the profile says for as many tokens: its
        length is no matter of pace."""
        way = self._courses[place].way
        first, least, most = took
        begins = way.first_token.at(found.prompt, tokens, found.calls[place])
        whole = way.latency.at(found.prompt, tokens, found.others[place])
        self._known.pace.learn(
            way.models,
            None if first is None else _ratio(first, begins),
            (least / whole, most / whole) if whole > 0 else None,
        )

    async def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        plan = await self.planned(call, engine, self._known.prices)
        yield Chunk(decision=plan.decision, considered=tuple(plan.considered()))
        async with aclosing(plan.policy.run(call.to(plan.model), engine)) as chunks:
            async for chunk in chunks:
                yield chunk

    @property
    def _known(self) -> Fitted:
        known = self._fitted  # once: pydantic looks for it in several places
        if known is None:
            raise RuntimeError("a planner must be fitted to a fleet first")
        return known

    @property
    def _courses(self) -> Sequence[Course]:
        return self._known.courses

    def _wish(self, call: Call, strict: bool, usd: int | None) -> Wish:
        goals, now = call.goals, time.monotonic()
        return Wish(
            usd=None if usd is None else usd / PICO,
            latency=None if goals.deadline is None else goals.deadline - now,
            first_token=None if goals.first_token is None else goals.first_token - now,
            quality=self.quality if goals.quality is None else goals.quality,
            exact=self.exact,
            cautious=self.cautious,
            strict=strict,
            sure=max(self.sure, NEARLY) if strict else self.sure,
            alike=self.alike,
            delay_price=self.delay_price,
        )

    async def _situation(
        self, call: Call, engine: MeteredEngine, prices: Mapping[str, Tariff], strict: bool
    ) -> Situation:
        """What the request asks, and what it finds."""
        known = self._known
        state = State.of(known.models, known.beside, engine, prices)
        each = known.asked.each
        ill = each(state.ill)
        if special(call):
            ill = [
                said or unable(course, call, engine, prices)
                for said, course in zip(ill, known.courses, strict=True)
            ]
        prompt = await _counted(known, call, ill, engine)
        holds = each(state.context)
        if min(holds) <= prompt:
            ill = [
                said or ("" if tokens > prompt else "the prompt is longer than its context")
                for said, tokens in zip(ill, holds, strict=True)
            ]
        most = sys.maxsize if call.max_tokens is None else call.max_tokens
        rooms = each(lambda models: max(min(state.context(models) - prompt, most), 0))
        worst: Sequence[float | None] = [None] * len(ill)
        usd = each(state.left)
        if strict and usd != worst:
            worst = _worst(known, call, (prompt, rooms), engine, prices)
        calls = {models: state.calls(models) for models in known.asked.keys}
        return Situation(
            kinds=known.kinds.probabilities(features_of(call)),
            prompt=prompt,
            choices=call.choices,
            rooms=rooms,
            calls=each(calls.__getitem__),
            others=each(lambda models: known.crowd.others(models, calls[models])),
            joins=each(state.joins),
            paces=each(known.pace.of) if self.paced else _AS_MEASURED * len(ill),
            usd=usd,
            worst=worst,
            unable=ill,
        )


async def _counted(known: Fitted, call: Call, ill: Sequence[str], engine: MeteredEngine) -> int:
    """Tokens of a prompt, of several in the mean, as a model reads them that may be asked."""
    *models, last = known.firsts
    if any(ill):
        named = zip(map(bool, ill), known.courses, strict=True)
        able = [course for _, course in sorted(named, key=lambda one: one[0])]
        *models, last = dict.fromkeys(course.first for course in able)
    calls = call.apart()
    for model in models:
        with suppress(*PASSED_ON):  # another may tell
            return -(-sum([await engine.count(each.to(model)) for each in calls]) // len(calls))
    return -(-sum([await engine.count(each.to(last)) for each in calls]) // len(calls))


def _worst(
    known: Fitted,
    call: Call,
    tokens: tuple[int, Sequence[int]],
    engine: MeteredEngine,
    prices: Mapping[str, Tariff],
) -> list[float]:
    """USD that each way may cost at worst; `tokens`: of a prompt, and what each has room for."""
    prompt, rooms = tokens
    if call.choices > 1:  # how many runs of a way these are may depend on its dial
        ways = zip(known.courses, rooms, strict=True)
        return [worst_usd(course, call, (prompt, room), engine, prices) for course, room in ways]
    group = known.priced
    firsts = [
        worst_usd(known.courses[first], call, (prompt, rooms[first]), engine, prices)
        for first in group.firsts
    ]
    return [firsts[place] for place in group.places]


def _ratio(actual: float, expected: float) -> float | None:
    return actual / expected if expected > 0 else None


@dataclass(frozen=True)
class _Tries:
    """What is asked, and the ways to answer it that have failed before their first words."""

    call: Call
    engine: MeteredEngine
    prices: Mapping[str, Tariff]
    strict: bool
    failed: Mapping[str, FarthingError] = field(default_factory=dict)  # by way, in their order
    models: frozenset[str] = frozenset()  # that failed in them
    told: Callable[[], Sequence[Alternative]] | None = None  # of all ways, as they were weighed

    def after(
        self,
        course: Course,
        error: FarthingError,
        models: Set[str],
        told: Callable[[], Sequence[Alternative]],
    ) -> _Tries:
        """Once this way has failed too, with that error and as these models did."""
        failed = {**self.failed, course.way.name: error}
        return replace(self, failed=failed, models=self.models | models, told=self.told or told)

    def left(self, options: Sequence[Option], courses: Sequence[Course]) -> Sequence[Option]:
        """Ways that failed cannot be taken, nor can others that would ask what failed in them."""
        if not self.failed:
            return options
        found = []
        for option, course in zip(options, courses, strict=True):
            broken = next((model for model in course.way.models if model in self.models), "")
            why = f"{broken} failed before its first word" if broken else ""
            why = why or ("it failed before its first word" if option.name in self.failed else "")
            found.append(option._replace(unable=option.unable or why))
        return found

    def check(self, taken: Choice, best: Choice, wish: Wish) -> None:
        """Raises what the way raised that was taken first, where there is no other to be taken; and
        BudgetExceeded where `strict` cannot be kept to."""
        first = next(iter(self.failed.values()), None)
        if first is None:
            if self.strict and taken.missed not in (None, "usd"):  # of money the gateway knows more
                header = telling.HEADERS[taken.missed]
                raise BudgetExceeded(
                    f"{header}: {telling.why(taken, best, wish)} ({taken.option.name}), and"
                    " X-Budget-Fallback is `strict`",
                    param=header,
                )
        elif (
            taken.option.unable
            or len(self.failed) > _MOST_TRIED
            or (self.strict and taken.missed is not None)
        ):
            raise first


def _drawn(choices: Sequence[Choice], id: str) -> Choice:
    """One of them, each as likely as it says; the same for the same request."""
    if len(choices) == 1:
        return choices[0]
    point = zlib.crc32(id.encode()) / 2**32
    for choice in choices:
        point -= choice.propensity
        if point < 0:
            return choice
    return choices[0]


def _most(one: Usage, other: Usage) -> Usage:
    return Usage(*map(max, astuple(one), astuple(other)))
