"""The measured ways that a fleet still has, each with the policy that goes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import policies
from app.catalog import PICO, Catalog, Tariff
from app.errors import BadRequest, UnknownModel
from app.profile import Profile, Way
from app.types import Call, Capabilities, Load, MeteredEngine
from policies.base import Policy, most_cost

_TEXTS = ("text", "refusal")  # types of parts that every model can read


@dataclass(frozen=True)
class Course:
    """One way, as this fleet goes it."""

    way: Way
    policy: Policy  # fitted to the fleet
    model: str  # that it is asked with; empty where a preset stands for it
    first: str  # the model that is asked first


def courses(profile: Profile, catalog: Catalog) -> tuple[list[Course], dict[str, str]]:
    """Those that are as they were measured; of the others, by name, why they are not taken."""
    found, stale = list[Course](), dict[str, str]()
    for way in profile.ways:
        try:
            found.append(_course(way, catalog))
        except (BadRequest, UnknownModel) as error:
            stale[way.name] = error.message
    return found, stale


def _course(way: Way, catalog: Catalog) -> Course:
    """Raises BadRequest and UnknownModel where there is no such way any more."""
    preset = catalog.presets.get(way.preset)
    if preset is None:
        model, own = catalog.model(way.preset).name, dict[str, object]()
    else:
        model, own = "", dict(preset.options)
    if preset is not None and preset.policy != way.policy:
        raise BadRequest(f"its policy is {preset.policy} now, and was {way.policy}")
    options = {**own, **way.options}
    if catalog.digest(way.policy, options, way.models) != way.digest:
        raise BadRequest("its options, models or prices are others than when it was measured")
    policy = policies.load(way.policy, options).fit(catalog, model or None)
    if policy.chooses:
        raise BadRequest("it chooses among ways itself")
    asked = tuple(policy.worst_case(model, 0, 0))
    if set(asked) != set(way.models):
        raise BadRequest(f"it asks {', '.join(asked)} now, and asked {', '.join(way.models)}")
    return Course(way, policy, model, asked[0])


@dataclass(frozen=True)
class State:
    """How the models of a fleet are, as a request finds them."""

    able: Mapping[str, Capabilities]
    loads: Mapping[str, Load]
    beside: Mapping[str, frozenset[str]]  # by model all that run where it does
    usd: Mapping[str, float | None]  # what the budget leaves to be spent on each; None: anything

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        beside: Mapping[str, frozenset[str]],
        engine: MeteredEngine,
        prices: Mapping[str, Tariff],
    ) -> State:
        """`models`: all that any way asks."""
        return cls(
            able={model: engine.capabilities(model) for model in models},
            loads={model: engine.load(model) for model in _where(models, beside)},
            beside=beside,
            usd={model: _left(model, engine, prices) for model in models},
        )

    def calls(self, models: Sequence[str]) -> float:
        """That run or wait where these models run."""
        return sum([self._busy(model) for model in _where(models, self.beside)])

    def joins(self, models: Sequence[str]) -> bool:
        """Whether one of these is at work, so that another call of it takes part in its batches."""
        return any(self._busy(model) for model in models)

    def _busy(self, model: str) -> float:
        load = self.loads[model]
        return load.running + load.waiting

    def context(self, models: Sequence[str]) -> int:
        """Tokens of prompt and answer that all of them hold."""
        return min(self.able[model].context for model in models)

    def left(self, models: Sequence[str]) -> float | None:
        """USD that may be spent on them; None: nothing limits it."""
        limits = (self.usd[model] for model in models)
        return min((usd for usd in limits if usd is not None), default=None)

    def ill(self, models: Sequence[str]) -> str:
        """Why not all of them answer; empty: they do."""
        ill = next((model for model in models if not self.loads[model].healthy), "")
        return f"{ill} does not answer" if ill else ""


def _where(models: Sequence[str], beside: Mapping[str, frozenset[str]]) -> Set[str]:
    return frozenset().union(*[beside[model] for model in models])


def _left(model: str, engine: MeteredEngine, prices: Mapping[str, Tariff]) -> float | None:
    tokens, price = engine.allowance(model), prices[model].output
    # Told in whole tokens: there may be almost one more.
    return None if tokens == sys.maxsize or not price else ((tokens + 1) * price - 1) / PICO


def special(call: Call) -> bool:
    """Whether not every way may serve it as it was measured: it asks for tools, a form, several
    answers, or brings more than text."""
    return call.structured or call.offers or call.choices > 1 or _shows(call)


def unable(course: Course, call: Call, engine: MeteredEngine, prices: Mapping[str, Tariff]) -> str:
    """Why this way cannot serve such a call as it is; empty: it can."""
    call = call.to(course.model)
    if course.policy.serving(call, engine, prices) is not course.policy:
        return "one model would answer alone"
    if _shows(call) and not course.policy.relays(call, engine):
        return "it reads text alone"
    return ""


def _shows(call: Call) -> bool:
    """Whether a message has a part that is no text."""
    contents = (message.get("content") for message in call.messages)
    return any(
        isinstance(part, Mapping) and part.get("type") not in _TEXTS
        for content in contents
        if isinstance(content, Sequence) and not isinstance(content, str)
        for part in content
    )


def worst_usd(
    course: Course,
    call: Call,
    tokens: tuple[int, int],
    engine: MeteredEngine,
    prices: Mapping[str, Tariff],
) -> float:
    """USD that its answers may cost at worst; `tokens`: of each prompt, and what the context then
    has room for."""
    prompt, room = tokens[0], max(tokens[1], 1)
    most = room if call.max_tokens is None else min(room, call.max_tokens)
    runs, each = call.choices, 1
    if runs > 1 and course.policy.relays(call.to(course.model), engine):
        runs, each = 1 + len(call.beside), call.choices // (1 + len(call.beside))
    worst = course.policy.worst_case(course.model, prompt, most * each)
    return runs * most_cost(course.policy, worst, engine, prices) / PICO
