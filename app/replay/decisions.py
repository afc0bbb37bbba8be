"""Logged decisions of the planner: what was weighed, what was taken and how likely, what came."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import ConfigError
from app.prompt_files import read_objects

_AS_IT_SUMS = 1e-3  # propensities, to 1

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    """Of an explanation, what is read of it; the rest is nobody's business here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Way(_Part):
    """A way to answer that was weighed, and what was expected of it."""

    name: str
    chosen: bool
    propensity: Share
    fits: bool | None = None
    usd: Amount
    first_token_s: Amount
    latency_s: Amount
    quality: Amount  # relative to the best way's
    # How sure that was, since it is logged; None: the log does not hold it.
    high_usd: Amount | None = None
    high_first_token_s: Amount | None = None
    high_latency_s: Amount | None = None
    low_quality: Amount | None = None
    quality_doubt: Amount | None = None  # its standard error
    others_later_s: Amount | None = None
    worst_usd: Amount | None = None  # where `strict` asked for it
    able: bool | None = None


class _Request(_Part):
    stream: bool = False
    fallback: str = "cheapest"
    deadline_s: float | None = None
    first_token_s: float | None = None
    quality: Share | None = None


class _Estimate(_Part):
    budget_usd: Amount | None = None


class _Cost(_Part):
    usd: Amount


class _Times(_Part):
    first_token_s: Amount | None = None  # of the first call
    shown_s: Amount | None = None  # of what the client sees
    duration_s: Amount


class _Chosen(_Part):
    after: tuple[str, ...] = ()  # ways that were taken before and failed before their first words


class _Plan(_Part):
    options: Mapping[str, Any] = {}
    way: _Chosen = _Chosen()


class Decided(_Part):
    """One request that the planner decided about, and how its answer went."""

    id: str
    outcome: str
    request: _Request
    plan: _Plan
    estimate: _Estimate
    alternatives: tuple[Way, ...]
    cost: _Cost
    times: _Times

    @model_validator(mode="after")
    def _one_was_drawn(self) -> Self:
        chosen = sum(way.chosen for way in self.alternatives)
        if chosen != 1:
            raise ValueError(f"of the ways one must be chosen, not {chosen}")
        if len({way.name for way in self.alternatives}) < len(self.alternatives):
            raise ValueError("two ways have the same name")
        total = sum(way.propensity for way in self.alternatives)
        if abs(total - 1) > _AS_IT_SUMS:
            raise ValueError(f"the propensities of the ways sum to {total:.4g}, not to 1")
        if self._drawn is None:
            raise ValueError(f"{self.plan.way.after[0]} was tried, and is none of the ways")
        if not self._drawn.propensity:
            raise ValueError(f"{self._drawn.name} was chosen with propensity 0")
        return self

    @property
    def _drawn(self) -> Way | None:
        first = self.plan.way.after[:1]
        found = (way for way in self.alternatives if (way.name in first if first else way.chosen))
        return next(found, None)

    @property
    def taken(self) -> Way:
        """The way that was drawn: where it failed, what came is what came of having drawn it."""
        if self._drawn is None:
            raise ValueError("no way was chosen")
        return self._drawn

    @property
    def bounded(self) -> bool:
        """Whether it is known of every way how sure what was expected of it was."""
        return all(way.able is not None for way in self.alternatives)

    @property
    def first(self) -> float | None:
        """Seconds to the first token: that its client saw, where it was streamed."""
        shown = self.times.shown_s if self.request.stream else None
        return self.times.first_token_s if shown is None else shown

    @property
    def quality(self) -> float | None:
        """The least that was asked for, by the request or else by the planner's options."""
        if self.request.quality is not None:
            return self.request.quality
        said = self.plan.options.get("quality")
        return float(said) if isinstance(said, int | float) else None

    @property
    def met(self) -> bool:
        """Whether it was answered whole within its budget, its deadline, and its time to the first
        token."""
        if self.outcome not in ("kept", "steered"):
            return False
        asked, first = self.request, self.first
        late = asked.deadline_s is not None and self.times.duration_s > asked.deadline_s
        slow = asked.first_token_s is not None and (first is None or first > asked.first_token_s)
        return not late and not slow

    @property
    def answered(self) -> bool:
        """Whether how long it took is how long an answer takes."""
        return self.outcome in ("kept", "steered", "cut", "deadline")

    def would_meet(self, way: Way) -> bool:
        """Whether this way was expected to keep to all of that."""
        asked, budget = self.request, self.estimate.budget_usd
        return (
            (budget is None or way.usd <= budget)
            and (asked.deadline_s is None or way.latency_s <= asked.deadline_s)
            and (asked.first_token_s is None or way.first_token_s <= asked.first_token_s)
        )


