"""The ledger's tables: keys, accounts, reservations, settlements, explanations, rates, responses.

Money is in 1e-12 USD, times are milliseconds since 1970 (UTC) unless a comment says otherwise.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# Who may come in. The account of those who need no key is a row of `accounts` only.
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),  # keyed hash of the token
    Column("old_digest", LargeBinary(32)),  # of the token before a rotation
    Column("old_until", BigInteger),
    Column("admin", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("models", JSON),  # names of models and presets; null: all
    Column("default_budget", BigInteger),  # of one request
    Column("max_budget", BigInteger),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", BigInteger),
    Column("concurrency", Integer),
    Column("labels", JSON, nullable=False),
)


def _windows() -> list[Column[int]]:
    columns: list[Column[int]] = []
    for name in ("minute", "day", "month", "total"):
        columns += [
            Column(f"{name}_limit", BigInteger),
            Column(f"{name}_start", BigInteger, nullable=False),  # seconds; 0 for the total
            Column(f"{name}_spent", BigInteger, nullable=False),
            Column(f"{name}_held", BigInteger, nullable=False),
        ]
    return columns


# What a key may spend, has spent, and has promised to requests under way. One row, so that
# locking it makes all that follows from it atomic.
accounts = Table(
    "accounts",
    metadata,
    Column("key_id", String(32), primary_key=True),
    *_windows(),
    Column("running", Integer, nullable=False),  # reservations
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String(96), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("process", String(32), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("minute", BigInteger, nullable=False),  # the windows it counts in, seconds
    Column("day", BigInteger, nullable=False),
    Column("month", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=False),
    Column("policy", String(128), nullable=False),
    Column("model", String(256), nullable=False),
    Index("reservations_by_lease", "lease_until"),
)

# Append-only: triggers refuse to change or delete a row.
settlements = Table(
    "settlements",
    metadata,
    Column("id", String(96), primary_key=True),  # our request id
    Column("key_id", String(32), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("day", BigInteger, nullable=False),  # of admission: its first second
    Column("policy", String(128), nullable=False),
    Column("model", String(256), nullable=False),  # as the client named it
    Column("tenant", String(128), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("prompt", BigInteger, nullable=False),  # tokens, as the client saw them
    Column("completion", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("gpu_us", BigInteger),  # accelerator-microseconds; null: not of every line known
    Column("prices", String(12), nullable=False),  # version of the price table
    Index("settlements_by_key", "key_id", "day"),
    Index("settlements_by_day", "day"),
)

lines = Table(
    "settlement_lines",
    metadata,
    Column("settlement_id", String(96), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("prompt", BigInteger, nullable=False),  # tokens billed
    Column("cached", BigInteger, nullable=False),
    Column("completion", BigInteger, nullable=False),
    Column("visible", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("drafted", BigInteger, nullable=False, server_default="0"),
    Column("accepted", BigInteger, nullable=False, server_default="0"),  # among `completion`
    Column("predicted", BigInteger, nullable=False, server_default="0"),  # among `prompt`
    Column("gpu_us", BigInteger),  # accelerator-microseconds; null: its card does not say
)

# Why answers came out as they did: of those that were settled, and of some that were refused.
explanations = Table(
    "explanations",
    metadata,
    Column("id", String(96), primary_key=True),  # our request id
    Column("key_id", String(32), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("request_id", String(128), nullable=False),  # the client's, which it may use again
    Column("at", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes of the content
    Column("content", Text, nullable=False),  # JSON
    Index("explanations_by_request", "request_id", "at", "id"),
    Index("explanations_by_expiry", "expires", "size"),
)

rates = Table(
    "rates",
    metadata,
    Column("key", String(128), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(128), nullable=False),
)

# What clients may name again. One under way lives as long as its process says that it does.
responses = Table(
    "responses",
    metadata,
    Column("id", String(96), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("cancel", Boolean, nullable=False),  # whoever runs it shall end it
    Column("size", BigInteger, nullable=False),  # bytes of the content
    Column("content", Text, nullable=False),  # JSON: the client's words and the answer
    Index("responses_by_expiry", "expires"),
    Index("responses_by_key", "key_id", "created", "size", "id"),
)
