"""What a calibration found, as a page to be read, a picture and a table of numbers."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from app.bench.calibrate import beside, plots
from app.bench.calibrate.auto import chosen
from app.bench.calibrate.beside import UNASKED, Beside, Rivals
from app.bench.calibrate.frontier import (
    ALIKE,
    PRICES,
    Price,
    Standing,
    frontier,
    neighbours,
    standings,
)
from app.bench.calibrate.headline import SURE, among, sentences
from app.bench.calibrate.kinds import ALL
from app.bench.calibrate.observed import Observed
from app.bench.calibrate.predicted import Error, Foretold, foretold
from app.errors import ConfigError
from app.estimates import Estimate
from app.profile import Profile, Way

_AMOUNTS: Mapping[Price, tuple[str, float, str]] = {
    "cost": ("cost", 1000.0, "USD of 1,000 requests"),
    "seconds": ("time to the end", 1.0, "s"),
    "first_s": ("time to the first words", 1.0, "s"),
}


@dataclass(frozen=True)
class Unreferenced:
    """The kinds of questions that have no right answer, and what quality is there."""

    agreed: Sequence[str] = ()  # kinds: being like the answers of the way `best`
    best: str = ""
    judged: Sequence[str] = ()  # kinds: what the model `judge` says
    judge: str = ""

    def __iter__(self) -> Iterator[str]:
        """In sentences."""
        if self.agreed:
            yield (
                f"{', '.join(self.agreed)}: graded by how much an answer is like that of"
                f" {self.best} (its words in the same order), which is right by itself there: that"
                " is agreement, not quality. A judge would say more (--judge MODEL)."
            )
        if self.judged:
            yield f"{', '.join(self.judged)}: graded by {self.judge}, by how sure it is of a yes."


def report(
    found: Sequence[Observed],
    profile: Profile,
    folder: Path,
    unreferenced: Unreferenced = Unreferenced(),
    auto: Beside = UNASKED,
) -> list[Standing]:
    """Write `report.html`, `frontier.png`, `ways.csv` and `auto.csv` into this folder, and tell how
    the ways stand, best first. Raises ConfigError where it cannot be written."""
    rows = standings(found, profile)
    page = _page(found, profile, rows, folder / "profile.json", [*unreferenced], auto)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(page, encoding="utf-8")
        _write_csv(rows, profile, folder / "ways.csv")
        beside.write(auto, folder / "auto.csv")
        plots.picture(rows, folder / "frontier.png")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error
    return rows


def _page(
    found: Sequence[Observed],
    profile: Profile,
    rows: Sequence[Standing],
    profile_path: Path,
    notes: Sequence[str],
    auto: Beside,
) -> str:
    kinds = sorted({each.kind for each in found})
    questions = {(each.kind, each.question) for each in found}
    levels = sorted({each.level for each in found})
    best = next((row for row in rows if row.way == profile.best), rows[0])
    told = foretold(found, profile)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("app.bench.calibrate", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        measured=profile.measured,
        counts={
            "ways": len(rows),
            "questions": len(questions),
            "kinds": len(kinds),
            "answers": len(found),
        },
        headline=[*sentences(found, rows), *auto],
        plots={
            **{what: _drawn(plots.trade(rows, what)) for what in PRICES},
            "first": _drawn(plots.first_tokens(profile.runtimes)),
        },
        alone="one request" if levels[0] == 1 else f"{levels[0]} requests",
        ways=[_row(row, best, rows, kinds) for row in rows],
        incomplete=[
            row.way for row in rows if row.questions < len(questions) and row.failed < row.asked
        ],
        useless=_useless(rows),
        budgets=chosen(found, profile, kinds),
        auto=auto,
        rivals=[_rivals(each) for each in auto.rivals],
        kinds=kinds,
        notes=notes,
        among=among(rows),
        alike=ALIKE,
        asked=Counter(kind for kind, _ in questions),
        steps=_steps(found, rows),
        seeds=len({each.seed for each in found}),
        levels=levels,
        agreements=_agreements(told),
        errors=_errors(told, profile.ways),
        laws=[_laws(way) for way in profile.ways],
        runtimes=_runtimes(profile),
        classifiers=_classifiers(profile),
        failures=_failures(found),
        profile_path=str(profile_path),
    )


def _drawn(svg: str | None) -> Markup | None:
    """Matplotlib has escaped what it shows."""
    return None if svg is None else Markup(svg)


def _row(
    row: Standing, best: Standing, rows: Sequence[Standing], kinds: Sequence[str]
) -> dict[str, Any]:
    line = frontier(rows, "cost")
    return {
        "way": row.way,
        "policy": row.policy or "gave no answer",
        "quality": f"{row.value:.3f}",
        "range": _range(row.quality[ALL]),
        "relative": f"{row.value / best.value:.0%}" if best.value else "",
        "cost": _number(row.cost, 1000),
        "first": _number(row.first_s),
        "seconds": _number(row.seconds),
        "failed": f"{row.failed} of {row.asked}" if row.failed else "",
        "cheaper": row.better.get("cost", ""),
        "sooner": row.better.get("seconds", ""),
        "on": row in line,
        "by_kind": {
            kind: (f"{q.mean:.2f}", _range(q)) if (q := row.quality.get(kind)) else ("", "")
            for kind in kinds
        },
        "by_seed": ", ".join(f"{value:.3f}" for value in row.by_seed.values()),
        "spread": "" if row.spread is None else f"{row.spread:.3f}",
        "within": "" if row.within is None else f"{row.within:.3f}",
    }


def _range(found: Estimate) -> str:
    return f"{found.low:.2f} to {found.high:.2f}"


def _number(found: Estimate | None, unit: float = 1.0) -> str:
    return "" if found is None else _short(unit * found.mean)


def _short(value: float) -> str:
    """Three digits, as people write them; what is less than a billionth is rounding."""
    if abs(value) < 1e-9:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    told = f"{value:,.{digits}f}"
    return told.rstrip("0").rstrip(".") if "." in told else told


def _useless(rows: Sequence[Standing]) -> list[dict[str, Any]]:
    by_name = {row.way: row for row in rows}
    told = []
    for row in rows:
        if row.useless and row.failed < row.asked:
            other = by_name[row.useless]
            pairs = ((row.price(what), other.price(what), what) for what in PRICES)
            parts = [
                f"{theirs / mine:.0%} of its {_AMOUNTS[what][0]}"
                for mine, theirs, what in pairs
                if mine and theirs is not None
            ]
            told.append(
                {
                    "way": row.way,
                    "by": other.way,
                    "ours": f"{row.value:.3f}",
                    "theirs": f"{other.value:.3f}",
                    "why": f"at {', '.join(parts)}",
                    "sure": row.surely,
                }
            )
    return told


def _rivals(each: Rivals) -> dict[str, Any]:
    return {
        "thousand": _short(1000 * each.usd),
        "quality": f"{each.quality:.3f}",
        "cost": _short(1000 * each.cost),
        "used": f"{each.used:.0%}",
        "single": each.single,
        "theirs": f"{each.single_quality:.3f}",
        "price": _short(1000 * each.single_cost),
        "times": "" if each.times is None else f"{each.times:.2f}",
        "gap": f"{each.difference.mean:+.3f}",
        "range": _range(each.difference),
        "sure": "yes" if each.sure else "no",
        "taken": ", ".join(f"{way} {count}" for way, count in each.taken.items()),
    }


def _steps(found: Sequence[Observed], rows: Sequence[Standing]) -> list[dict[str, str]]:
    return [
        {
            "cheap": each.cheap,
            "dear": each.dear,
            "times": "" if each.times is None else f"{each.times:.2f}",
            "gain": f"{each.difference.mean:+.3f}",
            "range": _range(each.difference),
            "p": f"{each.p:.2g}",
            "adjusted": f"{each.adjusted:.2g}",
            "sure": "yes" if each.adjusted < SURE else "no",
            "questions": str(each.questions),
            "test": each.test,
        }
        for each in neighbours(found, frontier(rows, "cost"), "cost", among(rows))
    ]


def _agreements(told: Mapping[Price, Foretold]) -> list[dict[str, Any]]:
    found = []
    for what, each in told.items():
        name, unit, of = _AMOUNTS[what]
        if (error := each.error()) is not None:
            found.append(
                {
                    "name": name,
                    "svg": _drawn(plots.agreement(each.pairs, what)),
                    "error": f"{_short(unit * error.ahead)} {of}",
                    "share": f"{error.ahead / error.mean:.0%}" if error.mean else "0%",
                }
            )
    return found


def _errors(told: Mapping[Price, Foretold], ways: Sequence[Way]) -> list[dict[str, Any]]:
    amounts = [what for what, each in told.items() if each.error() is not None]
    names: list[str | None] = [None, *(way.name for way in ways)]
    return [
        {
            "way": way or "all ways",
            "cells": [_error(told[what].error(way), _AMOUNTS[what][1]) for what in amounts],
        }
        for way in names
    ]


def _error(error: Error | None, unit: float) -> tuple[str, str]:
    if error is None:
        return "", ""
    return _short(unit * error.ahead), _short(unit * error.known)


def _laws(way: Way) -> dict[str, Any]:
    cost, time = way.cost, way.latency
    priced = [cost.base, cost.prompt, cost.completion]
    return {
        "way": way.name,
        "cells": [
            *(_short(1e6 * value) for value in priced),
            f"{cost.high:.2f}",
            *(_short(value) for value in (time.base, time.prompt, time.completion)),
            f"+{time.load:.0%}",
            f"{time.high:.2f}",
        ],
    }


def _runtimes(profile: Profile) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "first": ", ".join(
                f"F({length}) = {_short(1000 * runtime.first[length])}"
                for length in sorted(runtime.first)
            ),
            "each": _short(1000 * runtime.each),
            "rate": _short(1 / runtime.each) if runtime.each else "",
        }
        for model, runtime in profile.runtimes.items()
    ]


def _classifiers(profile: Profile) -> list[str]:
    kinds = profile.kinds
    told = [f"Its kind, among {len(kinds.classes)}: {_accuracy(kinds.accuracy, kinds.usual)}."]
    for model, found in profile.difficulty.items():
        told.append(
            f"Whether {model} will do, or a dearer one is needed:"
            f" {_accuracy(found.accuracy, found.usual)}."
        )
    return told


def _accuracy(accuracy: float | None, usual: float | None) -> str:
    if accuracy is None or usual is None:
        return "too few prompts of each sort to say how often that is right"
    return (
        f"right for {accuracy:.0%} of the prompts that the classifier had not seen"
        f" (always saying the most usual would be for {usual:.0%})"
    )


def _failures(found: Sequence[Observed]) -> list[dict[str, Any]]:
    asked = Counter(each.way for each in found)
    failed = Counter((each.way, each.failed) for each in found if each.failed)
    return [
        {"way": way, "count": count, "of": asked[way], "why": why}
        for (way, why), count in failed.most_common(50)
    ]


def _write_csv(rows: Sequence[Standing], profile: Profile, path: Path) -> None:
    kinds = sorted({kind for row in rows for kind in row.quality})
    ways = {way.name: way for way in profile.ways}
    heads = ["way", "preset", "policy", "fidelity", "questions", "requests", "failed"]
    heads += [f"quality_{kind}{part}" for kind in kinds for part in ("", "_low", "_high")]
    heads += [f"{what}{part}" for what in PRICES for part in ("", "_low", "_high")]
    heads += [f"as_good_for_no_more_{what}" for what in PRICES] + ["as_good_for_no_more", "spread"]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(heads)
        for row in rows:
            way = ways.get(row.way)
            known = (way.preset, way.policy, way.fidelity) if way is not None else ("", "", "")
            table.writerow(
                [
                    *(row.way, *known, row.questions, row.asked, row.failed),
                    *_cells(row.quality.get(kind) for kind in kinds),
                    *_cells(getattr(row, what) for what in PRICES),
                    *(row.better.get(what, "") for what in PRICES),
                    row.useless,
                    "" if row.spread is None else row.spread,
                ]
            )


def _cells(found: Iterable[Estimate | None]) -> list[float | str]:
    cells: list[float | str] = []
    for each in found:
        cells += ["", "", ""] if each is None else [each.mean, each.low, each.high]
    return cells
