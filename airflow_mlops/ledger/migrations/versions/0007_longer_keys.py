"""Keys that are made of the names of a model, a DAG, a run and a task hold the longest of them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

KEYS = [("effects", "key"), ("reigns", "intent"), ("approval_requests", "release"), ("approvals", "release"), ("messages", "key")]


def upgrade() -> None:
    """Apply it; SQLite changes a column by copying its table."""
    for table, column in KEYS:
        with op.batch_alter_table(table) as batch:
            batch.alter_column(column, existing_type=sa.String(500), existing_nullable=False, type_=sa.String(1_100))
