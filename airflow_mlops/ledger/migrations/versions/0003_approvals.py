"""What people were asked to approve, and who did."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "approval_requests",
        sa.Column("release", sa.String(500), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("binding", sa.String(80), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("outcome", sa.String(20), nullable=True),
    )
    op.create_table(
        "approvals",
        sa.Column("release", sa.String(500), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("approver", sa.String(250), primary_key=True),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("answered_at", TIME, nullable=False),
    )
