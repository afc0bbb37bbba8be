"""What each model of a settlement guessed ahead, which its cost counts."""

from alembic import op
from sqlalchemy import BigInteger, Column

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name in ("drafted", "accepted"):
        # Rows from before had none, and so have those of a gateway that is not up to date yet.
        column = Column(name, BigInteger, nullable=False, server_default="0")
        op.add_column("settlement_lines", column)
