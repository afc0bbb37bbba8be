"""Keys, accounts, reservations, settlements, decisions, rates."""

from alembic import op
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    LargeBinary,
    String,
    bindparam,
    text,
)

revision = "0001"
down_revision = None

_WINDOWS = ("minute", "day", "month", "total")
_FROZEN = ("settlements", "settlement_lines")


def upgrade() -> None:
    _keys_and_accounts()
    _reservations()
    _settlements()
    op.create_table(
        "rates",
        Column("key", String(128), primary_key=True),
        Column("count", BigInteger, nullable=False),
        Column("expires", BigInteger, nullable=False),
    )
    op.create_table(
        "facts",
        Column("name", String(32), primary_key=True),
        Column("value", String(128), nullable=False),
    )
    _freeze()


def _keys_and_accounts() -> None:
    op.create_table(
        "keys",
        Column("id", String(32), primary_key=True),
        Column("name", String(128), nullable=False),
        Column("digest", LargeBinary(32), nullable=False),
        Column("old_digest", LargeBinary(32)),
        Column("old_until", BigInteger),
        Column("admin", Boolean, nullable=False),
        Column("created", BigInteger, nullable=False),
        Column("expires", BigInteger),
        Column("revoked", BigInteger),
        Column("models", JSON),
        Column("default_budget", BigInteger),
        Column("max_budget", BigInteger),
        Column("requests_per_minute", Integer),
        Column("tokens_per_minute", BigInteger),
        Column("concurrency", Integer),
        Column("labels", JSON, nullable=False),
    )
    windows: list[Column[int]] = []
    for name in _WINDOWS:
        windows += [
            Column(f"{name}_limit", BigInteger),
            Column(f"{name}_start", BigInteger, nullable=False),
            Column(f"{name}_spent", BigInteger, nullable=False),
            Column(f"{name}_held", BigInteger, nullable=False),
        ]
    op.create_table(
        "accounts",
        Column("key_id", String(32), primary_key=True),
        *windows,
        Column("running", Integer, nullable=False),
    )
    parts = [f"{name}_{part}" for name in _WINDOWS for part in ("start", "spent", "held")]
    anonymous = text(
        f"INSERT INTO accounts (key_id, running, {', '.join(parts)})"
        f" VALUES (:key, 0, {', '.join('0' for _ in parts)})"
    )
    op.execute(anonymous.bindparams(bindparam("key", "anonymous")))


def _reservations() -> None:
    op.create_table(
        "reservations",
        Column("id", String(96), primary_key=True),
        Column("key_id", String(32), nullable=False),
        Column("process", String(32), nullable=False),
        Column("amount", BigInteger, nullable=False),
        Column("minute", BigInteger, nullable=False),
        Column("day", BigInteger, nullable=False),
        Column("month", BigInteger, nullable=False),
        Column("lease_until", BigInteger, nullable=False),
        Column("policy", String(128), nullable=False),
        Column("model", String(256), nullable=False),
    )
    op.create_index("reservations_by_lease", "reservations", ["lease_until"])


def _settlements() -> None:
    op.create_table(
        "settlements",
        Column("id", String(96), primary_key=True),
        Column("key_id", String(32), nullable=False),
        Column("at", BigInteger, nullable=False),
        Column("day", BigInteger, nullable=False),
        Column("policy", String(128), nullable=False),
        Column("model", String(256), nullable=False),
        Column("tenant", String(128), nullable=False),
        Column("outcome", String(16), nullable=False),
        Column("prompt", BigInteger, nullable=False),
        Column("completion", BigInteger, nullable=False),
        Column("cost", BigInteger, nullable=False),
        Column("gpu_us", BigInteger),
        Column("prices", String(12), nullable=False),
    )
    op.create_index("settlements_by_key", "settlements", ["key_id", "day"])
    op.create_index("settlements_by_day", "settlements", ["day"])
    op.create_table(
        "settlement_lines",
        Column("settlement_id", String(96), primary_key=True),
        Column("model", String(256), primary_key=True),
        Column("prompt", BigInteger, nullable=False),
        Column("cached", BigInteger, nullable=False),
        Column("completion", BigInteger, nullable=False),
        Column("visible", BigInteger, nullable=False),
        Column("cost", BigInteger, nullable=False),
    )
    op.create_table(
        "decisions",
        Column("settlement_id", String(96), primary_key=True),
        Column("position", Integer, primary_key=True),
        Column("kind", String(16), nullable=False),
        Column("model", String(256), nullable=False),
        Column("token", BigInteger, nullable=False),
        Column("entropy", Float),
        Column("threshold", Float),
        Column("rest_usd", Float),
    )


def _freeze() -> None:
    """Settlements are append-only: the database itself refuses to change or delete one."""
    if op.get_bind().dialect.name == "sqlite":
        for table in _FROZEN:
            for action in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table}"
                    f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION farthing_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in _FROZEN:
        op.execute(
            f"CREATE TRIGGER {table}_frozen BEFORE UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION farthing_append_only()"
        )
