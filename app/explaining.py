"""Why an answer came out as it did, as JSON: what was asked, weighed, decided, called and paid.

There is nothing in it of what was said: no prompt, no answer, no token, no words of a client's
own but names that we know, and its id for the request. Numbers are USD, seconds since the request
arrived, bits of entropy, and tokens.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from app import amounts
from app.bill import Bill, Line
from app.errors import BudgetExceeded, FarthingError, Overloaded
from app.notes import Notes
from app.orders import Order
from app.shown import Shown
from app.trail import Attempt, CallRecord
from app.types import Alternative, Bounds, Call, Capabilities, Decision, Fidelity, Usage
from policies.base import Planned, Policy, Whole

T = TypeVar("T")
_MOST = 256  # of each list
_LONGEST = 64 * 2**10  # bytes: of longer ones the lists are cut
_FEW = 16  # of what is in one option
_WORDS = 200  # characters of an error
_HIDDEN = "..."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # in ASCII throughout


class Answered(Protocol):
    """What is explained of an answer, once it has ended."""

    order: Order
    fidelity: Fidelity
    budget: int | None
    estimate: int
    decisions: list[Decision]
    calls: list[CallRecord]
    notes: Notes
    shown: Shown


def explained(answer: Answered, bill: Bill, outcome: str) -> str:
    """The explanation of this answer, now that it has ended, as JSON of bounded size."""
    notes, arrived, now = answer.notes, answer.order.arrived, time.monotonic()
    at = datetime.fromtimestamp(time.time() - (now - arrived), UTC)
    known = {
        "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "outcome": outcome,
        **_error(notes.error),
        "request": _request(answer.order),
        "plan": _plan(answer),
        "estimate": _estimate(answer),
        "cost": _cost(bill),
        "times": _times(answer, bill, now),
    }
    ways = list(_weighed(answer))
    decided = list(zip(answer.decisions, notes.decided, strict=False))
    most = _MOST
    while True:
        cut = _Cut(most, {"calls": notes.further})
        document = known | {
            "alternatives": [_way(way) for way in cut("alternatives", ways)],
            "decisions": [_decision(*one, arrived) for one in cut("decisions", decided)],
            "calls": [_call(call, arrived, cut) for call in cut("calls", answer.calls)],
        }
        if left := amounts.nonzero(cut.left):
            document["left_out"] = left
        text = _encode(document)
        if len(text) <= _LONGEST or most == 1:
            return text
        most //= 4


@dataclass
class _Cut:
    """The first so many of each list, and how many others there were."""

    most: int
    left: dict[str, int]

    def __call__(self, name: str, whole: Sequence[T]) -> Sequence[T]:
        if len(whole) <= self.most:
            return whole
        self.left[name] = self.left.get(name, 0) + len(whole) - self.most
        return whole[: self.most]


def _request(order: Order) -> dict[str, Any]:
    call = order.call
    kind = "chat" if call.prompt is None else "completion"
    return {
        "model": call.model,
        "kind": "embedding" if call.embeds else kind,
        "stream": order.stream,
        "prompts": 1 + len(call.beside),
        "choices": call.choices,
        "structured": call.structured,
        "max_tokens": call.max_tokens,
        "best_of": order.best_of,
        "fallback": "strict" if order.strict else "cheapest",
        "deadline_s": amounts.since(call.goals.deadline, order.arrived),
        "first_token_s": amounts.since(call.goals.first_token, order.arrived),
        "quality": call.goals.quality,
    }


def _plan(answer: Answered) -> dict[str, Any]:
    plan = answer.notes.plan
    return {
        "policy": plan.policy_name,
        "preset": plan.preset or None,
        "target": plan.target,
        "models": list(plan.policy.best_first(plan.model)),
        "fidelity": answer.fidelity,
        "whole": isinstance(answer.notes.serving, Whole),
        "options": _options(plan.policy),
        **_promised(answer.notes.planned),
    }


def _promised(planned: Planned) -> dict[str, Any]:
    """Of several ways the one that was chosen, and what was expected of it."""
    promise = planned.promise
    if promise is None:
        return {}
    way = {
        "name": promise.way,
        "preset": promise.preset,
        "why": promise.kind,
        "after": list(promise.after),
        "models": list(planned.policy.best_first(planned.model)),
        "options": _options(planned.policy),
        "expected_usd": amounts.foretold_usd(promise.cost),
        "expected_first_token_s": amounts.seconds(promise.first_token),
        "expected_latency_s": amounts.seconds(promise.latency),
        "high_usd": amounts.foretold_usd(promise.cost_high),
        "high_first_token_s": amounts.seconds(promise.first_token_high),
        "high_latency_s": amounts.seconds(promise.latency_high),
    }
    return {"way": way}


def _options(policy: Policy) -> dict[str, Any]:
    """As they were fitted to the fleet; free text, which may be anything, is not told."""
    fields = type(policy).model_fields
    return {name: _option(getattr(policy, name)) for name, one in fields.items() if one.repr}


def _option(value: Any) -> Any:
    if isinstance(value, str):
        return value if not value or _NAME.fullmatch(value) else _HIDDEN
    if isinstance(value, float):
        return amounts.number(value)
    if isinstance(value, tuple):
        return [*map(_option, value[:_FEW]), *([_HIDDEN] if len(value) > _FEW else [])]
    return value if value is None or isinstance(value, int) else _HIDDEN


def _estimate(answer: Answered) -> dict[str, Any]:
    notes = answer.notes
    told = {
        "budget_usd": amounts.usd(answer.budget),
        "budget_gpu_seconds": amounts.usd(notes.limit_gpu),
    }
    if not notes.found:
        return told
    return told | {
        "prompt_tokens": sum(part.prompt for part in notes.found[:: notes.drawn]),
        "completion_tokens": sum(part.completion for part in notes.found),
        "worst_usd": amounts.usd(notes.worst),
        "worst_gpu_seconds": amounts.usd(notes.worst_gpu),
        "held_usd": amounts.usd(answer.estimate),
    }


def _weighed(answer: Answered) -> Iterator[Alternative]:
    """The plan, each of its models alone, and what the policy says that it weighed."""
    notes = answer.notes
    plan = notes.plan
    direct = plan.policy_name == "direct"
    if not notes.found:
        return
    yield Alternative(
        kind="model" if direct else "plan",
        name=plan.target if direct else plan.name,
        chosen=True,
        reason="it was named" if direct else "it was asked for",
        cost=notes.worst,
        fits=_fits((notes.worst, answer.budget), (notes.worst_gpu, notes.limit_gpu)),
    )
    yield from notes.planned.considered()
    said = next(iter(notes.considered.values()), ())
    told = {way.name: way for way in said if way.kind == "model"}
    if not direct and not plan.policy.chooses:
        for model in plan.policy.best_first(plan.model):
            yield from _alone(answer, model, told.pop(model, None))
    yield from told.values()
    yield from (way for way in said if way.kind != "model")


def _alone(answer: Answered, model: str, told: Alternative | None) -> Iterator[Alternative]:
    """This model for all of the answer: what that may have cost, and what became of it."""
    notes = answer.notes
    try:
        able = notes.meter.engine.capabilities(model)
    except FarthingError:  # the fleet is another one by now
        return
    used = _alone_usage(answer.order.call, notes, able)
    cost, below = notes.meter.prices[model].of(used), notes.meter.beneath
    taken = None if below is None else below.prices[model].of(used)
    fits = _fits((cost, answer.budget), (taken, notes.limit_gpu))
    if told is not None:
        yield replace(told, cost=cost, fits=fits if told.fits is None else told.fits)
        return
    reason = f"{notes.plan.name} was asked for"
    reason = f"{reason}; its worst case is above the budget" if fits is False else reason
    yield Alternative("model", model, chosen=False, reason=reason, cost=cost, fits=fits)


def _alone_usage(call: Call, notes: Notes, able: Capabilities) -> Usage:
    """The most that a model may read and write, its prompts as the first model counts them."""
    found = notes.found
    # In its own words an engine makes all choices of a prompt at once.
    each = found[:: notes.drawn] if able.native else found
    if len(found) == 1 and notes.drawn > 1:
        written = found[0].completion
    else:
        rooms = [max(able.context - part.prompt, 1) for part in found]
        limit = call.max_tokens
        written = sum(room if limit is None else min(limit, room) for room in rooms)
    return Usage(prompt=sum(part.prompt for part in each), completion=written)


def _way(way: Alternative) -> dict[str, Any]:
    known = {
        "usd": amounts.usd(way.cost),
        "fits": way.fits,
        "tokens": way.tokens,
        "first_token_s": amounts.seconds(way.first_token),
        "latency_s": amounts.seconds(way.latency),
        "quality": amounts.number(way.quality),
        "propensity": amounts.number(way.propensity),
        "chance": amounts.number(way.chance),
        "others_later_s": amounts.seconds(way.delay),
        **_bounds(way.bounds),
    }
    told = {"kind": way.kind, "name": way.name, "chosen": way.chosen, "reason": way.reason}
    return told | {name: value for name, value in known.items() if value is not None}


def _bounds(bounds: Bounds | None) -> dict[str, Any]:
    if bounds is None:
        return {}
    return {
        "high_usd": amounts.foretold_usd(bounds.cost),
        "high_first_token_s": amounts.seconds(bounds.first_token),
        "high_latency_s": amounts.seconds(bounds.latency),
        "low_quality": amounts.number(bounds.quality),
        "quality_doubt": amounts.number(bounds.doubt),
        "worst_usd": amounts.foretold_usd(bounds.worst),
        "able": bounds.able,
    }


def _decision(decision: Decision, at: float, arrived: float) -> dict[str, Any]:
    said = {
        "confidence": amounts.number(decision.confidence),
        "answers": decision.answers,
        "dropped_tokens": decision.dropped,
        "detail": decision.detail[:_WORDS] or None,
    }
    return {
        "at_s": amounts.since(at, arrived),
        "kind": decision.kind,
        "model": decision.model,
        "token": decision.token,
        "choice": decision.choice,
        "entropy": amounts.number(decision.entropy),
        "threshold": amounts.number(decision.threshold),
        "rest_usd": decision.rest_usd,
        "saves_s": amounts.seconds(decision.saves),
        **{name: value for name, value in said.items() if value is not None},
    }


def _call(call: CallRecord, arrived: float, cut: _Cut) -> dict[str, Any]:
    return {
        "model": call.model,
        "began_s": amounts.since(call.began, arrived),
        "queued_s": amounts.seconds(call.queued),
        "ttft_s": amounts.since(call.first, call.began),
        "duration_s": amounts.since(call.ended, call.began),
        **_tokens(call.usage),
        "usd": amounts.usd(call.cost),
        "outcome": call.outcome,
        "why": call.why,
        "attempts": [_attempt(one, arrived) for one in cut("attempts", call.attempts)],
    }


def _attempt(attempt: Attempt, arrived: float) -> dict[str, Any]:
    told = {
        "server": attempt.server,
        "outcome": attempt.outcome,
        "ended_s": amounts.since(attempt.ended, arrived),
    }
    # What a server refuses it may say in its client's words.
    error = attempt.error[:_WORDS] if attempt.outcome == "failed" else ""
    return {**told, "error": error} if error else told


def _cost(bill: Bill) -> dict[str, Any]:
    return {
        "usd": amounts.usd(bill.cost),
        "gpu_seconds": amounts.gpu_seconds(bill.gpu_us),
        "price_version": bill.prices,
        "prompt_tokens": bill.prompt,
        "cached_tokens": bill.cached,
        "completion_tokens": bill.completion,
        "models": {line.model: _line(line) for line in bill.lines},
    }


def _line(line: Line) -> dict[str, Any]:
    told = {"usd": amounts.usd(line.cost), "gpu_seconds": amounts.gpu_seconds(line.gpu_us)}
    return {**told, **_tokens(line.usage), "visible_tokens": line.visible}


def _times(answer: Answered, bill: Bill, now: float) -> dict[str, Any]:
    arrived = answer.order.arrived
    firsts = [call.first for call in answer.calls if call.first is not None]
    return {
        "first_token_s": amounts.since(min(firsts, default=None), arrived),
        "shown_s": amounts.since(answer.shown.first, arrived),
        "duration_s": amounts.since(now, arrived),
        "overhead_s": amounts.seconds(bill.overhead),
    }


def _error(error: Exception | None) -> dict[str, Any]:
    """Which it was; its words may be its client's."""
    if not isinstance(error, FarthingError):
        return {} if error is None else {"error": {"type": "FarthingError", "code": None}}
    told = {"type": type(error).__name__, "code": error.code}
    limit = isinstance(error, BudgetExceeded | Overloaded)
    return {"error": {**told, "param": error.param} if limit else told}


def _tokens(usage: Usage) -> dict[str, int]:
    """What was read and written; of the rest what there was."""
    told = {
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.cached,
        "completion_tokens": usage.completion,
    }
    if usage.drafted or usage.predicted or usage.passes:
        more = {"drafted_tokens": usage.drafted, "accepted_tokens": usage.accepted}
        told |= amounts.nonzero(
            {**more, "passes": usage.passes, "predicted_tokens": usage.predicted}
        )
    return told


def _fits(*needed: tuple[int | None, int | None]) -> bool | None:
    """Whether each amount is within its bound; None: nothing is bounded."""
    bounded = [(amount or 0) <= bound for amount, bound in needed if bound is not None]
    return all(bounded) if bounded else None
