"""What Alembic runs: the scripts on the connection that `upgrade` was given, inside its transaction."""

from alembic import context

from airflow_mlops.ledger.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
