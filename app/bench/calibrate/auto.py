"""What the planner would choose at several budgets, by a profile, for typical prompts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.bench.calibrate.observed import Observed
from app.profile import Profile, Way

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
            "usd": np.format_float_positional(usd, precision=2, fractional=False, trim="-"),
            "ways": [
                _choice(profile.ways, kind, prompts[kind], usd * 1.001) if kind in prompts else ""
                for kind in kinds
            ],
        }
        for usd in budgets
    ]


def _high(way: Way, kind: str, prompt: float) -> float:
    length = way.length.get(kind)
    return 0.0 if length is None else way.cost.at(prompt, length.high) * way.cost.high


def _choice(ways: Sequence[Way], kind: str, prompt: float, usd: float) -> str:
    """The best surely, of those that surely fit; a star on the cheapest one where none does."""
    known = [way for way in ways if kind in way.quality]
    fitting = [way for way in known if _high(way, kind, prompt) <= usd]
    if not fitting:
        return min(known, key=lambda way: _high(way, kind, prompt)).name + " *"
    return max(
        fitting,
        key=lambda way: (way.quality[kind].low, -way.cost.at(prompt, way.length[kind].mean)),
    ).name
