"""Which rows an event of the trail states, and why an effect failed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply it."""
    op.add_column("effects", sa.Column("problem", sa.Text, nullable=True))
    op.add_column("audit_events", sa.Column("scope", sa.String(80), nullable=True))
    op.create_index("ix_audit_events_scope", "audit_events", ["scope"])
