"""The command line's part about money: farthing keys and farthing usage."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.errors import ConfigError

if TYPE_CHECKING:
    from app.accounts.accounts import Accounts
    from app.accounts.keyring import Held

T = TypeVar("T")
keys = typer.Typer(help="API keys: who may spend how much.", no_args_is_help=True)

Usd = Annotated[str | None, typer.Option(metavar="USD")]
Id = Annotated[str, typer.Argument(help="The key's id, as `farthing keys list` shows it.")]


def _usd(help: str) -> Any:
    return typer.Option(metavar="USD", help=help)


def _count(help: str) -> Any:
    return typer.Option(metavar="N", help=help)


PerMinute = Annotated[str | None, _usd("Most that it may spend in a minute.")]
PerDay = Annotated[str | None, _usd("In a day (UTC).")]
PerMonth = Annotated[str | None, _usd("In a month (UTC).")]
Total = Annotated[str | None, _usd("In all.")]
Requests = Annotated[str | None, _count("Requests per minute.")]
Tokens = Annotated[str | None, _count("Tokens per minute, prompt and answer together.")]
AtOnce = Annotated[str | None, _count("Requests at once.")]
DefaultBudget = Annotated[str | None, _usd("Budget of a request that names none.")]
MaxBudget = Annotated[str | None, _usd("Most that one request may cost.")]
Allowed = Annotated[
    list[str] | None, typer.Option("--model", help="A model or preset it may name; repeatable.")
]
Expires = Annotated[str | None, typer.Option(metavar="DATE", help="2027-01-31, or with a time.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE")]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="For people: whose it is, or what for.")],
    admin: Annotated[bool, typer.Option("--admin", help="May manage keys under /admin.")] = False,
    usd_per_minute: PerMinute = None,
    usd_per_day: PerDay = None,
    usd_per_month: PerMonth = None,
    usd_total: Total = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrency: AtOnce = None,
    default_budget_usd: DefaultBudget = None,
    max_budget_usd: MaxBudget = None,
    model: Allowed = None,
    expires: Expires = None,
    label: Labels = None,
) -> None:
    """Make a key. It is printed once, on stdout, and cannot be shown again."""
    from app.accounts.keyring import checked

    given = {k: v for k, v in locals().items() if k not in ("checked", "model", "label")}
    spec = checked(_fields(given, model, label))

    async def make(accounts: Accounts) -> tuple[str, str]:
        key, token = await accounts.keyring.create(spec)
        return key.id, token

    id, token = with_accounts(make)
    print(f"key {id} ({spec.name}); keep this, it is shown once:", file=sys.stderr)
    print(token)


@keys.command("list")
def list_keys() -> None:
    """Show every key: its limits, what it has spent, whether it still opens."""
    from app.catalog import usd

    held = with_accounts(lambda accounts: accounts.keyring.all())
    rows = []
    for one in held:
        spent = one.account.spent
        amounts = (usd(spent["total"]), usd(spent["day"]), usd(one.account.held["total"]))
        rows.append([one.key.id, one.key.name, _state(one), *amounts, _limits(one)])
    show(["id", "name", "state", "spent", "of which today", "held", "limits"], rows)


@keys.command()
def revoke(id: Id) -> None:
    """Close the door to a key; what it spent stays known."""
    with_accounts(lambda accounts: accounts.keyring.revoke(id))
    print(f"key {id} is revoked; gateways that run know within 2 seconds", file=sys.stderr)


@keys.command()
def rotate(
    id: Id,
    grace_s: Annotated[
        float, typer.Option(min=0, help="Seconds for which the old token still opens.")
    ] = 0.0,
) -> None:
    """Make a new token for the same key; it is printed once, on stdout."""
    token = with_accounts(lambda accounts: accounts.keyring.rotate(id, grace_s))
    print(f"a new token for key {id}; keep this, it is shown once:", file=sys.stderr)
    print(token)


@keys.command()
def limit(
    id: Id,
    usd_per_minute: PerMinute = None,
    usd_per_day: PerDay = None,
    usd_per_month: PerMonth = None,
    usd_total: Total = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrency: AtOnce = None,
    default_budget_usd: DefaultBudget = None,
    max_budget_usd: MaxBudget = None,
    model: Allowed = None,
    expires: Expires = None,
    label: Labels = None,
) -> None:
    """Change what a key may do; `none` takes a limit away. The rest stays as it is."""
    given = {k: v for k, v in locals().items() if k not in ("id", "model", "label")}
    changes = _fields(given, model, label)
    if not changes:
        raise ConfigError("nothing to change; `farthing keys limit --help` says what there is")
    held = with_accounts(lambda accounts: accounts.keyring.change(id, changes))
    print(f"key {id}: {_limits(held) or 'no limits'}", file=sys.stderr)


def usage(
    key: Annotated[str | None, typer.Option(help="Of one key; default: all.")] = None,
    by: Annotated[
        str, typer.Option(help="Some of day,key,model,policy,tenant; commas between.")
    ] = "day,key,model,policy",
    since: Annotated[str | None, typer.Option(metavar="DATE", help="First day (UTC).")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="Last day (UTC).")] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write CSV to this file; - is stdout.")
    ] = None,
) -> None:
    """Show what was spent."""
    from app.accounts.accounts import GROUPS
    from app.accounts.reports import as_csv, cells, groups, headings, period

    names = groups(by, GROUPS)
    span = period(day(since, "since"), day(until, "until"))
    rows = with_accounts(lambda accounts: accounts.usage(names, key=key, **span))
    if csv_file is None:
        show(headings(names), [list(map(str, cells(row))) for row in rows])
    elif str(csv_file) == "-":
        sys.stdout.write(as_csv(names, rows))
    else:
        try:
            csv_file.write_text(as_csv(names, rows), encoding="utf-8", newline="")
        except OSError as error:
            raise ConfigError(f"--csv: {csv_file} cannot be written: {error.strerror}") from error


def show(headings: list[str], rows: list[list[str]]) -> None:
    """A table; outside a terminal as wide as it must be, so that nothing is cut."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = (Column(heading, overflow="fold") for heading in headings)
    table = Table(*columns, box=None, show_header=any(headings))
    for row in rows:
        table.add_row(*row)
    # Names are text, whatever brackets and colons are in them.
    plain = partial(Console, markup=False, emoji=False, highlight=False)
    width = None if sys.stdout.isatty() else plain(width=10**6).measure(table).maximum
    plain(width=width).print(table)


