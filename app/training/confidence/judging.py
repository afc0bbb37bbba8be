"""How well a calibration keeps what it promises, on answers that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.estimates import share
from app.training.calibration import Array, Outcomes, area, brier, calibration_error, measured

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_BINS = 10
_DRAWS = 1000  # of what would be right if what is said were true


def _ece(said: Array, right: Array, weight: Array) -> float:
    return calibration_error(said, right, weight, _BINS)


_MEASURES = {"ece": _ece, "brier": brier, "auroc": area}


def judged(raw: Array, said: Array, right: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """Chances `[answers]` before and after calibration, beside what was right.

    ECE is over 10 bins of equal mass; intervals are 95 % of a bootstrap over answers, which for
    ECE lies too high: to draw answers anew adds noise, and noise adds error. `ece_by_chance` is
    what it would come to if each chance that is said were true: its mean, and where 95 % lie.
    """
    outcomes = Outcomes(right.astype(float), np.ones(len(right)), np.arange(len(right)))
    return {
        "answers": len(right),
        "right": asdict(share(int(right.sum()), len(right))),
        **{
            when: {
                name: asdict(measured(measure, chances, outcomes, seed))
                for name, measure in _MEASURES.items()
            }
            for when, chances in (("before", raw), ("after", said))
        },
        "ece_by_chance": _by_chance(said, seed),
        "promises": promises(said, right),
    }


def _by_chance(said: Array, seed: int) -> dict[str, float]:
    random, ones = np.random.default_rng(seed), np.ones(len(said))
    drawn = [
        _ece(said, (random.random(len(said)) < said).astype(np.float64), ones)
        for _ in range(_DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(np.mean(drawn)), "low": float(low), "high": float(high)}


def promises(said: Array, right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """What is kept above each threshold: the share of all, what it was promised, what is right.

    `said` is `[answers]`, or `[answers, times]` where it is asked at several times of an answer
    (nan: it ended before) and the first chance that suffices counts. A promise is kept where the
    mean chance of the kept answers, as it was then, lies within the interval (Wilson's, 95 %) of
    the share of them that is right.
    """
    asked, found = said.reshape(len(right), -1), []
    for threshold in THRESHOLDS:
        enough = asked >= threshold
        kept = enough.any(1)
        said = asked[np.arange(len(right)), enough.argmax(1)]
        told: dict[str, Any] = {"threshold": threshold, "kept": int(kept.sum())}
        if kept.any():
            are = share(int(right[kept].sum()), int(kept.sum()))
            promised = float(said[kept].mean())
            within = are.low <= promised <= are.high
            told |= {"promised": promised, "right": asdict(are), "within": within}
        found.append(told)
    return found


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """What a person is told of it."""
    if "after" not in found:
        return [f"{name}:", *kept_lines(found["promises"], found["answers"])]
    told = [f"{name}: {found['answers']} answers held out, {_interval(found['right'])} right"]
    for when in ("before", "after"):
        figures = (f"{what} {_interval(one)}" for what, one in found[when].items())
        told.append(f"  {when} calibration: {', '.join(figures)}")
    told.append(f"  ece if all that is said were true: {_interval(found['ece_by_chance'])}")
    return [*told, *kept_lines(found["promises"], found["answers"])]


def kept_lines(promised: Sequence[dict[str, Any]], answers: int) -> list[str]:
    """A line for each threshold."""
    told = []
    for one in promised:
        line = f"  at {one['threshold']:.1f}: {one['kept'] / answers:.0%} kept"
        if one["kept"]:
            within = "within" if one["within"] else "NOT within"
            line += f", promised {one['promised']:.3f}, right {_interval(one['right'])}: {within}"
        told.append(line)
    return told


def _interval(of: dict[str, float]) -> str:
    return f"{of['mean']:.3f} ({of['low']:.3f} to {of['high']:.3f})"
