"""A calibration in a few sentences: which way to answer for which money."""

from __future__ import annotations

from collections.abc import Sequence

from app.bench.calibrate.frontier import ALIKE, Neighbours, Standing, compare, frontier
from app.bench.calibrate.observed import Observed
from app.bench.calibrate.unseen import picked

SURE = 0.05  # a p below it
_MOST = 4  # names in a sentence
_SEEN = 0.01  # of quality: less is not worth a sentence


def sentences(found: Sequence[Observed], rows: Sequence[Standing], seed: int = 0) -> list[str]:
    """The first is the one to read."""
    line = frontier(rows, "cost")
    if not line:
        return _by_time(rows)
    steps = sure_steps(found, line, among(rows), seed)
    told = [_told(steps, sure=True)] if len(steps) > 1 else _unsure(line)
    best = line[-1]
    told += _enough(found, best, line[:-1], seed)
    told += _lucky(found, rows, best)
    if len(line) > 1:
        told.append(_least(line[0], best))
    useless = [row for row in rows if row.useless and row.failed < row.asked]
    if useless:
        share = f"{len(useless)} of {len(rows)} ways were"
        sure = sum(row.surely for row in useless)
        told.append(
            f"{share} beaten in quality, cost and time at once, {sure or 'none'} of them surely:"
            f" {_names(useless)}."
        )
    if silent := [row for row in rows if row.failed == row.asked]:
        told.append(f"{len(silent)} of {len(rows)} ways gave no answer at all: {_names(silent)}.")
    if failed := sum(row.failed for row in rows):
        told.append(f"{failed} of {sum(row.asked for row in rows)} requests failed; see below.")
    return told


def _names(rows: Sequence[Standing]) -> str:
    return ", ".join(row.way for row in rows[:_MOST]) + ", …" * (len(rows) > _MOST)


def among(rows: Sequence[Standing]) -> int:
    """Of how many ways a frontier was picked."""
    return sum(row.failed < row.asked for row in rows)


def sure_steps(
    found: Sequence[Observed], line: Sequence[Standing], of: int, seed: int = 0
) -> list[Standing]:
    """Along a frontier of so many ways from its beginning, those that are surely better than the
    one before."""
    kept = [*line[:1]]
    for row in line[1:]:
        test = compare(found, kept[-1], row, "cost", seed, of)
        if _surely_better(test):
            kept.append(row)
    return kept


def _surely_better(test: Neighbours | None) -> bool:
    return test is not None and test.adjusted < SURE and test.difference.mean > 0


def _told(steps: Sequence[Standing], *, sure: bool) -> str:
    """`Up to $1: a. From $1: b.`"""
    first = f"{steps[0].way} ({_quality(steps[0])}) is what the least money buys"
    others = [f"from ${_thousand(row)} {row.way} ({_quality(row)})" for row in steps[1:]]
    end = "; more money buys nothing that is surely better." if sure else "."
    return f"By what 1,000 requests may cost: {first}, {', '.join(others)}{end}"


def _unsure(line: Sequence[Standing]) -> list[str]:
    if len(line) == 1:
        row = line[0]
        return [
            f"{row.way} is the best way and the cheapest one: {_quality(row)} at"
            f" ${_thousand(row)} for 1,000 requests."
        ]
    gains = {row.way: row.value - before.value for before, row in zip(line, line[1:], strict=False)}
    kept = sorted(line[1:], key=lambda row: -gains[row.way])[: _MOST - 1]
    steps = [row for row in line if row is line[0] or row in kept]
    return [
        _told(steps, sure=False),
        "None of these steps is sure yet: with more questions the ranges become narrower"
        " (--limit, --seeds, or without --quick).",
    ]


def _enough(
    found: Sequence[Observed], best: Standing, others: Sequence[Standing], seed: int
) -> list[str]:
    """The cheapest way that is known to be as good as the best, or nearly so."""
    for row in others:
        test = compare(found, row, best, "cost", seed)
        if test is not None and test.alike and (price := best.price("cost")):
            share = (row.price("cost") or 0.0) / price
            return [
                f"{best.way} had the best answers ({_quality(best)}), but those of {row.way} are"
                f" at most {ALIKE} worse ({_quality(row)}) and cost {share:.0%} of it."
            ]
    return [f"{best.way} had the best answers: {_quality(best)}."]


def _lucky(found: Sequence[Observed], rows: Sequence[Standing], best: Standing) -> list[str]:
    """The best of many is partly the luckiest."""
    unseen = picked(found, rows)
    if unseen is None or unseen > best.value - _SEEN:
        return []
    return [
        f"The best of {among(rows)} ways is partly the luckiest: picked by four fifths of the"
        f" questions and asked the others, the best way has quality {unseen:.2f}."
    ]


def _least(cheapest: Standing, best: Standing) -> str:
    share = cheapest.value / best.value if best.value else 1.0
    low, high = cheapest.price("cost") or 0.0, best.price("cost")
    price = f"{low / high:.1%} of its price" if high else "no price"
    return f"{cheapest.way} keeps {share:.0%} of the best quality for {price}."


def _by_time(rows: Sequence[Standing]) -> list[str]:
    line = frontier(rows, "seconds")
    if not line:
        return ["No way to answer gave a single answer: see what failed."]
    told = ", ".join(
        f"{row.way} ({_quality(row)} in {row.price('seconds'):.2g} s)" for row in line[:_MOST]
    )
    return [f"No answer told its cost. By time, the ways worth having are: {told}."]


def _quality(row: Standing) -> str:
    return f"quality {row.value:.2f}"


def _thousand(row: Standing) -> str:
    return f"{1000 * (row.price('cost') or 0.0):.3g}"
