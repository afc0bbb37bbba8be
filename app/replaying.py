"""The command line's farthing decisions and farthing replay: what was decided, and what if."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import ConfigError
from app.till import day, show, with_accounts

if TYPE_CHECKING:
    from app.accounts.accounts import Accounts
    from app.accounts.explanations import Found
    from app.replay.decisions import Log

Since = Annotated[str | None, typer.Option(metavar="DATE", help="First day (UTC).")]
Until = Annotated[str | None, typer.Option(metavar="DATE", help="Last day (UTC).")]
Key = Annotated[str | None, typer.Option(metavar="ID", help="Of one key; default: all.")]


def decisions(since: Since = None, until: Until = None, key: Key = None) -> None:
    """Print every explanation that the ledger keeps, a JSON object a line, for farthing replay."""
    read = _reader(since, until, key)

    async def write(accounts: Accounts) -> int:
        written = 0
        async with aclosing(read(accounts)) as found:
            async for one in found:
                print(json.dumps(one.document, separators=(",", ":")))
                written += 1
        return written

    print(f"{with_accounts(write)} answers", file=sys.stderr)


def replay(
    log: Annotated[
        Path | None,
        typer.Argument(help="Lines of `farthing decisions`. Default: this ledger's own."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WAY",
            help="A way of the profile, always; or auto;quality=0.9;explore=0.1: the planner with"
            " other options; repeatable.",
        ),
    ] = None,
    grades: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help='Lines of {"id": ..., "worth": 0 to 1}.'),
    ] = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Estimate what another policy would have cost, taken and been worth on the requests that
    `auto` decided about, from what was logged."""
    from app.replay import decisions, evaluating, report, targets

    if not policy:
        raise ConfigError("--policy: name a way of the profile, or auto;quality=0.9")
    if log is not None and (since, until, key) != (None, None, None):
        raise ConfigError("--since, --until and --key are of the ledger; a LOG is read whole")
    found = _of_ledger(since, until, key) if log is None else decisions.of_file(log)
    if not found.decided:
        skipped = ", ".join(f"{count} {why}" for why, count in found.skipped.items()) or "nothing"
        raise ConfigError(
            f"there are no decisions of `auto` to replay (there is {skipped}): answer requests for"
            " the model `auto` first, or name a LOG of `farthing decisions`"
        )
    worths = None if grades is None else decisions.grades_of(grades)
    asked = [targets.logged(), *(targets.parse(text, found.decided) for text in policy)]
    evaluated = [evaluating.evaluate(found, one, worths, seed=seed) for one in asked]
    if as_json:
        print(json.dumps(report.as_json(found, evaluated), indent=2))
        return
    for line in report.notes(found, evaluated):
        print(line)
    for headings, rows in (
        (report.MEANS, report.means(evaluated)),
        (report.RISKS, report.risks(evaluated)),
        (report.SUPPORT, report.support(evaluated)),
    ):
        print()
        show(list(headings), rows)


def _of_ledger(since: str | None, until: str | None, key: str | None) -> Log:
    from app.replay.decisions import of_documents

    read = _reader(since, until, key)

    async def listed(accounts: Accounts) -> list[dict[str, Any]]:
        async with aclosing(read(accounts)) as found:
            return [one.document async for one in found]

    return of_documents(with_accounts(listed))


def _reader(
    since: str | None, until: str | None, key: str | None
) -> Callable[[Accounts], AsyncGenerator[Found]]:
    """Reads the explanations of these days. Raises ConfigError for what is no day."""
    from app.accounts.reports import period

    span = period(day(since, "since"), day(until, "until"))
    return lambda accounts: accounts.explanations.each(key, **span)
