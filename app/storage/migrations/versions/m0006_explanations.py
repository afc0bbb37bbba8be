"""Why answers came out as they did, one document each; decisions become such documents."""

import json
import math
import time
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, RowMapping, String, Text, text

revision = "0006"
down_revision = "0005"

_MANY = 500  # documents written at once
_KEPT_MS = 7 * 86_400_000  # from now on: as long as new ones by default
_SETTLED = """
    SELECT s.id, s.key_id, s.tenant, s.at, s.policy, s.model, s.outcome,
           d.kind, d.model AS writer, d.token, d.entropy, d.threshold, d.rest_usd
    FROM decisions d JOIN settlements s ON s.id = d.settlement_id
    WHERE d.settlement_id > :after
    ORDER BY d.settlement_id, d.position LIMIT 20000
"""
_WRITE = """
    INSERT INTO explanations (id, key_id, tenant, request_id, at, expires, size, content)
    VALUES (:id, :key_id, :tenant, :id, :at, :expires, :size, :content)
"""


def upgrade() -> None:
    op.create_table(
        "explanations",
        Column("id", String(96), primary_key=True),
        Column("key_id", String(32), nullable=False),
        Column("tenant", String(128), nullable=False),
        Column("request_id", String(128), nullable=False),
        Column("at", BigInteger, nullable=False),
        Column("expires", BigInteger, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("content", Text, nullable=False),
    )
    op.create_index("explanations_by_request", "explanations", ["request_id", "at", "id"])
    op.create_index("explanations_by_expiry", "explanations", ["expires", "size"])
    _carry_over()
    op.drop_table("decisions")


def _carry_over() -> None:
    connection, after = op.get_bind(), ""
    while rows := connection.execute(text(_SETTLED), {"after": after}).mappings().all():
        answers = [list(group) for _, group in groupby(rows, itemgetter("id"))]
        if len(rows) == 20000 and len(answers) > 1:
            answers.pop()  # perhaps not whole
        connection.execute(text(_WRITE), [_document(decided) for decided in answers])
        after = answers[-1][-1]["id"]


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)  # JSON has no infinity


def _document(decided: Sequence[RowMapping]) -> dict[str, Any]:
    first, now = decided[0], time.time_ns() // 10**6
    content = json.dumps(
        {
            "outcome": first["outcome"],
            "plan": {"policy": first["policy"]},
            "request": {"model": first["model"]},
            "decisions": [
                {
                    "kind": one["kind"],
                    "model": one["writer"],
                    "token": one["token"],
                    **{name: _number(one[name]) for name in ("entropy", "threshold", "rest_usd")},
                }
                for one in decided
            ],
        }
    )
    row = {name: first[name] for name in ("id", "key_id", "tenant", "at")}
    return {**row, "expires": now + _KEPT_MS, "size": len(content), "content": content}
