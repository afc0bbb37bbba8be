"""Means over the kinds of prompts, each kind with the same weight, and their intervals."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from app.bench.calibrate.observed import Observed
from app.estimates import Estimate, mean, share

ALL = "all"  # in place of a kind: the mean over them
_FEW = 10  # questions, of which a bootstrap would be too sure


def bounded(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of values from 0 to 1, each of one question.

    Wilson's interval where they are right or wrong, few, or all the same: values in between vary
    less than right and wrong ones of the same mean, so that it is wide enough. Else a bootstrap.
    Raises ValueError for nothing.
    """
    binary = all(value in (0.0, 1.0) for value in values)
    if binary or len(values) < _FEW or len(set(values)) == 1:
        return share(math.fsum(values), len(values))
    return mean(values, seed=seed)


def over(estimates: Iterable[Estimate]) -> Estimate:
    """Their mean. The interval is of their own (MOVER: Zou and Donner, 2008), which are of other
    questions, and so independent. Raises ValueError for none."""
    found = list(estimates)
    if not found:
        raise ValueError("there is nothing to take a mean of")
    middle = statistics.fmean(each.mean for each in found)
    below = math.hypot(*(each.mean - each.low for each in found)) / len(found)
    above = math.hypot(*(each.high - each.mean for each in found)) / len(found)
    return Estimate(middle, middle - below, middle + above)


def by_question(found: Iterable[Observed], what: str) -> dict[str, dict[str, float]]:
    """By kind and question the mean of a field over its answers. Failures are worth 0, and have no
    other number; numbers that were not told are left out, and so are questions without any."""
    values = defaultdict[str, dict[str, list[float]]](lambda: defaultdict(list))
    for each in found:
        value = getattr(each, what)
        if what == "worth":
            value = 0.0 if each.failed else value
        elif each.failed:
            continue
        if value is not None:
            values[each.kind][each.question].append(value)
    return {
        kind: {question: statistics.fmean(those) for question, those in questions.items()}
        for kind, questions in values.items()
    }


def qualities(found: Iterable[Observed], *, seed: int = 0) -> dict[str, Estimate]:
    """Of one way's answers by kind, and of `ALL`."""
    kinds = {
        kind: bounded([questions[name] for name in sorted(questions)], seed=seed)
        for kind, questions in sorted(by_question(found, "worth").items())
    }
    return {**kinds, ALL: over(kinds.values())} if kinds else {}


def amount(found: Iterable[Observed], what: str, *, seed: int = 0) -> Estimate | None:
    """The mean of a field over the kinds; None where no answer tells it."""
    kinds: Mapping[str, Mapping[str, float]] = by_question(found, what)
    if not kinds:
        return None
    return over(mean([*of.values()], seed=seed) for _, of in sorted(kinds.items()))
