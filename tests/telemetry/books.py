"""The three books: what the metrics count, what the ledger has, what clients were told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select

from app.catalog import PICO
from app.storage.tables import explanations, lines, settlements
from tests.chaos.gateways import Ledger
from tests.telemetry.clients import Told

KINDS = ("prompt", "cached", "completion", "drafted", "accepted", "predicted")
COLUMNS = (*KINDS, "visible", "cost", "gpu_us")
Sums: TypeAlias = Counter[tuple[str, str, str]]
"""By plan (preset or else policy), model and column; integers: tokens, 1e-12 USD, microseconds."""


class Metrics:
    """One exposition."""

    def __init__(self, url: str) -> None:
        answer = httpx.get(f"{url}/metrics", timeout=60).raise_for_status()
        self.size = len(answer.content)
        families = text_string_to_metric_families(answer.text)
        self.samples = [sample for family in families for sample in family.samples]

    def all(self, name: str, *by: str, **only: str) -> Counter[Any]:
        """Sums of this metric's samples with these labels, by the values of others."""
        found: Counter[Any] = Counter()
        for sample in self.samples:
            if sample.name == name and only.items() <= sample.labels.items():
                values = tuple(sample.labels[label] for label in by)
                found[values[0] if len(by) == 1 else values] += sample.value
        return found

    def one(self, name: str, **only: str) -> float:
        """The sum of all its samples with these labels."""
        return sum(self.all(name, **only).values())

    def by_plan(self, name: str, *by: str, **only: str) -> Counter[Any]:
        """The same, the first of the keys being the preset, or where there is none the policy."""
        found: Counter[Any] = Counter()
        for (preset, policy, *rest), value in self.all(
            name, "preset", "policy", *by, **only
        ).items():
            found[(policy if preset == "none" else preset, *rest)] += value
        return found

    def sums(self) -> Sums:
        """Amounts as the integers that they were made of, near enough to one."""
        found: Sums = Counter()
        for (plan, model, kind), value in self.by_plan(
            "farthing_tokens_total", "model", "kind"
        ).items():
            if kind in KINDS:
                found[plan, model, kind] += _whole(value)
        for name, column, unit in (
            ("farthing_visible_tokens_total", "visible", 1),
            ("farthing_cost_usd_total", "cost", PICO),
            ("farthing_gpu_seconds_total", "gpu_us", 10**6),
        ):
            for (plan, model), value in self.by_plan(name, "model").items():
                found[plan, model, column] += _whole(value * unit)
        return +found


def _whole(value: float) -> int:
    """The integer that this is up to the rounding of floats: 1e-9 of it."""
    near = round(value)
    assert abs(value - near) <= max(1e-9 * near, 1e-6), value
    return near


@dataclass
class Settled:
    """One settlement."""

    plan: str
    outcome: str
    cost: int
    answers: bool  # of an answer: else of money that none accounts for
    lines: dict[str, dict[str, int]] = field(default_factory=dict)


def ledger_of(ledger: Ledger, key: str) -> dict[str, Settled]:
    """A key's settlements, by id."""

    async def rows(accounts: Any) -> tuple[list[Any], list[Any]]:
        database = accounts.ledger.database
        of_key = select(settlements).where(settlements.c.key_id == key)
        ids = select(settlements.c.id).where(settlements.c.key_id == key)
        of_them = select(lines).where(lines.c.settlement_id.in_(ids))
        return tuple(  # type: ignore[return-value]  # of two
            [
                await database.read(lambda c, q=q: c.execute(q).mappings().all())
                for q in (of_key, of_them)
            ]
        )

    heads, parts = ledger.ask(rows)
    found = {
        row["id"]: Settled(row["policy"], row["outcome"], row["cost"], row["prices"] != "")
        for row in heads
    }
    for row in parts:
        found[row["settlement_id"]].lines[row["model"]] = {
            column: row[column] or 0 for column in COLUMNS
        }
    return found


def explained(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """The decision log: why answers came out as they did, those too of which nothing was held."""

    async def rows(accounts: Any) -> list[Any]:
        query = select(explanations.c.id, explanations.c.content)
        return await accounts.ledger.database.read(lambda c: c.execute(query).all())  # type: ignore[no-any-return]

    return {id: json.loads(content) for id, content in ledger.ask(rows)}


def plan_of(document: Mapping[str, Any]) -> str:
    """Preset, or else policy."""
    plan: str = document["plan"]["preset"] or document["plan"]["policy"]
    return plan


def decided(log: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str, str]]:
    """Decisions by plan, kind and model."""
    found: Counter[tuple[str, str, str]] = Counter()
    for document in log:
        assert "decisions" not in document.get("left_out", {})
        plan = plan_of(document)
        found.update((plan, one["kind"], one["model"]) for one in document["decisions"])
    return found


def sums(settled: Iterable[Settled]) -> Sums:
    found: Sums = Counter()
    for one in settled:
        for model, line in one.lines.items():
            for column in COLUMNS:
                found[one.plan, model, column] += line[column]
    return +found


def told_sums(told: Sequence[Told], plans: dict[str, str]) -> Sums:
    """Of those who were told; `plans`: by id, as only the header says it."""
    found: Sums = Counter()
    for one in told:
        if one.usage is None:
            continue
        assert one.id is not None
        for model, line in lines_told(one.usage).items():
            for column in COLUMNS:
                found[plans[one.id], model, column] += line[column]
    return +found


def lines_told(usage: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What a client was told of each model, in the ledger's columns."""
    return {
        model: {
            **{kind: line.get(f"{kind}_tokens", 0) for kind in KINDS},
            "visible": line["completion_tokens"] - line["discarded_tokens"],
            "cost": round(line["cost"] * PICO),
            "gpu_us": round(line.get("gpu_seconds", 0) * 10**6),
        }
        for model, line in usage["cost_details"]["models"].items()
    }
