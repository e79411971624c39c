"""In which order dataset versions were seen, which were offered again, and which runs of their events have begun."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "dataset_order",
        sa.Column("dataset", sa.String(250), primary_key=True),
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("dataset", "number"),
    )
    op.create_table(
        "dataset_offers",
        sa.Column("dataset", sa.String(250), primary_key=True),
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("offered_at", TIME, nullable=False),
    )
    op.create_table(
        "dataset_turns",
        sa.Column("dataset", sa.String(250), primary_key=True),
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("purpose", sa.String(501), primary_key=True),
        sa.Column("run_id", sa.String(250), nullable=False),
        sa.Column("taken_at", TIME, nullable=False),
    )