def _fields(
    given: dict[str, Any], models: list[str] | None, labels: list[str] | None
) -> dict[str, Any]:
    """The fields of a KeySpec that were given; the word `none` is no limit."""
    fields = {k: v for k, v in given.items() if v is not None}
    fields |= {k: None for k, v in fields.items() if v == "none" and k != "name"}
    if models:
        fields["models"] = None if models == ["none"] else models
    if labels:
        pairs = [label.partition("=") for label in labels]
        if not all(equals and value for _, equals, value in pairs):
            raise ConfigError("--label: must look like NAME=VALUE")
        fields["labels"] = {name: value for name, _, value in pairs}
    return fields


def day(text: str | None, option: str) -> date | None:
    """Raises ConfigError that names the option."""
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--{option}: must be a day, like 2027-01-31, not {text!r}") from None


def _state(held: Held) -> str:
    key = held.key
    if key.revoked is not None:
        return "revoked"
    if key.expires is not None and key.expires <= datetime.now(UTC).timestamp() * 1000:
        return "expired"
    return "admin" if key.admin else "open"


def _limits(held: Held) -> str:
    shown = {"name", "admin", "labels"}
    fields = {k: v for k, v in held.fields().items() if k not in shown and v is not None}
    lists = {k: ",".join(v) if isinstance(v, list) else v for k, v in fields.items()}
    return " ".join(f"{name}={value}" for name, value in lists.items())


def with_accounts(ask: Callable[[Accounts], Awaitable[T]]) -> T:
    """What is asked of the ledger that the settings name."""
    from app.factory import open_accounts
    from app.settings import Settings

    accounts = open_accounts(Settings())
    if accounts is None:
        raise ConfigError("there is no ledger (FARTHING_LEDGER=off), and so nothing is kept")

    async def run() -> T:
        try:
            await accounts.prepare()
            return await ask(accounts)
        finally:
            await accounts.close_database()

    return asyncio.run(run())
