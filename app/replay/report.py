"""What was evaluated on a log, told for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.estimates import Estimate
from app.replay.decisions import Log
from app.replay.evaluating import LEVEL, Evaluated, Found
from app.replay.targets import LOGGED

Rows = list[list[str]]
_ESTIMATORS = ("direct method", "inverse propensity", "self-normalised", "doubly robust")
MEANS = ("policy", "reward", "requests", *_ESTIMATORS)
RISKS = ("policy", "measure", "direct method", "self-normalised", "doubly robust")
SUPPORT = ("policy", "requests", "without support", "of its choices", "effective sample size")


def notes(log: Log, evaluated: Sequence[Evaluated]) -> Iterator[str]:
    """What must be known of the figures, a line each."""
    skipped = ", ".join(f"{count} {why}" for why, count in sorted(log.skipped.items()))
    yield f"{len(log.decided)} decisions of the planner" + (
        f"; not replayed: {skipped}" if skipped else ""
    )
    if not log.explored:
        yield (
            "Nothing was explored: each way was taken with propensity 1. Such a log supports only"
            " the policy that made it; of what another one would have done otherwise there is only"
            " what was expected (direct method). Log with explore above 0."
        )
    for one in evaluated:
        if one.unsupported:
            yield (
                f"{one.name}: {one.unsupported} of {one.requests} requests are without support: it"
                " may take there what could not have been taken. Inverse propensity and"
                " self-normalised leave them out, doubly robust has the model's word for them."
            )
    if any(one.by_expectation for one in evaluated):
        yield (
            "The planner chose anew by what was expected of each way: not every line of the log"
            " holds how sure that was, nor why a way was kept out that was expected to fit; it"
            " stays out."
        )
    for found in next((one.found for one in evaluated), ()):
        if not found.graded:
            yield (
                "Quality was not graded (--grades): it is what the profile expects, of the best"
                " way's."
            )
        elif found.unknown:
            yield f"{found.reward}: not known of {found.unknown} requests, which are left out there"


def support(evaluated: Sequence[Evaluated]) -> Rows:
    return [
        [
            one.name,
            f"{one.requests}",
            f"{one.unsupported / one.requests:.1%}",
            f"{one.outside.mean:.1%}",
            f"{one.effective:.1f}",
        ]
        for one in evaluated
        if one.name != LOGGED
    ]


def means(evaluated: Sequence[Evaluated]) -> Rows:
    return [
        [one.name, f"{found.reward}, {found.unit}", f"{found.requests}", *_cells(found)]
        for one in evaluated
        for found in one.found
    ]


def risks(evaluated: Sequence[Evaluated]) -> Rows:
    """The chance of missing SLO or budget, and the mean of the worst 5 %."""
    rows = []
    for one in evaluated:
        missed = [_cell(each) for each in one.missed.values()]
        rows.append([one.name, "misses SLO or budget", *missed])
        for found in one.found:
            if found.tail is not None:
                measure = f"{found.reward}, {found.unit}: mean of the worst {1 - LEVEL:.0%}"
                rows.append([one.name, measure, "-", _cell(found.tail), "-"])
    return rows


def as_json(log: Log, evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    return {
        "decisions": len(log.decided),
        "skipped": dict(log.skipped),
        "explored": log.explored,
        "notes": list(notes(log, evaluated)),
        "policies": [_policy(one) for one in evaluated],
    }


def _policy(one: Evaluated) -> dict[str, Any]:
    return {
        "policy": one.name,
        "requests": one.requests,
        "unsupported_requests": one.unsupported,
        "unsupported_share": _interval(one.outside),
        "effective_sample_size": one.effective,
        "missed": {name: _interval(each) for name, each in one.missed.items()},
        "rewards": {found.reward: _reward(found) for found in one.found},
    }


def _reward(found: Found) -> dict[str, Any]:
    return {
        "unit": found.unit,
        "requests": found.requests,
        "unknown": found.unknown,
        "graded": found.graded,
        "direct": _interval(found.mean.direct),
        "ips": _interval(found.mean.ips),
        "snips": _interval(found.mean.snips),
        "dr": _interval(found.mean.robust),
        "worst_5_percent": _interval(found.tail),
    }


def _interval(of: Estimate | None) -> Mapping[str, float] | None:
    return None if of is None else {"mean": of.mean, "low": of.low, "high": of.high}


def _cells(found: Found) -> list[str]:
    mean = found.mean
    return [_cell(each) for each in (mean.direct, mean.ips, mean.snips, mean.robust)]


def _cell(of: Estimate | None) -> str:
    if of is None:
        return "-"
    return f"{of.mean:.3g} ({of.low:.3g} to {of.high:.3g})"
