"""`auto` beside every single way at several budgets, on questions that its profile had not seen."""

from __future__ import annotations

import csv
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_UP, Context
from pathlib import Path
from typing import TypeAlias

import numpy as np

from app.bench.calibrate.fitting import answers_by_way, fit
from app.bench.calibrate.frontier import chance
from app.bench.calibrate.headline import SURE
from app.bench.calibrate.observed import Observed, Point
from app.estimates import Estimate, mean
from app.profile import Profile
from app.prompt_features import features
from policies.plans.choosing import Wish, choose
from policies.plans.pace import Slower
from policies.plans.predicting import Forecast, Situation

_FEWEST = 20  # questions
_ROOM = 1 << 20  # tokens that an answer may have
_FOLDS = 5
_BUDGETS = 5
_ENDS = (0.05, 0.98)  # quantiles of the answers' costs, between which budgets lie
_ROUNDED = Context(prec=3, rounding=ROUND_UP)  # a budget pays for what costs as much
_Answers: TypeAlias = Mapping[str, Mapping[str, Sequence[Observed]]]  # by question and way
_Outcome: TypeAlias = tuple[float, float]  # worth and USD
_HEADS = (
    *("usd", "questions", "auto_quality", "auto_cost", "auto_of_usd"),
    *("single", "single_quality", "single_cost"),
    *("difference", "difference_low", "difference_high", "p_of_all", "costs_times", "auto_took"),
)


@dataclass(frozen=True)
class Rivals:
    """`auto`, and the best single way, where a request may cost so much. Qualities and costs are
    means over the kinds, each with the same weight. An answer that costs more would be cut short:
    it is worth 0 and costs the budget, whoever takes it."""

    usd: float  # that one request may cost
    quality: float  # auto's
    cost: float  # USD of a request
    single: str  # of all ways the best by these very answers; of equals the cheapest
    single_quality: float
    single_cost: float
    difference: Estimate  # of the qualities, question by question
    p: float  # of so large a difference by chance, times the budgets (Bonferroni)
    taken: Mapping[str, int]  # by way, the questions that auto took it for; most first

    @property
    def times(self) -> float | None:
        """What auto costs, of what the single way does."""
        return self.cost / self.single_cost if self.single_cost else None

    @property
    def used(self) -> float:
        """What auto costs, of the budget."""
        return self.cost / self.usd

    @property
    def sure(self) -> bool:
        return self.p < SURE


@dataclass(frozen=True)
class Beside:
    """How `auto` does on questions that it was not measured by."""

    rivals: Sequence[Rivals] = ()  # by budget, the least first
    questions: int = 0
    lacking: str = ""  # why there are no rivals; empty: there are

    @property
    def reached(self) -> int:
        """Budgets at which it was no worse than the best single way, on average."""
        return sum(each.difference.mean > -1e-9 for each in self.rivals)

    def __iter__(self) -> Iterator[str]:
        """In sentences; none where nothing is sure."""
        sure = [each.difference.mean > 0 for each in self.rivals if each.sure]
        counts = {"better": sum(sure), "worse": len(sure) - sum(sure)}
        if sure:
            told = " and ".join(f"surely {word} at {n}" for word, n in counts.items() if n)
            yield (
                "On questions that its profile had not seen, auto was, beside the best single way,"
                f" {told} of {len(self.rivals)} budgets."
            )


UNASKED = Beside()


def beside(
    found: Sequence[Observed], points: Sequence[Point], texts: Mapping[str, str], seed: int = 0
) -> Beside:
    """By cross-validation: for each fifth of the questions, what `auto` takes by the profile of all
    other answers, and how good those are that it would have given.

    It is asked what all ways were asked that gave answers and told their costs. Kinds with fewer
    such questions than there are folds stay in the profiles. `texts`: as `fit` has them.
    """
    by_way = answers_by_way(found, [point.name for point in points])
    costed = {way: of for way, of in by_way.items() if any(each.cost is not None for each in of)}
    if len(costed) < 2:
        return Beside(lacking=f"it takes two ways that tell what they cost: {len(costed)} did")
    answers = _complete(costed, texts)
    folds = _folds(sorted(answers), seed)
    asked = sorted(question for fold in folds for question in fold)
    costs = [_usd(each) for question in asked for of in answers[question].values() for each in of]
    if len(asked) < _FEWEST or not any(costs):
        return Beside(
            lacking=f"it takes {_FEWEST} questions that all ways were asked, at least {_FOLDS} of a"
            f" kind, at a cost: there are {len(asked) if any(costs) else 0}"
        )
    budgets = _budgets(costs)
    # Where money alone is asked for times have no say, and their laws take long.
    kept = [replace(each, first_s=None, seconds=None) for of in costed.values() for each in of]
    taken = dict[str, list[str]]()
    for fold in folds:
        rest = [each for each in kept if each.question not in fold]
        read = {question: text for question, text in texts.items() if question not in fold}
        profile = fit(rest, points, read, {}, seed, "by the other folds")
        left_out = {question: answers[question] for question in fold}
        taken |= _taken(profile, left_out, texts, budgets)
    weights = _weights(asked)
    rivals = [
        _rivals(usd, {question: taken[question][at] for question in asked}, answers, weights, seed)
        for at, usd in enumerate(budgets)
    ]
    adjusted = [replace(each, p=min(each.p * len(rivals), 1.0)) for each in rivals]
    return Beside(adjusted, len(asked))


