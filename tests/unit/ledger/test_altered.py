"""Whatever is done by hand to a row of the ledger, the audit trail says that it was not so, and nothing is decided by that row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_mlops.exceptions import AuditTrailBroken, LedgerAltered, LedgerError, MlopsError
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.ledger import approvals, chain, champions, datasets, journal, migrations, rows
from airflow_mlops.ledger.approvals import Answer, Subject
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store, now
from airflow_mlops.ledger.tables import AUDIT_EVENTS, METADATA
from tests.fakes import dataset_version

SUBJECT = Subject("digits", 7, 6, "tf_serving_default/stable", {"model_digest": "sha256:m", "dataset_digest": "sha256:d", "evidence_digest": "x"})
NOT_HELD = {
    "audit_events": "it is the trail itself, whose lines are chained",
    "messages": "messages repeat what the trail says; nothing is decided by them",
}
TABLES = sorted(rows.DECIDING)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A ledger with rows in every table, written in every way there is; a test that alters it restores it."""
    with contextlib.ExitStack() as closing:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('altered')}/ledger.db"
        else:
            url = closing.enter_context(request.getfixturevalue("postgresql").database())
        store = Store(url)
        closing.callback(store.close)
        _fill(store)
        yield store


def _fill(store: Store) -> None:
    for version, previous in ((1, None), (2, 1), (3, 2)):
        champions.crown(store, Claim(f"promote:{version}", "digits", version, previous, digest=f"sha256:{version}", actor="ann"))
    champions.crown(store, Claim("adopt", "letters", 4, None, kind="adopted"))
    for run, people in (("one", ("cleo", "dan")), ("two", ("eve",))):
        approvals.ask(store, f"digits_release/{run}", SUBJECT, ApprovalPolicy(num_approvals=2), ("bob",))
        for person in people:
            approvals.answer(store, f"digits_release/{run}", Answer(person, person, True, now(), "fine"), SUBJECT)
    approvals.expire(store, "digits_release/two")
    for name in ("v1", "v2", "v3"):
        version = dataset_version(name, digest=f"sha256:{name}")
        datasets.announce(store, version)
        datasets.announce(store, version)
        datasets.claim(store, version, purpose="digits_on_dataset", run_id=f"run {name}")
        datasets.record_verdict(store, version, rejected_because="too few rows")
    datasets.record_verdict(store, dataset_version("v1", digest="sha256:v1"), rejected_because=None)
    datasets.announce_broken(store, "digits", "broken:v4", "v4", "no manifest")
    served = chain.Event("served", "digits@2", "digits_release/one", {"label": "stable"})
    for version in (2, 3):
        journal.once(store, f"plan:{version}", "plan-rollout", {"model": "digits", "version": version}, lambda: {"previous": 1})
        journal.once(store, f"switch:{version}", "switch", {"model": "digits", "version": version}, lambda: {"previous": 1}, event=served)
        journal.read_back(store, f"switch:{version}", lambda: None)
    with pytest.raises(ConnectionError):
        journal.once(store, "lost", "notify", {}, unanswered)
    journal.remember(store, "watcher", "alias-told", {"version": 2, "change": 1})
    journal.remember(store, "watcher", "alias-told", {"version": 3, "change": 2})


def unanswered() -> dict[str, Any]:
    raise ConnectionError("no answer")


def other_values(column: sa.Column[Any], value: Any) -> list[Any]:
    """Return other values that the column takes."""
    if isinstance(column.type, sa.JSON):
        more: list[Any] = [{}, {**(value or {}), "more": 1}]
    elif isinstance(value, datetime) or "Utc" in type(column.type).__name__:
        more = [(value or now()) + timedelta(microseconds=1), (value or now()) - timedelta(days=1)]
    elif isinstance(column.type, sa.Integer):
        more = [(value or 0) + 1000]
    else:
        more = [f"{value}x", f"{value} ".upper()]
    different = [other for other in more if other != value]
    return different if value is None or not column.nullable else [*different, sa.null()]


@contextlib.contextmanager
def done_by_hand(store: Store, statement: sa.Executable) -> Iterator[None]:
    """Do something to the ledger with its own engine, as whoever may write the database can, and put every table back afterwards."""
    with store.transaction() as connection:
        before = {table: connection.execute(sa.select(table)).mappings().all() for table in METADATA.sorted_tables}
        connection.execute(statement)
    try:
        yield
    finally:
        with store.transaction() as connection:
            for table, found in before.items():
                connection.execute(table.delete())
                if found:
                    connection.execute(table.insert(), [dict(row) for row in found])


