"""The tables of the first releases, which made them without a migration: what is there already stays."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "dataset_versions",
        sa.Column("dataset", sa.String(250), primary_key=True),
        sa.Column("key", sa.String(500), primary_key=True),
        sa.Column("digest", sa.String(80), nullable=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("problem", sa.Text, nullable=True),
        sa.Column("announced_at", TIME, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "dataset_claims",
        sa.Column("dataset", sa.String(250), primary_key=True),
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("purpose", sa.String(501), primary_key=True),
        sa.Column("run_id", sa.String(250), nullable=False),
        sa.Column("claimed_at", TIME, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "dataset_rejections",
        sa.Column("dataset", sa.String(250), primary_key=True),
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("rejected_at", TIME, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "effects",
        sa.Column("key", sa.String(500), primary_key=True),
        sa.Column("kind", sa.String(80), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("applied_at", TIME, nullable=True),
        if_not_exists=True,
    )
