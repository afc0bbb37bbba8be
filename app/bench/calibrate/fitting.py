"""From graded answers to a profile: what every way to answer is worth, costs and takes."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from app.bench.calibrate.classifying import LARGE, SMALL, classify, needs, quantiles
from app.bench.calibrate.kinds import ALL, amount, by_question, qualities
from app.bench.calibrate.laws import FIRM, Drawn, Sample, common_load, drawn, upper, with_high
from app.bench.calibrate.observed import Observed, Point
from app.bench.calibrate.pooling import pooled
from app.errors import ConfigError
from app.estimates import Estimate
from app.profile import Interval, Law, Length, Profile, Runtime, Way
from app.prompt_features import Classifier, features

_DEARER = 1.1  # times the cost of another model's answers: what is less is their lengths'
NOTHING = Law(base=0, prompt=0, completion=0)
"""The law of an amount that no answer of a way tells."""
AMOUNTS = ("cost", "first_s", "seconds")
"""What a way has laws of: USD, and seconds to the first text and to the end."""


def fit(
    found: Sequence[Observed],
    points: Sequence[Point],
    texts: Mapping[str, str],
    runtimes: Mapping[str, Runtime],
    seed: int,
    measured: str | None = None,
) -> Profile:
    """The profile of these answers. `texts`: what was asked, by question, its kind ahead of the
    last `/`; more than was asked makes the classifier of kinds better. `measured`: when and by
    which command; None: now, `farthing calibrate`.

    Ways without a single answer are left out, as nothing is known of what they cost; so are
    answers of ways that are no longer among `points`. Raises ConfigError where nothing is left.
    """
    by_way = answers_by_way(found, [point.name for point in points])
    if not by_way:
        why = Counter(each.failed for each in found if each.failed).most_common(1)
        told = f": most often {why[0][0]}" if why else ""
        raise ConfigError(f"no way to answer gave a single answer, so there is no profile{told}")
    laws = {what: laws_of(by_way, what) for what in AMOUNTS}
    authors = {
        point.name: _author(point, by_way[point.name]) for point in points if point.name in by_way
    }
    worths = pooled(by_way, authors) or {
        way: qualities(of, seed=seed) for way, of in by_way.items()
    }
    ways = tuple(
        _way(
            point,
            by_way[point.name],
            worths[point.name],
            {what: laws[what][point.name] for what in AMOUNTS},
        )
        for point in points
        if point.name in by_way
    )
    hard = {
        way.models[0]: _difficulty(by_way[way.name], by_way[large.name], texts, seed)
        for way, large in _small_and_large(ways, by_way)
    }
    entropies = {
        point.models[0]: quantiles(bits)
        for point in points
        if point.policy == "direct" and (bits := _entropies(by_way.get(point.name, ())))
    }
    return Profile(
        measured=measured or f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, farthing calibrate",
        best=best(ways).name,
        ways=ways,
        kinds=_kinds(texts, ways, seed),
        difficulty={name: classifier for name, (classifier, _) in hard.items()},
        entropies=entropies,
        difficulties={name: quantiles(chances) for name, (_, chances) in hard.items() if chances},
        runtimes=dict(runtimes),
    )


def _author(point: Point, of: Sequence[Observed]) -> str:
    """With whose answers a way's count; that some failed is a way's own matter."""
    if any(each.failed for each in of):
        return f"{point.name}, which fails"
    return point.author or point.name


def answers_by_way(found: Sequence[Observed], names: Sequence[str]) -> dict[str, list[Observed]]:
    """Of each of these ways that answered at least once, all that is known, failures too."""
    by_way = defaultdict[str, list[Observed]](list)
    for each in found:
        by_way[each.way].append(each)
    return {name: by_way[name] for name in names if any(not e.failed for e in by_way[name])}


def best(ways: Sequence[Way]) -> Way:
    """Of those that were asked all kinds, the way of the best quality over them."""
    most = max(len(way.quality) for way in ways)
    return max(
        (way for way in ways if len(way.quality) == most), key=lambda way: way.quality[ALL].mean
    )


def samples(found: Sequence[Observed], what: str) -> list[Sample]:
    """What answers tell of an amount: the first words by what ran when they were asked for, as
    that is what a planner knows of them; the rest by what ran meanwhile."""
    first = what == "first_s"
    return [
        Sample(
            each.question,
            each.prompt,
            each.completion,
            each.met if first else each.beside,
            value,
        )
        for each in found
        if not each.failed and (value := getattr(each, what)) is not None
    ]


def laws_of(by_way: Mapping[str, Sequence[Observed]], what: str) -> dict[str, tuple[Drawn, Law]]:
    """Of each way that tells the amount, as it was drawn, and with `high`."""
    told = {way: samples(found, what) for way, found in by_way.items()}
    cost = what == "cost"
    load = None if cost else common_load([*told.values()])
    laws = {way: drawn(each, load, robust=not cost) for way, each in told.items() if each}
    pooled = [ratio for way, law in laws.items() for ratio in law.ratios(told[way])]
    return {
        way: (laws[way], with_high(laws[way], told[way], pooled))
        if way in laws
        else (Drawn(NOTHING), NOTHING)
        for way in by_way
    }


def _way(
    point: Point,
    found: Sequence[Observed],
    worths: Mapping[str, Estimate],
    laws: Mapping[str, tuple[Drawn, Law]],
) -> Way:
    quality = {
        kind: Interval(mean=e.mean, low=e.low, high=e.high, questions=_questions(found, kind))
        for kind, e in worths.items()
    }
    return Way(
        name=point.name,
        preset=point.preset,
        policy=point.policy,
        options=dict(point.options),
        models=point.models,
        fidelity=point.fidelity,
        digest=point.digest,
        quality=quality,
        length=_lengths(found),
        cost=laws["cost"][1],
        first_token=laws["first_s"][1],
        latency=laws["seconds"][1],
    )


def _questions(found: Sequence[Observed], kind: str) -> int:
    return len({each.question for each in found if kind in (ALL, each.kind)})


def _lengths(found: Sequence[Observed]) -> dict[str, Length]:
    """By kind; of a kind in which every request failed, as of all. Few answers do not show how long
    one of a kind may be: then how those of all kinds differ from the others of theirs says it."""
    by_kind = defaultdict[str, list[int]](list)
    for each in found:
        if not each.failed:
            by_kind[each.kind].append(each.completion)
    every = [tokens for those in by_kind.values() for tokens in those]
    weights = [1 / len(those) for those in by_kind.values() for _ in those]
    whole = Length(
        mean=statistics.fmean(map(statistics.fmean, by_kind.values())),
        high=float(np.quantile(every, 0.9, weights=weights, method="inverted_cdf")),
    )
    kinds = {each.kind: whole for each in found}
    beside = upper([ratio for those in by_kind.values() for ratio in _beside_others(those)])
    for kind, those in by_kind.items():
        mean, high = statistics.fmean(those), float(upper(those))
        if len(those) < FIRM:
            high = max(high, mean * beside)
        kinds[kind] = Length(mean=mean, high=high)
    return {**kinds, ALL: whole}


def _beside_others(values: Sequence[float]) -> list[float]:
    """Each as a multiple of the mean of the others."""
    total, others = math.fsum(values), len(values) - 1
    means = [(total - each) / max(others, 1) for each in values]
    return [each / mean for each, mean in zip(values, means, strict=True) if mean > 0]


def _entropies(found: Sequence[Observed]) -> list[float]:
    return [each.entropy for each in found if not each.failed and each.entropy is not None]


def _kinds(texts: Mapping[str, str], ways: Sequence[Way], seed: int) -> Classifier:
    kinds = {kind for way in ways for kind in way.quality if kind != ALL}
    known = [(question.rpartition("/")[0], text) for question, text in sorted(texts.items())]
    known = [(kind, text) for kind, text in known if kind in kinds]
    labels = [kind for kind, _ in known]
    classes = sorted(set(labels) or kinds)
    return classify([text for _, text in known], labels, classes, even=True, seed=seed).classifier


def _small_and_large(
    ways: Sequence[Way], by_way: Mapping[str, Sequence[Observed]]
) -> list[tuple[Way, Way]]:
    """Every model that others are dearer than, and the best of these; where none is dearer than
    another, every model but the best one, and that one."""
    alone = [way for way in ways if way.policy == "direct"]
    costs = {way.name: amount(by_way[way.name], "cost") for way in alone}

    def dearer(other: Way, way: Way) -> bool:
        ours, theirs = costs[way.name], costs[other.name]
        return ours is not None and theirs is not None and theirs.mean > _DEARER * ours.mean

    above = {way.name: [other for other in alone if dearer(other, way)] for way in alone}
    if any(above.values()):
        return [(way, best(above[way.name])) for way in alone if above[way.name]]
    return [(way, best(alone)) for way in alone if way is not best(alone)]


def _difficulty(
    small: Sequence[Observed], large: Sequence[Observed], texts: Mapping[str, str], seed: int
) -> tuple[Classifier, list[float]]:
    """How likely the large model is needed, and what that is of prompts that were left out."""
    ours, theirs = (
        {name: worth for of in by_question(each, "worth").values() for name, worth in of.items()}
        for each in (small, large)
    )
    common = sorted(ours.keys() & theirs.keys() & texts.keys())
    labels = [needs(ours[name], theirs[name]) for name in common]
    asked = [texts[name] for name in common]
    found = classify(asked, labels, (SMALL, LARGE), even=False, seed=seed)
    if found.unseen is not None:
        return found.classifier, found.unseen[:, 1].tolist()
    chances = [found.classifier.probabilities(features(text))[LARGE] for text in asked]
    return found.classifier, chances
