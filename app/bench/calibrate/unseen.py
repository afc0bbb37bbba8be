"""How good the best of several ways is on questions that had no part in picking it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from app.bench.calibrate.frontier import Standing
from app.bench.calibrate.kinds import by_question
from app.bench.calibrate.observed import Observed

_FOLDS = 5
_FEW = 10  # questions, of which the rest says too little
_Worths: TypeAlias = Mapping[str, Mapping[str, float]]  # by kind and question


def picked(found: Sequence[Observed], rows: Sequence[Standing]) -> float | None:
    """The quality of what is the best way by four fifths of the questions, on the other fifth, each
    fifth in turn: the best of many by the same answers is partly the luckiest. Of ways that were
    asked all questions. None: questions are too few."""
    most = max((row.questions for row in rows), default=0)
    names = [row.way for row in rows if row.questions == most and row.failed < row.asked]
    if most < _FEW or not names:
        return None
    worths = {name: by_question((e for e in found if e.way == name), "worth") for name in names}
    folds = {
        question: at % _FOLDS
        for questions in worths[names[0]].values()
        for at, question in enumerate(sorted(questions))
    }
    kept = defaultdict[str, list[float]](list)
    for fold in range(_FOLDS):
        others = {question for question, of in folds.items() if of != fold}
        best = max(names, key=lambda name: _quality(worths[name], others))  # of equals the first
        for kind, questions in worths[best].items():
            kept[kind] += [worth for name, worth in questions.items() if folds[name] == fold]
    return statistics.fmean(statistics.fmean(of) for of in kept.values())


def _quality(worths: _Worths, among: set[str]) -> float:
    means = []
    for questions in worths.values():
        if of := [worth for name, worth in questions.items() if name in among]:
            means.append(statistics.fmean(of))
    return statistics.fmean(means)
