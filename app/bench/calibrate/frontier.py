"""Which ways to answer are worth having: no other is as good and cheaper, or as good and sooner."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rich.console import Console
from rich.table import Table

from app.bench.calibrate.kinds import ALL, amount, by_question, qualities
from app.bench.calibrate.observed import Observed
from app.bench.paired import bootstrap, mcnemar, signs
from app.estimates import Estimate, mean
from app.profile import Profile

Price: TypeAlias = Literal["cost", "first_s", "seconds"]
_FEW = 16  # questions; of a test, those that differ
ALIKE = 0.05  # quality that nobody would miss
PRICES: tuple[Price, ...] = ("cost", "seconds", "first_s")


@dataclass
class Standing:
    """One way's answers, each kind with the same weight, and which other ways beat it."""

    way: str
    policy: str
    asked: int  # requests
    failed: int
    questions: int
    quality: Mapping[str, Estimate]  # by kind, and of ALL
    cost: Estimate | None  # USD of a request
    seconds: Estimate | None  # with as few requests at once as there were
    first_s: Estimate | None
    by_seed: Mapping[int, float]  # quality over the kinds
    within: float | None  # standard deviation of one question's worth over seeds; None: one seed
    place: tuple[bool, int]  # of equals in all the first counts: a model, then by the profile
    better: dict[Price, str] = field(default_factory=dict)
    """By what it costs, another way that is as good or better at no more of it."""
    useless: str = ""  # another way that is as good or better and costs no more of anything
    surely: bool = False  # that one is not worse by more than `ALIKE` for chance alone

    @property
    def value(self) -> float:
        return self.quality[ALL].mean

    @property
    def spread(self) -> float | None:
        """Standard deviation of the quality over seeds; None: there is one seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def price(self, what: Price) -> float | None:
        found: Estimate | None = getattr(self, what)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Neighbours:
    """Two ways that stand one after the other on the frontier, compared on what both were asked."""

    cheap: str
    dear: str
    questions: int
    difference: Estimate  # dear's quality less cheap's, each kind with the same weight
    p: float
    test: str
    times: float | None  # dear's price, of cheap's
    adjusted: float  # p, as the pair was picked among several (Bonferroni)

    @property
    def alike(self) -> bool:
        """Whether cheap is not worse by more than `ALIKE`, and that not for want of questions."""
        return self.questions >= _FEW and self.difference.high <= ALIKE


def standings(found: Sequence[Observed], profile: Profile, seed: int = 0) -> list[Standing]:
    """Of every way that was asked anything, best first; those that only failed too."""
    by_way = defaultdict[str, list[Observed]](list)
    for each in found:
        by_way[each.way].append(each)
    policies = {way.name: (way.policy, at) for at, way in enumerate(profile.ways)}
    last = "", len(policies)
    rows = [_standing(way, policies.get(way, last), of, seed) for way, of in by_way.items()]
    rows.sort(key=lambda row: (-row.value, row.place))
    by_name = {row.way: row for row in rows}
    for row in rows:
        _beaten(row, rows)
        if row.useless:
            test = compare(found, by_name[row.useless], row, "cost", seed)
            row.surely = row.failed == row.asked or (test is not None and test.alike)
    return rows


def _standing(way: str, policy: tuple[str, int], found: Sequence[Observed], seed: int) -> Standing:
    least = min(each.level for each in found)
    alone = [each for each in found if each.level == least]
    seeds = sorted({each.seed for each in found})
    return Standing(
        way,
        policy[0],
        len(found),
        sum(bool(each.failed) for each in found),
        len({each.question for each in found}),
        qualities(found, seed=seed),
        amount(found, "cost", seed=seed),
        amount(alone, "seconds", seed=seed),
        amount(alone, "first_s", seed=seed),
        {one: qualities(e for e in found if e.seed == one)[ALL].mean for one in seeds},
        _within(found) if len(seeds) > 1 else None,
        (policy[0] != "direct", policy[1]),
    )


def _within(found: Sequence[Observed]) -> float | None:
    by_question = defaultdict[str, dict[int, list[float]]](lambda: defaultdict(list))
    for each in found:
        by_question[each.question][each.seed].append(0.0 if each.failed else each.worth)
    spreads = [
        statistics.variance([statistics.fmean(worths) for worths in seeds.values()])
        for seeds in by_question.values()
        if len(seeds) > 1
    ]
    return statistics.fmean(spreads) ** 0.5 if spreads else None


def _beaten(row: Standing, rows: Sequence[Standing]) -> None:
    answered = [other for other in rows if other is not row and other.failed < other.asked]
    for what in PRICES:
        if (others := [other for other in answered if dominates(other, row, (what,))]) and (
            row.price(what) is not None
        ):
            row.better[what] = _named(others, what)
    # What is preferred for being as good at the same cost is of use, though it be slower.
    others = [other for other in answered if not dominates(row, other, ("cost",))]
    if others := [other for other in others if dominates(other, row, PRICES)]:
        row.useless = _named(others, "cost")


def dominates(other: Standing, row: Standing, prices: Sequence[Price]) -> bool:
    """Whether it is as good or better, costs no more of these, and comes first where all is the
    same. What one of them does not tell is not compared; a way that only failed is beaten by any
    that costs."""
    pairs = [(row.price(what), other.price(what)) for what in prices]
    if row.failed == row.asked:
        return True
    known = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    if not known or other.value < row.value or any(theirs > mine for mine, theirs in known):
        return False
    better = other.value > row.value or any(theirs < mine for mine, theirs in known)
    return better or other.place < row.place


def _named(others: Sequence[Standing], what: Price) -> str:
    """The best of them, of equally good ones the cheapest."""

    def order(other: Standing) -> tuple[float, float]:
        price = other.price(what)
        return other.value, -(float("inf") if price is None else price)

    return max(others, key=order).way


def frontier(rows: Sequence[Standing], what: Price) -> list[Standing]:
    """The ways that no other is as good as at a lower price, cheapest first."""
    on = [
        (price, row)
        for row in rows
        if (price := row.price(what)) is not None and what not in row.better
        if row.failed < row.asked
    ]
    return [row for _, row in sorted(on, key=lambda pair: (pair[0], pair[1].value))]


def neighbours(
    found: Sequence[Observed], line: Sequence[Standing], what: Price, among: int, seed: int = 0
) -> list[Neighbours]:
    """Whether each step along a frontier of so many ways is surely one up. McNemar's exact test
    where answers are right or wrong, else a paired bootstrap, of few questions the exact test of
    signs."""
    pairs = zip(line, line[1:], strict=False)
    tests = (compare(found, cheap, dear, what, seed, among) for cheap, dear in pairs)
    return [test for test in tests if test is not None]


def compare(
    found: Sequence[Observed],
    cheap: Standing,
    dear: Standing,
    what: Price,
    seed: int = 0,
    among: int = 2,
) -> Neighbours | None:
    """On the questions that both were asked; None: there are none. `among`: ways, any of which
    might have been the dear one, for being the best of them by these answers."""
    sides = [by_question((e for e in found if e.way == row.way), "worth") for row in (cheap, dear)]
    kinds = {
        kind: [(ours[q], theirs[q]) for q in sorted(ours.keys() & theirs.keys())]
        for kind, ours in sides[0].items()
        if (theirs := sides[1].get(kind))
    }
    kinds = {kind: pairs for kind, pairs in kinds.items() if pairs}
    if not kinds:
        return None
    many = sum(map(len, kinds.values()))
    # Each kind counts alike, however many questions it has.
    gaps = [
        (theirs - ours) * many / (len(kinds) * len(pairs))
        for pairs in kinds.values()
        for ours, theirs in pairs
    ]
    binary = all(v in (0.0, 1.0) for pairs in kinds.values() for pair in pairs for v in pair)
    p, test = chance(gaps, binary, seed)
    low, high = cheap.price(what), dear.price(what)
    times = high / low if low and high is not None else None
    adjusted = min(p * max(among - 1, 1), 1.0)
    return Neighbours(cheap.way, dear.way, many, mean(gaps, seed=seed), p, test, times, adjusted)


def chance(gaps: Sequence[float], binary: bool, seed: int) -> tuple[float, str]:
    """A p, and of which test. Of few questions a bootstrap is too sure."""
    if binary:
        p = mcnemar(sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps))
        return p, "McNemar, exact"
    if sum(gap != 0 for gap in gaps) <= _FEW:
        return signs(gaps), "signs, exact"
    return bootstrap(gaps, seed=seed), "paired bootstrap"


def show(rows: Sequence[Standing]) -> None:
    """A table of all ways, best first, and which of them others beat."""
    console = Console()
    table = Table(title="farthing calibrate: quality over all kinds of prompts, best first")
    table.add_column("way", overflow="fold")  # the numbers beside it must not be cut
    for head in ("quality", "USD/1,000", "s", "first s", "failed"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cost = row.price("cost")
        table.add_row(
            row.way,
            f"{row.value:.2f} ({row.quality[ALL].low:.2f}-{row.quality[ALL].high:.2f})",
            "" if cost is None else f"{1000 * cost:.4g}",
            _short(row.seconds),
            _short(row.first_s),
            str(row.failed or ""),
        )
    console.print(table)
    for row in rows:
        if row.failed == row.asked:
            console.print(f"{row.way}: gave no answer", highlight=False)
        elif other := row.useless:
            console.print(
                f"{row.way}: {other} was as good, and no dearer or slower"
                + ("" if row.surely else ", which is not sure"),
                highlight=False,
            )
        elif other := row.better.get("cost", ""):
            console.print(f"{row.way}: {other} was as good, and no dearer", highlight=False)


def _short(found: Estimate | None) -> str:
    return "" if found is None else f"{found.mean:.2f}"
