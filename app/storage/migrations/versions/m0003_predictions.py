"""How much of each model's prompts was predicted, which a settlement's cost counts."""

from alembic import op
from sqlalchemy import BigInteger, Column

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Rows from before had none, and so have those of a gateway that is not up to date yet.
    column = Column("predicted", BigInteger, nullable=False, server_default="0")
    op.add_column("settlement_lines", column)
