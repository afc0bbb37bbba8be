"""What the planner would choose at several budgets, by a profile, for typical prompts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.bench.calibrate.observed import Observed
from app.profile import Profile, Way
from policies.plans.choosing import Option, Wish, choose

_BUDGETS = 5


def chosen(
    found: Sequence[Observed], profile: Profile, kinds: Sequence[str]
) -> list[dict[str, Any]]:
    """By budget of a request, the way for each of these kinds. Empty where nothing has a cost."""
    prompts = {
        kind: statistics.fmean(of)
        for kind in kinds
        if (of := [each.prompt for each in found if each.kind == kind and not each.failed])
    }
    highs = [
        high
        for way in profile.ways
        for kind, prompt in prompts.items()
        if (high := _high(way, kind, prompt)) > 0
    ]
    if not highs:
        return []
    budgets = np.geomspace(min(highs), max(highs), _BUDGETS)
    return [
        {
            "usd": _plain(usd),
            "thousand": _plain(1000 * usd),
            "ways": [
                _choice(profile, kind, prompts[kind], usd * 1.001) if kind in prompts else ""
                for kind in kinds
            ],
        }
        for usd in budgets
    ]


def _plain(usd: float) -> str:
    return np.format_float_positional(usd, precision=2, fractional=False, trim="-")


def _high(way: Way, kind: str, prompt: float) -> float:
    length = way.length.get(kind)
    return 0.0 if length is None else way.cost.at(prompt, length.high) * way.cost.high


def _choice(profile: Profile, kind: str, prompt: float, usd: float) -> str:
    """By the planner's own rule; a star where nothing surely fits."""
    best = next(way for way in profile.ways if way.name == profile.best)
    options = [_option(way, best, kind, prompt) for way in profile.ways if kind in way.quality]
    choice = choose(options, Wish(usd=usd))[0]
    return choice.option.name + (" *" if choice.missed else "")


def _option(way: Way, best: Way, kind: str, prompt: float) -> Option:
    """As the planner expects it of a request of this kind, when nothing else runs: how much less
    its quality is than the best way's, surely and on average."""
    mine, theirs, length = way.quality[kind], best.quality.get(kind), way.length[kind].mean
    mean = mine.mean - (0.0 if theirs is None else theirs.mean)
    low = mine.low - (0.0 if theirs is None else theirs.low)
    return Option(
        way.name,
        quality=mean,
        cost=way.cost.at(prompt, length),
        latency=way.latency.at(prompt, length),
        quality_low=min(mean, low),
        cost_high=_high(way, kind, prompt),
    )
