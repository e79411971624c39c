"""Who was champion when, the audit trail, and when an effect was seen in place."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply it."""
    op.add_column("effects", sa.Column("read_back_at", TIME, nullable=True))
    op.create_table(
        "reigns",
        sa.Column("model", sa.String(250), primary_key=True),
        sa.Column("token", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("previous", sa.BigInteger, nullable=True),
        sa.Column("intent", sa.String(500), nullable=False, unique=True),
        sa.Column("digest", sa.String(80), nullable=True),
        sa.Column("since", TIME, nullable=False),
    )
    op.create_table(
        "audit_events",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(80), nullable=False, index=True),
        sa.Column("subject", sa.String(300), nullable=False, index=True),
        sa.Column("line", sa.Text, nullable=False),
    )
