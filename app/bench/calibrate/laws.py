"""How an amount grows with tokens and with load: non-negative least squares, judged on questions
that it was not fitted to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize_scalar, nnls

from app.profile import Law

Array: TypeAlias = NDArray[np.float64]
FOLDS = 5
_LOADS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.7, 3.0)  # among which the common one lies
_STARTS = _LOADS[::3]  # where the search for a way's own begins
_PRIOR = 4.0  # answers that the load of all ways counts as, in one way's fit
_SMALLEST = 0.05  # of the mean: amounts below it are weighed as if they were it
FIRM = 10  # held-out answers with which a way's own spread is known


@dataclass(frozen=True)
class Sample:
    """One answer's amount, and what it may depend on."""

    question: str
    prompt: float  # tokens
    completion: float  # tokens
    calls: float  # that ran beside it, or when it began
    amount: float  # USD or seconds

    @property
    def kind(self) -> str:
        return self.question.rpartition("/")[0]


@dataclass(frozen=True)
class Drawn:
    """A law, and what laws fitted without a question say of its answers, in the samples' order."""

    law: Law
    said: tuple[float, ...] = ()  # empty: there is but one answer
    ahead: tuple[float, ...] = ()  # the same before the answer is there: its length by its kind

    def ratios(self, samples: Sequence[Sample]) -> list[float]:
        """Of what came to what was said, where that is more than nothing."""
        pairs = zip(samples, self.said, strict=False)
        return [sample.amount / said for sample, said in pairs if said > 0]


def drawn(samples: Sequence[Sample], load: float | None, robust: bool) -> Drawn:
    """The law of these samples, at least one. `load`: what all ways together say of it, None where
    the amount does not depend on it. `robust`: few amounts far from the others have little say."""
    law = solved(samples, load, robust)
    folds = _folds(samples)
    if len(set(folds)) < 2:
        return Drawn(law)
    said, ahead = [0.0] * len(samples), [0.0] * len(samples)
    for fold in sorted(set(folds)):
        others = [each for each, of in zip(samples, folds, strict=True) if of != fold]
        theirs, lengths = solved(others, load, robust), _lengths(others)
        for at in (at for at, of in enumerate(folds) if of == fold):
            each = samples[at]
            length = lengths.get(each.kind, lengths[""])
            said[at] = theirs.at(each.prompt, each.completion, each.calls)
            ahead[at] = theirs.at(each.prompt, length, each.calls)
    gaps = [abs(each.amount - one) for each, one in zip(samples, said, strict=True)]
    told = law.model_copy(update={"error": math.fsum(gaps) / len(gaps)})
    return Drawn(told, tuple(said), tuple(ahead))


def _lengths(samples: Sequence[Sample]) -> dict[str, float]:
    """Tokens of an answer by kind, and under "" of all."""
    by_kind = defaultdict[str, list[float]](list)
    for each in samples:
        by_kind[each.kind].append(each.completion)
        by_kind[""].append(each.completion)
    return {kind: math.fsum(those) / len(those) for kind, those in by_kind.items()}


def with_high(found: Drawn, samples: Sequence[Sample], pooled: Sequence[float]) -> Law:
    """Its law with `high`, by its own held-out ratios; where they are few, by all ways' too."""
    own = found.ratios(samples)
    high = upper(own)
    if len(own) < FIRM and pooled:
        high = max(high, upper(pooled))
    return found.law.model_copy(update={"high": high})


def upper(ratios: Sequence[float]) -> float:
    """What nine of ten more are below: the conformal quantile (Vovk et al., 2005), of fewer than
    nine the greatest; 1 for none."""
    if not ratios:
        return 1.0
    rank = min(math.ceil(0.9 * (len(ratios) + 1)), len(ratios))
    return sorted(ratios)[rank - 1]


def common_load(ways: Sequence[Sequence[Sample]]) -> float:
    """The share by which each other call makes an amount more, whatever the way: that with which
    laws of tokens, each way with its own, leave the least relative gaps. 0 where no way was asked
    with more calls beside it and with fewer.
    """
    several = [_scaled(each) for each in ways if len({one.calls for one in each}) > 1]
    known = [each for each in several if each is not None]

    def gap(load: float) -> float:
        return math.fsum(
            _gap(x, y, calls, (_linear(x, y, calls, load), load)) for x, y, calls, _ in known
        )

    if not known:
        return 0.0
    at = min(range(len(_LOADS)), key=lambda one: gap(_LOADS[one]))
    between = _LOADS[max(at - 1, 0)], _LOADS[min(at + 1, len(_LOADS) - 1)]
    found = float(minimize_scalar(gap, bounds=between, options={"xatol": 0.002}).x)
    return min(_LOADS[at], found, key=gap)