def contents(store: Store, table: sa.Table) -> list[dict[str, Any]]:
    with store.transaction() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def this(table: sa.Table, row: dict[str, Any]) -> sa.ColumnElement[bool]:
    return sa.and_(*(column == row[column.name] for column in table.primary_key))


def unique(column: sa.Column[Any]) -> bool:
    """Return whether the database itself refuses to let two rows change places in `column`."""
    table = column.table
    assert isinstance(table, sa.Table)
    constraints = [one for one in table.constraints if isinstance(one, sa.UniqueConstraint)]
    return bool(column.unique) or any(column.name in one.columns for one in constraints)


def test_every_table_is_held_to_the_trail_or_says_why_not() -> None:
    assert set(rows.DECIDING) == set(METADATA.tables) - set(NOT_HELD)
    assert migrations.VERSION_TABLE not in METADATA.tables  # Alembic's, whose one value decides which scripts run


def test_an_untouched_ledger_is_what_its_trail_says(ledger: Store) -> None:
    assert all(contents(ledger, table) for table in [AUDIT_EVENTS, *rows.DECIDING.values()])
    assert rows.verify(ledger, [chain.head(ledger)]) == chain.head(ledger)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_of_every_row_that_is_changed_is_found(ledger: Store, name: str) -> None:
    table = METADATA.tables[name]
    num = 0
    for row in contents(ledger, table):
        for column in table.columns:
            for value in other_values(column, row[column.name]):
                with done_by_hand(ledger, table.update().where(this(table, row)).values({column.name: value})):
                    key = r"The row of table .* (is there, and no event|is missing)" if column.primary_key else rf"was changed .*{column.name}"
                    with pytest.raises(LedgerAltered, match=key) as caught:
                        rows.verify(ledger)
                    assert name in str(caught.value) and not caught.value.retryable
                num += 1
    assert num > len(table.columns)


@pytest.mark.parametrize("name", TABLES)
def test_a_row_that_is_deleted_inserted_or_changes_places_is_found(ledger: Store, name: str) -> None:
    table = METADATA.tables[name]
    found = contents(ledger, table)
    for row in found:
        with done_by_hand(ledger, table.delete().where(this(table, row))), pytest.raises(LedgerAltered, match=f"table {name} .* is missing"):
            rows.verify(ledger)
    key = next(column for column in table.primary_key if isinstance(column.type, sa.String))
    forged = {**found[0], key.name: "forged"} | ({"intent": "forged"} if name == "reigns" else {})
    with (
        done_by_hand(ledger, table.insert().values(forged)),
        pytest.raises(LedgerAltered, match=f"table {name} .*forged.* no event of the audit trail"),
    ):
        rows.verify(ledger)
    one, two = found[-2:]
    for column in (column for column in table.columns if not column.primary_key and not unique(column) and one[column.name] != two[column.name]):
        value = sa.case((this(table, one), sa.bindparam("a", two[column.name], column.type)), else_=sa.bindparam("b", one[column.name], column.type))
        both = table.update().where(this(table, one) | this(table, two)).values({column.name: value})
        with done_by_hand(ledger, both), pytest.raises(LedgerAltered, match=f"table {name} .*was changed"):
            rows.verify(ledger)
    with done_by_hand(ledger, table.delete()), pytest.raises(LedgerAltered, match=f"table {name} .* is missing"):
        rows.verify(ledger)


@pytest.mark.parametrize("column", AUDIT_EVENTS.columns.keys())
def test_every_column_of_every_event_that_is_changed_is_found_with_an_anchor(ledger: Store, column: str) -> None:
    anchor = chain.head(ledger)
    for row in contents(ledger, AUDIT_EVENTS):
        for value in other_values(AUDIT_EVENTS.c[column], row[column]):
            with done_by_hand(ledger, AUDIT_EVENTS.update().where(AUDIT_EVENTS.c.number == row["number"]).values({column: value})):
                with pytest.raises(AuditTrailBroken):
                    rows.verify(ledger, [anchor])


