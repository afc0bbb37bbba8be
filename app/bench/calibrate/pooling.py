"""What each way to answer is worth by kind of prompts, all answers taken together.

Of one kind a way has often been asked a few questions only, and perhaps easier ones than another
way was. So that chance does not pass for quality, a way's worth beside the others' is estimated by
a mixed model whose effects of ways, and of ways in a kind, are drawn to nothing as far as the
answers do not bear them out (partial pooling, by best linear unbiased prediction: Henderson 1975,
Biometrics 31).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.bench.calibrate.kinds import ALL, by_question
from app.bench.calibrate.observed import Observed
from app.estimates import Estimate

_Z = 1.96  # standard errors, of a 95 % interval
_RATIOS = tuple(np.logspace(-3, 1, 9))  # of an effect's variance to that of single answers
_NONE = 1e-12  # variance: there is none
_Array: TypeAlias = NDArray[np.float64]


class _Cell(NamedTuple):
    """A way's answers to one question."""

    way: str
    kind: str
    question: str
    worth: float


class _Solved(NamedTuple):
    """What follows from how much ways vary."""

    effects: _Array  # of ways, and of ways in a kind
    errors: _Array  # their covariance
    unlikely: float  # -2 log of the restricted likelihood (REML)


@dataclass(frozen=True)
class _Design:
    """Worths less the mean of each question's (Z'MZ, Z'My and y'My of the mixed-model equations, M
    the projection that takes the questions' means away: they are fixed effects)."""

    columns: Mapping[tuple[str, str], int]  # of an effect: a way, and a kind or ALL
    squares: _Array  # (effects, effects)
    products: _Array  # (effects,)
    total: float
    free: int  # degrees of freedom

    def solved(self, overall: float, within: float) -> _Solved:
        """By the variances of effects of ways, and of ways in a kind, beside that of single
        answers."""
        scale: _Array = np.sqrt([overall if kind == ALL else within for _, kind in self.columns])
        matrix = np.eye(len(scale)) + scale[:, None] * self.squares * scale
        inverse = np.linalg.inv(matrix)
        effects = scale * (inverse @ (scale * self.products))
        rest = max(self.total - float(effects @ self.products), _NONE)
        variance = rest / self.free
        unlikely = self.free * np.log(rest) + np.linalg.slogdet(matrix)[1]
        return _Solved(effects, variance * scale[:, None] * inverse * scale, float(unlikely))


def pooled(
    by_way: Mapping[str, Sequence[Observed]], authors: Mapping[str, str] | None = None
) -> dict[str, dict[str, Estimate]]:
    """By way, and kind or `ALL` (their mean, each with the same weight): its worth, 0 to 1.

    Ways with the same of `authors` (None: each its own) write as one model does, by construction,
    and so count as one way: speculation is worth what its target is. The interval is of how it
    differs from the mean of all ways; that other questions may be harder for all of them alike has
    no part in it. Empty where no two ways were asked the same question.
    """
    of = {way: way if authors is None else authors[way] for way in by_way}
    together: dict[str, list[Observed]] = {}
    for way, found in by_way.items():
        together.setdefault(of[way], []).extend(found)
    cells = [
        _Cell(author, kind, question, worth)
        for author, found in together.items()
        for kind, questions in by_question(found, "worth").items()
        for question, worth in questions.items()
    ]
    design = _design(cells)
    if design.free < 1:
        return {}
    effects, errors = _expected(design)
    levels = _levels(cells, design.columns, effects)
    worths = {each: _worths(each, design.columns, effects, errors, levels) for each in together}
    return {way: worths[author] for way, author in of.items()}


def _design(cells: Sequence[_Cell]) -> _Design:
    kinds = {(cell.way, cell.kind) for cell in cells}
    ways = dict.fromkeys((cell.way, ALL) for cell in cells)
    columns = {each: place for place, each in enumerate([*ways, *sorted(kinds)])}
    questions = dict.fromkeys(cell.question for cell in cells)
    rows = {question: place for place, question in enumerate(questions)}
    matrix, worths = np.zeros((len(cells), len(columns))), np.empty(len(cells))
    places = np.empty(len(cells), dtype=np.intp)
    for row, cell in enumerate(cells):
        matrix[row, columns[cell.way, ALL]] = matrix[row, columns[cell.way, cell.kind]] = 1
        worths[row], places[row] = cell.worth, rows[cell.question]
    counts = np.bincount(places)
    means = np.bincount(places, worths) / counts
    sums = np.zeros((len(rows), len(columns)))
    np.add.at(sums, places, matrix)
    matrix -= (sums / counts[:, None])[places]
    worths -= means[places]
    return _Design(
        columns,
        squares=matrix.T @ matrix,
        products=matrix.T @ worths,
        total=float(worths @ worths),
        free=len(cells) - len(rows),
    )


def _expected(design: _Design) -> tuple[_Array, _Array]:
    """Effects and their errors' covariance, over all variances as far as they are likely (REML):
    few ways say little of how much ways vary, and one guess at it would be too sure (Gelman et al.
    2013, Bayesian Data Analysis, 5.4)."""
    if design.total < _NONE:  # all ways are alike, and nothing says how sure that is
        size = len(design.columns)
        return np.zeros(size), np.zeros((size, size))
    found = [design.solved(way, kind) for way in _RATIOS for kind in _RATIOS]
    unlikely = np.array([each.unlikely for each in found])
    weights = np.exp((unlikely.min() - unlikely) / 2)
    weights /= weights.sum()
    mean = sum(weight * each.effects for weight, each in zip(weights, found, strict=True))
    errors = np.zeros_like(found[0].errors)
    for weight, each in zip(weights, found, strict=True):
        beside = each.effects - mean
        errors += weight * (each.errors + np.outer(beside, beside))
    return mean, errors


def _levels(
    cells: Sequence[_Cell], columns: Mapping[tuple[str, str], int], effects: _Array
) -> dict[str, float]:
    """By kind what the mean of all ways is worth, each question with the same weight."""
    by_kind: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        expected = effects[columns[cell.way, ALL]] + effects[columns[cell.way, cell.kind]]
        of = by_kind.setdefault(cell.kind, {}).setdefault(cell.question, [])
        of.append(cell.worth - float(expected))
    return {
        kind: statistics.fmean(map(statistics.fmean, questions.values()))
        for kind, questions in by_kind.items()
    }


def _worths(
    way: str,
    columns: Mapping[tuple[str, str], int],
    effects: _Array,
    errors: _Array,
    levels: Mapping[str, float],
) -> dict[str, Estimate]:
    found, kinds = {}, [kind for kind in sorted(levels) if (way, kind) in columns]
    weights = {kind: {kind: 1.0} for kind in kinds} | {ALL: dict.fromkeys(kinds, 1 / len(kinds))}
    for told, of in weights.items():
        mixed = np.zeros(len(effects))
        mixed[columns[way, ALL]] = 1
        for kind, weight in of.items():
            mixed[columns[way, kind]] = weight
        level = sum(weight * levels[kind] for kind, weight in of.items())
        mean = min(max(level + float(mixed @ effects), 0.0), 1.0)
        beside = _Z * float(np.sqrt(mixed @ errors @ mixed))
        found[told] = Estimate(mean, max(mean - beside, 0.0), min(mean + beside, 1.0))
    return found
