"""Responses that a client may name again: what was asked and answered."""

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, String, Text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "responses",
        Column("id", String(96), primary_key=True),
        Column("key_id", String(32), nullable=False),
        Column("tenant", String(128), nullable=False),
        Column("created", BigInteger, nullable=False),
        Column("expires", BigInteger, nullable=False),
        Column("ended", Boolean, nullable=False),
        Column("cancel", Boolean, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("content", Text, nullable=False),
    )
    op.create_index("responses_by_expiry", "responses", ["expires"])
    op.create_index("responses_by_key", "responses", ["key_id", "created", "size", "id"])