def solved(samples: Sequence[Sample], load: float | None, robust: bool) -> Law:
    """The law alone, without `high` and `error`."""
    scaled = _scaled(samples)
    if scaled is None:
        return Law(base=0, prompt=0, completion=0)
    x, y, calls, unit = scaled
    if load is None:
        return _law(_linear(x, y), 0.0, unit)
    starts = _STARTS if len(set(calls)) > 1 else (load,)
    tried = [(_linear(x, y, calls, one), one) for one in (load, *starts)]
    found = min(tried, key=lambda one: _gap(x, y, calls, one))
    if not robust:
        return _law(*found, unit)
    weights, slope = _robust(x, y, calls, found, load)
    said = x @ weights * (1 + slope * calls)
    return _law(weights * _level(y, said), slope, unit)


def _scaled(samples: Sequence[Sample]) -> tuple[Array, Array, Array, Array] | None:
    """Columns (1, prompt, completion) with means of 1, amounts likewise, calls, and what a weight
    of 1 in each column stands for. None where all amounts are 0."""
    amounts = np.array([each.amount for each in samples])
    mean = float(amounts.mean())
    if mean <= 0:
        return None
    tokens = np.array([(1.0, each.prompt, each.completion) for each in samples])
    scale = np.where(tokens.mean(0) > 0, tokens.mean(0), 1.0)
    calls = np.array([each.calls for each in samples])
    return tokens / scale, amounts / mean, calls, mean / scale


def _law(weights: Array, load: float, unit: Array) -> Law:
    base, prompt, completion = (float(one) for one in weights * unit)
    return Law(base=base, prompt=prompt, completion=completion, load=load)


def _linear(x: Array, y: Array, calls: Array | None = None, load: float = 0.0) -> Array:
    """By gaps relative to what is expected, so that long answers do not say it all."""
    rows = x if calls is None else x * (1 + load * calls)[:, None]
    weights, _ = nnls(rows, y)
    sizes = np.maximum(rows @ weights, _SMALLEST)
    return np.asarray(nnls(rows / sizes[:, None], y / sizes)[0])


def _gap(x: Array, y: Array, calls: Array, found: tuple[Array, float]) -> float:
    """Relative to what is said, and of amounts rather than their squares."""
    said = np.maximum(x @ found[0] * (1 + found[1] * calls), _SMALLEST)
    return float(np.abs(y / said - 1).sum())


def _robust(
    x: Array, y: Array, calls: Array, start: tuple[Array, float], load: float
) -> tuple[Array, float]:
    """Weights and load by a soft L1 of the relative gaps; the load is drawn to `load`."""
    sizes = np.maximum(x @ start[0] * (1 + start[1] * calls), _SMALLEST)
    first = y / sizes - 1
    spread = max(1.4826 * float(np.median(np.abs(first - np.median(first)))), 0.01)
    beside = float(calls.mean())
    pull = math.sqrt(_PRIOR) * beside / (1 + load * beside)

    def gaps(at: Array) -> Array:
        said = x @ at[:3] * (1 + at[3] * calls)
        return np.append((said - y) / sizes, pull * (at[3] - load))

    def slopes(at: Array) -> Array:
        by_token = x * ((1 + at[3] * calls) / sizes)[:, None]
        by_load = x @ at[:3] * calls / sizes
        return np.vstack([np.column_stack([by_token, by_load]), [0, 0, 0, pull]])

    found = least_squares(
        gaps, np.append(*start), slopes, bounds=(0, np.inf), loss="soft_l1", f_scale=spread
    ).x
    return found[:3], float(found[3]) if beside else load


def _level(y: Array, said: Array) -> float:
    """By how much all of it must grow for the mean to be right: a robust fit goes by what is
    usual, and one answer in five may well cost six times that. The highest twentieth of the ratios
    counts as the next, as that is what happens to a machine rather than to an answer."""
    ratios = y / np.maximum(said, 1e-9)
    cap = float(np.quantile(ratios, 0.95, method="inverted_cdf"))
    return float(np.minimum(y, cap * said).sum() / said.sum())


def _folds(samples: Sequence[Sample]) -> list[int]:
    """By question; of one question alone by answer."""
    questions = sorted({each.question for each in samples})
    if len(questions) == 1:
        return [at % FOLDS for at in range(len(samples))]
    folds = {question: at % FOLDS for at, question in enumerate(questions)}
    return [folds[each.question] for each in samples]
