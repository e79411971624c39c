"""Messages to people, in the order in which they were asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "messages",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(500), nullable=False, unique=True),
        sa.Column("messenger", sa.String(250), nullable=False),
        sa.Column("channel", sa.String(250), nullable=False),
        sa.Column("message", sa.JSON, nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("not_before", TIME, nullable=True),
        sa.Column("problem", sa.Text, nullable=True),
        sa.Column("sent_at", TIME, nullable=True),
        sa.Column("sent_to", sa.String(500), nullable=True),
    )
