"""farthing calibrate: measures, writes profile and report, and says what to do with them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from app.bench.calibrate.beside import beside
from app.bench.calibrate.fitting import fit
from app.bench.calibrate.frontier import frontier, show
from app.bench.calibrate.measuring import Measured, Wishes, measure
from app.bench.calibrate.report import Unreferenced, report
from app.bench.folders import alone_in
from app.profile import Profile
from app.tariffs import usd

PROFILE, REPORT = "profile.json", "report.html"


def run(wishes: Wishes) -> None:
    """All of it. Ctrl-C leaves what was answered, and a later run goes on from that.

    Raises ConfigError, BadRequest, UnknownModel for what cannot be measured, ConfigError where
    another run is at work in the folder.
    """
    console = Console(stderr=True)
    with alone_in(wishes.out):
        try:
            measured = measure(wishes, console)
        except KeyboardInterrupt:
            console.print(
                f"\nstopped; what was answered is in {wishes.out}/, and the same command goes on"
                " from there",
                soft_wrap=True,
            )
            raise
        _tell(measured, wishes, console)


def _tell(measured: Measured, wishes: Wishes, console: Console) -> None:
    for line in _lacking(measured, wishes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    profile = fit(
        *(measured.found, measured.points, measured.texts, measured.runtimes, wishes.seed),
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, {_command(wishes)}",
    )
    _write(wishes.out / PROFILE, profile)
    unreferenced = Unreferenced(
        [kind for kind, needs in measured.needs.items() if needs == "best"],
        measured.best,
        [kind for kind, needs in measured.needs.items() if needs == "judge"],
        wishes.judge or "",
    )
    with console.status("auto beside the single ways, by profiles that leave out a fifth each"):
        auto = beside(measured.found, measured.points, measured.texts, wishes.seed)
    rows = report(measured.found, profile, wishes.out, unreferenced, auto)
    show(rows)
    for line in unreferenced:
        print(line)
    names = ", ".join(row.way for row in frontier(rows, "cost"))
    for line in _ending(wishes, names, measured.spent):
        print(line)


def _command(wishes: Wishes) -> str:
    """What measures the same again. Files are told by their names, as a profile may be passed on
    to others."""
    told = ["farthing calibrate", *(["--quick"] if wishes.quick else [])]
    told += [f"--task {kind}={path.name}" for kind, path in wishes.tasks.items()]
    told += [f"--preset {shlex.quote(name)}" for name in wishes.presets]
    told += [] if wishes.dials is None else [f"--dials {wishes.dials}"]
    told += [] if wishes.limit is None else [f"--limit {wishes.limit}"]
    told += [f"--seeds {wishes.seeds}", f"--levels {','.join(map(str, wishes.levels))}"]
    told += [f"--temperature {wishes.temperature:g}"] if wishes.temperature else []
    told += [f"--seed {wishes.seed}"] if wishes.seed else []
    told += [f"--judge {wishes.judge}"] if wishes.judge else []
    return " ".join(told)


def _lacking(measured: Measured, wishes: Wishes) -> Iterator[str]:
    """What is not as it was meant to be."""
    told = measured.told
    for way, why in told.hopeless.items():
        yield f"{way}: asked no more, as it only failed: {why}"
    if told.left:
        yield (
            f"the budget of {usd(wishes.usd or 0)} USD did not pay for {told.left} requests more:"
            " the same command with a higher --usd goes on"
        )
    models = [point.name for point in measured.points if point.policy == "direct"]
    if models := [name for name in models if name not in measured.runtimes]:
        yield f"not measured alone, so that F and g are not known: {', '.join(models)}"
    if measured.graded.ungraded:
        yield (
            f"{measured.graded.ungraded} answers are left out: there is no answer of"
            f" {measured.best} to grade them by, or no judge's opinion"
            + ("" if wishes.usd is None else ": a higher --usd may pay for it")
        )


def _ending(wishes: Wishes, names: str, spent: int) -> Iterator[str]:
    """What to look at, and what to do."""
    yield f"Worth having, by cost: {names}. All others are dearer than one as good."
    if wishes.quick:
        yield (
            "This was a first look at few prompts: intervals are wide. Without --quick there are"
            " more prompts, and presets at other settings of their dials."
        )
    yield f"It has cost {usd(spent)} USD by the prices of {wishes.config}."
    yield f"\nThe report: {wishes.out / REPORT}"
    yield (
        "\nTo have `auto` go by it, have this in farthing.toml, in place of a table [planner] that"
        " is there, and start the gateway anew:"
    )
    if wishes.ours:
        yield f"(there is none here yet: cp {wishes.config} farthing.toml)"
    yield f"\n[planner]\nprofile = {json.dumps(str((wishes.out / PROFILE).resolve()))}"


def _write(path: Path, profile: Profile) -> None:
    """Whole, or not at all: a gateway may be reading it."""
    beside = path.with_suffix(".new")
    beside.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