def _complete(costed: Mapping[str, Sequence[Observed]], texts: Mapping[str, str]) -> _Answers:
    """What each way answered to each question that all were asked, and any could answer."""
    answers = defaultdict[str, dict[str, list[Observed]]](lambda: defaultdict(list))
    for way, of in costed.items():
        for each in of:
            answers[each.question][way].append(each)

    def whole(question: str, ways: Mapping[str, Sequence[Observed]]) -> bool:
        every = [each for of in ways.values() for each in of]
        known = all(each.failed or each.cost is not None for each in every)
        answered = not all(each.failed for each in every)
        return len(ways) == len(costed) and known and answered and question in texts

    return {question: ways for question, ways in answers.items() if whole(question, ways)}


def _folds(questions: Sequence[str], seed: int) -> list[frozenset[str]]:
    """Each kind shared out evenly; of kinds with less than one for each fold none is left out."""
    kinds = defaultdict[str, list[str]](list)
    for question in questions:
        kinds[_kind(question)].append(question)
    shuffling, dealt = random.Random(seed), list[str]()
    for of in kinds.values():
        if len(of) >= _FOLDS:
            shuffling.shuffle(of)
            dealt += of
    return [frozenset(dealt[fold::_FOLDS]) for fold in range(_FOLDS)]


def _kind(question: str) -> str:
    return question.rpartition("/")[0]


def _usd(answer: Observed) -> float:
    return answer.cost or 0.0


def _budgets(costs: Sequence[float]) -> list[float]:
    """Evenly spaced by their logarithms, and rounded."""
    low, high = np.quantile([cost for cost in costs if cost > 0], _ENDS)
    found = (_ROUNDED.create_decimal(float(usd)) for usd in np.geomspace(low, high, _BUDGETS))
    return sorted({float(usd) for usd in found})


def _prompt(answers: Mapping[str, Sequence[Observed]], best: str) -> int:
    """Tokens of the question, as the best way counts them; where that failed, another."""
    ways = [way for way in (best, *answers) if way in answers]
    return next(each.prompt for way in ways for each in answers[way] if not each.failed)


def _taken(
    profile: Profile, asked: _Answers, texts: Mapping[str, str], budgets: Sequence[float]
) -> dict[str, list[str]]:
    """By question the way that the planner takes at each budget, when nothing else runs."""
    forecast, many = Forecast(profile.ways, profile), len(profile.ways)
    taken = dict[str, list[str]]()
    for question, answers in asked.items():
        options = forecast.options(
            Situation(
                kinds=profile.kinds.probabilities(features(texts[question])),
                prompt=_prompt(answers, profile.best),
                choices=1,
                rooms=[_ROOM] * many,
                calls=[0] * many,
                others=[0] * many,
                joins=[False] * many,
                paces=[Slower()] * many,
                usd=[None] * many,
                worst=[None] * many,
                unable=[""] * many,
            )
        )
        taken[question] = [choose(options, Wish(usd=usd))[0].option.name for usd in budgets]
    return taken


def _weights(questions: Sequence[str]) -> Mapping[str, float]:
    """Of 1 on average, with which each kind counts alike."""
    kinds = Counter(map(_kind, questions))
    return {one: len(questions) / (len(kinds) * kinds[_kind(one)]) for one in questions}


def _rivals(
    usd: float,
    taken: Mapping[str, str],
    answers: _Answers,
    weights: Mapping[str, float],
    seed: int,
) -> Rivals:
    """`taken`: by question, the way that auto took."""
    singles = {
        way: [_outcome(answers[question][way], usd) for question in taken]
        for way in next(iter(answers.values()))
    }
    auto = [_outcome(answers[question][way], usd) for question, way in taken.items()]
    shares = [weights[question] for question in taken]

    def means(of: Sequence[_Outcome]) -> _Outcome:
        worths, costs = zip(*of, strict=True)
        return statistics.fmean(worths, shares), statistics.fmean(costs, shares)

    single, (quality, cost) = max(
        ((way, means(of)) for way, of in singles.items()),
        key=lambda each: (each[1][0], -each[1][1]),
    )
    pairs = [(ours, theirs) for (ours, _), (theirs, _) in zip(auto, singles[single], strict=True)]
    gaps = [share * (a - b) for share, (a, b) in zip(shares, pairs, strict=True)]
    p, _ = chance(gaps, all(worth in (0.0, 1.0) for pair in pairs for worth in pair), seed)
    counts = Counter(taken.values()).most_common()
    ours = means(auto)
    return Rivals(usd, *ours, single, quality, cost, mean(gaps, seed=seed), p, dict(counts))


def _outcome(answers: Sequence[Observed], usd: float) -> _Outcome:
    """What they are worth and cost on average, where no more than so much can be spent on one."""
    worths = [0.0 if each.failed or _usd(each) > usd else each.worth for each in answers]
    return statistics.fmean(worths), statistics.fmean(min(_usd(each), usd) for each in answers)


def write(found: Beside, path: Path) -> None:
    """As CSV, of nothing its head alone. Raises OSError."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(_HEADS)
        for each in found.rivals:
            gap = each.difference
            table.writerow(
                [
                    *(each.usd, found.questions, each.quality, each.cost, each.used),
                    *(each.single, each.single_quality, each.single_cost),
                    *(gap.mean, gap.low, gap.high, each.p),
                    "" if each.times is None else each.times,
                    " ".join(f"{way}:{count}" for way, count in each.taken.items()),
                ]
            )
