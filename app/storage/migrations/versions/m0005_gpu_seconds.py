"""The accelerator time that each model of a settlement took."""

from alembic import op
from sqlalchemy import BigInteger, Column

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("settlement_lines", Column("gpu_us", BigInteger))
