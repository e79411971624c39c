"""The ledger's tables. A change here needs a migration in ``migrations/versions``; a test compares the two.

A table that decides something names its `SCOPE`: the columns by which its rows are looked for in the audit trail, which states each of them.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

METADATA = sa.MetaData()
SCOPE = "scope"
KEY_LENGTH = 1_100  # a model, a DAG, a run and a task, whose names have up to 250 characters each


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time with its zone; SQLite forgets the zone, and all times here are UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        return datetime

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


DATASET_VERSIONS = sa.Table(
    "dataset_versions",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("key", sa.String(500), primary_key=True),  # its digest; for a version that arrived broken a key of its own
    sa.Column("digest", sa.String(80), nullable=True),
    sa.Column("name", sa.String(255), nullable=False),  # of a directory, which may be this long
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("problem", sa.Text, nullable=True),  # why a version that arrived broken was announced as broken
    sa.Column("announced_at", UtcDateTime, nullable=False),
    info={SCOPE: ("dataset", "key")},
)

ORDER = sa.Table(
    "dataset_order",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    # 1, 2, 3... as the manifests of a dataset were first seen: the highest is the newest. 0, -1... were announced before there was an order.
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("dataset", "number"),
    info={SCOPE: ("dataset",)},
)

OFFERS = sa.Table(
    "dataset_offers",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("offered_at", UtcDateTime, nullable=False),  # when Airflow stored an event of it again
    info={SCOPE: ("dataset", "digest")},
)

TURNS = sa.Table(
    "dataset_turns",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("purpose", sa.String(501), primary_key=True),  # the DAG id of a pipeline that a version's event started a run of
    sa.Column("run_id", sa.String(250), nullable=False),
    sa.Column("taken_at", UtcDateTime, nullable=False),
    info={SCOPE: ("dataset", "digest")},
)

CLAIMS = sa.Table(
    "dataset_claims",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("purpose", sa.String(501), primary_key=True),  # the DAG id of who wants the version; of a repeated run "DAG id/run id"
    sa.Column("run_id", sa.String(250), nullable=False),
    sa.Column("claimed_at", UtcDateTime, nullable=False),
    info={SCOPE: ("dataset", "digest")},
)

REJECTIONS = sa.Table(
    "dataset_rejections",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),  # in the words of the validation that saw it last
    sa.Column("rejected_at", UtcDateTime, nullable=False),
    info={SCOPE: ("dataset", "digest")},
)

EFFECTS = sa.Table(
    "effects",
    METADATA,
    sa.Column("key", sa.String(KEY_LENGTH), primary_key=True),
    sa.Column("kind", sa.String(80), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("applied_at", UtcDateTime, nullable=True),
    sa.Column("read_back_at", UtcDateTime, nullable=True),  # when what was applied was also seen
    sa.Column("problem", sa.Text, nullable=True),  # why the last try to apply it failed; None again while another one is under way
    info={SCOPE: ("key",)},
)

REIGNS = sa.Table(
    "reigns",
    METADATA,
    sa.Column("model", sa.String(250), primary_key=True),
    sa.Column("token", sa.BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3...: who inserts the next one is champion
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("previous", sa.BigInteger, nullable=True),
    sa.Column("intent", sa.String(KEY_LENGTH), nullable=False, unique=True),
    sa.Column("digest", sa.String(80), nullable=True),  # of the model's files, as they were evaluated
    sa.Column("since", UtcDateTime, nullable=False),
    info={SCOPE: ("model",)},
)

AUDIT_EVENTS = sa.Table(
    "audit_events",
    METADATA,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(80), nullable=False, index=True),
    sa.Column("subject", sa.String(300), nullable=False, index=True),
    sa.Column("scope", sa.String(80), nullable=True, index=True),  # digest of the scope of the rows that the event states, if it does
    sa.Column("line", sa.Text, nullable=False),  # the event as it is exported; what else this row says is for searching
)

APPROVAL_REQUESTS = sa.Table(
    "approval_requests",
    METADATA,
    sa.Column("release", sa.String(KEY_LENGTH), primary_key=True),  # "DAG id/run id" of the release
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),  # 1, 2, 3...: one that ended without approval is asked anew
    sa.Column("binding", sa.String(80), nullable=False),  # digest of what is to be approved
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("outcome", sa.String(20), nullable=True),  # None while it is open
    info={SCOPE: ("release",)},
)

APPROVALS = sa.Table(
    "approvals",
    METADATA,
    sa.Column("release", sa.String(KEY_LENGTH), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("approver", sa.String(250), primary_key=True),  # so that nobody counts twice
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("answered_at", UtcDateTime, nullable=False),
    info={SCOPE: ("release",)},
)

MESSAGES = sa.Table(
    "messages",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),  # the order in which they are sent
    sa.Column("key", sa.String(KEY_LENGTH), nullable=False, unique=True),  # one message for one transition
    sa.Column("messenger", sa.String(250), nullable=False),  # the connection
    sa.Column("channel", sa.String(250), nullable=False),
    sa.Column("message", sa.JSON, nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("not_before", UtcDateTime, nullable=True),  # until then its sender has it, or the messenger wants to be left alone
    sa.Column("problem", sa.Text, nullable=True),  # why the last attempt failed
    sa.Column("sent_at", UtcDateTime, nullable=True),
    sa.Column("sent_to", sa.String(500), nullable=True),
)