def test_what_differs_is_said_in_a_sentence_with_what_was_expected_and_what_to_do(ledger: Store) -> None:
    reigns = METADATA.tables["reigns"]
    with done_by_hand(ledger, reigns.update().where(reigns.c.token == 2).values(version=9)), pytest.raises(LedgerAltered) as caught:
        rows.verify(ledger)
    assert str(caught.value).startswith(
        "The row of table reigns with model 'digits', token 2 was changed since event 2 (promoted, digits@2) wrote it: version is 9 and was 2. "
        "Find out who could write there, and put the row back as the event says, or restore a backup of the ledger;"
    )


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_an_unreadable_time_or_json_is_found_too(ledger: Store) -> None:
    """PostgreSQL keeps no such thing in these columns."""
    for statement in ("UPDATE reigns SET since = 'soon'", "UPDATE effects SET result = '{'", "UPDATE reigns SET version = x'ff'"):
        with done_by_hand(ledger, sa.text(statement)), pytest.raises(LedgerAltered, match="was changed"):
            rows.verify(ledger)
    with done_by_hand(ledger, sa.text("UPDATE reigns SET since = 'soon'")), pytest.raises(LedgerAltered, match="since is"):
        champions.current(ledger, "digits")


def test_many_rows_that_differ_are_counted(ledger: Store) -> None:
    versions = METADATA.tables["dataset_versions"]
    more = [
        {"dataset": "digits", "key": str(number), "digest": None, "name": "x", "uri": "", "problem": None, "announced_at": now()}
        for number in range(30)
    ]
    with done_by_hand(ledger, versions.insert().values(more)), pytest.raises(LedgerAltered, match="And 20 more rows"):
        rows.verify(ledger)


def subject(store: Store) -> Any:
    return approvals.require(store, "digits_release/one", SUBJECT)


DECISIONS: list[tuple[str, str, Callable[[Store], Any]]] = [
    ("reigns", "version", lambda store: champions.current(store, "digits")),
    ("reigns", "digest", lambda store: champions.history(store, "digits")),
    ("reigns", "intent", lambda store: champions.crown(store, Claim("promote:4", "digits", 4, 3))),
    ("approval_requests", "outcome", subject),
    ("approval_requests", "request", subject),
    ("approvals", "approver", subject),
    ("effects", "result", lambda store: journal.known(store, "plan:2")),
    ("effects", "request", lambda store: journal.once(store, "plan:2", "plan-rollout", {"model": "digits", "version": 2}, dict)),
]


@pytest.mark.parametrize(("name", "column", "decide"), DECISIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_is_decided_by_a_row_that_the_trail_does_not_hold(ledger: Store, name: str, column: str, decide: Callable[[Store], Any]) -> None:
    table = METADATA.tables[name]
    decide(ledger)  # as long as it is untouched
    head = chain.head(ledger)
    for row in contents(ledger, table):
        if row.get("model") in ("digits", None) and row.get("release") in ("digits_release/one", None) and row.get("key") in ("plan:2", None):
            with done_by_hand(ledger, table.update().where(this(table, row)).values({column: other_values(table.c[column], row[column])[0]})):
                with pytest.raises(LedgerAltered, match="Nothing was done"):
                    decide(ledger)
            with done_by_hand(ledger, table.delete().where(this(table, row))), pytest.raises(LedgerError):
                decide(ledger)
    assert chain.head(ledger) == head


def test_an_outcome_that_was_granted_by_hand_releases_nothing(ledger: Store) -> None:
    requests = METADATA.tables["approval_requests"]
    by_hand = requests.update().where(requests.c.release == "digits_release/two").values(outcome="granted")
    with done_by_hand(ledger, by_hand), pytest.raises(LedgerAltered, match='outcome is "granted" and was "expired"'):
        approvals.require(ledger, "digits_release/two", SUBJECT)


def test_an_event_that_states_a_row_must_fit_the_event_after_it(ledger: Store) -> None:
    reign = chain.events(ledger, model="digits", kinds=["promoted"])[1]
    line = sa.func.replace(AUDIT_EVENTS.c.line, '"version":2', '"version":9')
    with done_by_hand(ledger, AUDIT_EVENTS.update().where(AUDIT_EVENTS.c.number == reign.number).values(line=line)):
        with pytest.raises(AuditTrailBroken, match="do not fit together"):
            champions.current(ledger, "digits")


def test_a_model_whose_reigns_were_deleted_is_not_forgotten(ledger: Store) -> None:
    reigns = METADATA.tables["reigns"]
    with done_by_hand(ledger, reigns.delete().where(reigns.c.model == "digits")):
        assert champions.models(ledger) == ["digits", "letters"]
        with pytest.raises(MlopsError, match="is missing"):
            champions.current(ledger, "digits")
