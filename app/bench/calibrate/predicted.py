"""What was to be expected of answers, by laws fitted without their questions, and what came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.bench.calibrate.fitting import answers_by_way, laws_of, samples
from app.bench.calibrate.frontier import PRICES, Price
from app.bench.calibrate.observed import Observed
from app.profile import Profile


@dataclass(frozen=True)
class Pair:
    """Of one answer."""

    way: str
    policy: str
    expected: float  # before it was written
    known: float  # expected, had its length been known
    actual: float


@dataclass(frozen=True)
class Error:
    """Mean absolute errors of several answers, in the amount's unit."""

    ahead: float
    known: float
    mean: float  # of the amounts


@dataclass
class Foretold:
    """An amount of all ways."""

    pairs: list[Pair] = field(default_factory=list)

    def error(self, way: str | None = None) -> Error | None:
        """Of a way, or of all answers; None where nothing was left out."""
        of = [pair for pair in self.pairs if way in (None, pair.way)]
        if not of:
            return None
        return Error(
            math.fsum(abs(pair.actual - pair.expected) for pair in of) / len(of),
            math.fsum(abs(pair.actual - pair.known) for pair in of) / len(of),
            math.fsum(pair.actual for pair in of) / len(of),
        )


def foretold(found: Sequence[Observed], profile: Profile) -> Mapping[Price, Foretold]:
    """By amount, of every way of the profile."""
    by_way = answers_by_way(found, [way.name for way in profile.ways])
    policies = {way.name: way.policy for way in profile.ways}
    told = dict[Price, Foretold]()
    for what in PRICES:
        told[what] = Foretold()
        for way, (law, _) in laws_of(by_way, what).items():
            each = zip(law.ahead, law.said, samples(by_way[way], what), strict=False)
            told[what].pairs += [
                Pair(way, policies[way], ahead, said, sample.amount) for ahead, said, sample in each
            ]
    return told
