"""The command line's farthing explain: why an answer came out as it did, told for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from app.errors import FarthingError
from app.till import show, with_accounts

Rows = list[list[str]]


def explain(
    id: Annotated[str, typer.Argument(help="The answer's id, or its X-Request-Id.")],
    url: Annotated[
        str | None,
        typer.Option(help="Ask the gateway there, as FARTHING_API_KEY. Default: the ledger."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As GET /v1/decisions gives it.")] = False,
) -> None:
    """Show why an answer came out as it did: plan, decisions, calls, cost."""
    document = _of_ledger(id) if url is None else _of_gateway(url, id)
    if as_json:
        print(json.dumps(document, indent=2))
        return
    for title, headings, rows in told(document):
        _say(title)
        if rows:
            _table(headings, rows)


def told(document: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], Rows]]:
    """What there is to say: each time a line, and a table under it, which may have no rows.

    Columns of which no row says anything are left out.
    """
    yield _headline(document), ("", ""), _terms(document)
    yield "ways", *_columns(_WAYS, document.get("alternatives", ()))
    decided = document.get("decisions", ())
    yield "decisions" if decided else "decisions: none", *_columns(_DECISIONS, decided)
    calls = list(_calls(document.get("calls", ())))
    yield "calls" if calls else "calls: none", *_columns(_CALLS, calls)
    cost = document.get("cost", {})
    models = [{"model": name, **line} for name, line in cost.get("models", {}).items()]
    yield "cost", *_columns(_LINES, [*models, {"model": "in all", **cost}] if cost else [])
    left = ", ".join(f"{number} {name}" for name, number in document.get("left_out", {}).items())
    if left:
        yield f"left out, as it would be too long: {left}", (), []


def _headline(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    why = "" if error is None else f" ({error['code'] or error['type']})"
    at = document.get("at", "")
    return f"{document['id']}  {at}  {document['outcome']}{why}".replace("    ", "  ")


def _terms(document: Mapping[str, Any]) -> Rows:
    """What was asked for on which terms, and how long it took."""
    request, plan = document.get("request", {}), document.get("plan", {})
    estimate, times = document.get("estimate", {}), document.get("times", {})
    rows = {
        "request": document["request_id"],
        "key": " for ".join(filter(None, (document["key"], document.get("tenant")))),
        "asked for": _listed(request, without=("fallback",)),
        "policy": _listed({k: v for k, v in plan.items() if k != "options"}),
        "options": _listed(plan.get("options") or {}),
        "budget": _listed({**_only(request, "fallback"), **estimate}),
        "times": _listed(times),
    }
    return [[name, text] for name, text in rows.items() if text]


def _listed(fields: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """Name and value of each field that says something."""
    return "  ".join(
        f"{name}={_cell(value)}"
        for name, value in fields.items()
        if name not in without and _cell(value)
    )


def _only(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _calls(calls: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each call, and under it who had a part in it where there were servers."""
    for call in calls:
        yield {**call, "ended": f"{call['outcome']} {call['why']}".rstrip()}
        for attempt in call["attempts"]:
            ended = f"{attempt['outcome']} {attempt.get('error', '')}".rstrip()
            yield {"model": f"  {attempt['server']}", "ended": ended}


def _cell(value: Any) -> str:
    if value is None or value is False or value == [] or value == "":
        return ""
    if value is True:
        return "yes"
    if isinstance(value, list):
        return ",".join(map(_cell, value))
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _fits(value: Any) -> str:
    return "" if value is None else "yes" if value else "no"


_Column = tuple[str, str] | tuple[str, str, Callable[[Any], str]]  # heading, field, how it is shown
_WAYS: Sequence[_Column] = (
    ("chosen", "chosen"),
    ("way", "name"),
    ("kind", "kind"),
    ("USD at most", "usd"),
    ("fits", "fits", _fits),
    ("tokens", "tokens"),
    ("first token s", "first_token_s"),
    ("latency s", "latency_s"),
    ("quality", "quality"),
    ("why", "reason"),
)
_DECISIONS: Sequence[_Column] = (
    ("at s", "at_s"),
    ("choice", "choice", lambda value: str(value) if value else ""),
    ("token", "token"),
    ("what", "kind"),
    ("model", "model"),
    ("entropy", "entropy"),
    ("threshold", "threshold"),
    ("rest USD", "rest_usd"),
    ("saves s", "saves_s"),
)
_TOKENS: Sequence[_Column] = (
    ("prompt", "prompt_tokens"),
    ("cached", "cached_tokens"),
    ("completion", "completion_tokens"),
    ("visible", "visible_tokens"),
    ("drafted", "drafted_tokens"),
    ("accepted", "accepted_tokens"),
    ("predicted", "predicted_tokens"),
)
_CALLS: Sequence[_Column] = (
    ("at s", "began_s"),
    ("model", "model"),
    *_TOKENS,
    ("USD", "usd"),
    ("queued s", "queued_s"),
    ("first token s", "ttft_s"),
    ("took s", "duration_s"),
    ("ended", "ended"),
)
_LINES: Sequence[_Column] = (
    ("model", "model"),
    *_TOKENS,
    ("USD", "usd"),
    ("GPU s", "gpu_seconds"),
)


def _columns(
    columns: Sequence[_Column], records: Sequence[Mapping[str, Any]]
) -> tuple[Sequence[str], Rows]:
    """The headings of those columns in which anything stands, and their cells."""
    kept: list[tuple[str, list[str]]] = []
    for heading, name, *how in columns:
        shown = how[0] if how else _cell
        cells = [shown(record.get(name)) for record in records]
        if any(cells):
            kept.append((heading, cells))
    rows = zip(*(cells for _, cells in kept), strict=True)
    return [heading for heading, _ in kept], [list(row) for row in rows]


def _of_ledger(id: str) -> dict[str, Any]:
    found = with_accounts(lambda accounts: accounts.explanations.find(id, None))
    if found is None:
        raise FarthingError(f"there is no answer {id!r}, or it is kept no longer")
    return found.document


def _of_gateway(url: str, id: str) -> dict[str, Any]:
    from app.settings import Settings
    from app.terminal import connect, look_up

    secret = Settings().api_key
    with connect(url, key=None if secret is None else secret.get_secret_value()) as http:
        document: dict[str, Any] = look_up(http, f"decisions/{quote(id, safe='')}")
    return document


def _say(line: str) -> None:
    from rich.console import Console

    from app.terminal import clean

    plain = Console(markup=False, emoji=False, highlight=False)
    plain.print(clean(line), style="bold", soft_wrap=True)


def _table(headings: Sequence[str], rows: Rows) -> None:
    from app.terminal import clean

    show(["", *headings], [["", *map(clean, row)] for row in rows])