@dataclass
class Log:
    """What a log holds that can be replayed, and how many lines cannot and why."""

    decided: list[Decided] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, document: Mapping[str, Any], where: str) -> None:
        """Raises ConfigError that names `where` for one of the planner's that is malformed."""
        plan = document.get("plan")
        if not isinstance(plan, Mapping) or not isinstance(document.get("id"), str):
            raise ConfigError(f"{where}: is no explanation as GET /v1/decisions/ID gives it")
        if plan.get("policy") != "planner":
            self.skipped["of other policies"] += 1
            return
        listed = document.get("alternatives")
        ways = [one for one in listed if _weighed(one)] if isinstance(listed, list) else listed
        left = document.get("left_out")
        if isinstance(left, Mapping) and "alternatives" in left:
            self.skipped["whose ways were left out of a document that was too long"] += 1
        elif ways == []:
            self.skipped["refused before a way was chosen"] += 1
        elif document.get("outcome") == "closed":
            self.skipped["left by their clients"] += 1
        else:
            self.decided.append(_read({**document, "alternatives": ways}, where))

    @property
    def explored(self) -> bool:
        """Whether another way might have been taken, for any request."""
        return any(one.taken.propensity < 1 - _AS_IT_SUMS for one in self.decided)


def of_file(path: Path) -> Log:
    """The log in this file, a JSON object a line. Raises ConfigError that names the line."""
    log = Log()
    try:
        lines = read_objects(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    for number, document in lines:
        log.add(document, f"{path}:{number}")
    return log


def of_documents(documents: Iterable[Mapping[str, Any]]) -> Log:
    """The same of explanations as they are kept."""
    log = Log()
    for document in documents:
        # As its own file would give it back: numbers that JSON has no word for are texts.
        log.add(json.loads(json.dumps(document)), f"answer {document.get('id')}")
    return log


def grades_of(path: Path) -> dict[str, float]:
    """How good answers were, 0 to 1, by the answer's id: lines of {"id": ..., "worth": ...}.

    Raises ConfigError that names the line.
    """
    try:
        lines = read_objects(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    found: dict[str, float] = {}
    for number, line in lines:
        id, worth = line.get("id"), line.get("worth")
        graded = isinstance(worth, int | float) and 0 <= worth <= 1
        if not isinstance(id, str) or worth is None or not graded:
            raise ConfigError(f'{path}:{number}: must be {{"id": TEXT, "worth": 0 to 1}}')
        if id in found:
            raise ConfigError(f"{path}:{number}: {id} has been graded before")
        found[id] = float(worth)
    return found


def names_of(decided: Sequence[Decided]) -> list[str]:
    """Of all ways that were weighed, in the order in which they come first."""
    return list(dict.fromkeys(way.name for one in decided for way in one.alternatives))


def _weighed(way: object) -> bool:
    """Whether it is one that the planner chose from, not one that the chosen policy weighed."""
    return isinstance(way, Mapping) and way.get("propensity") is not None


def _read(document: Mapping[str, Any], where: str) -> Decided:
    try:
        return Decided.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {place}: {said}" if place else f"{where}: {said}") from error
