"""Whatever is done to an exported trail, the verification finds it and names the place."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from airflow_mlops.exceptions import AuditTrailBroken, SpecError
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event, Head
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import AUDIT_EVENTS
from tests.trails import attacked

NUM = 20


@pytest.fixture
def trail(store: Store) -> list[bytes]:
    """An export of twenty events."""
    for number in range(NUM):
        with store.transaction() as connection:
            chain.append(connection, Event("promoted", f"digits@{number + 1}", "ann", {"why": "é\n\u2028 better", "gates": [1, 2.5, None]}))
    return list(chain.lines(store))


def rechained(lines: list[bytes]) -> list[bytes]:
    """Chain lines anew, as somebody who can write everything would."""
    previous, out = chain.GENESIS, []
    for number, line in enumerate(lines, 1):
        data = {**json.loads(line), "previous": previous, "number": number}
        out.append(json.dumps({"previous": data.pop("previous"), **data}, separators=(",", ":")).encode() + b"\n")
        previous = hashlib.sha256(out[-1]).hexdigest()
    return out


def test_a_line_is_json_and_begins_with_the_hash_of_the_line_before(trail: list[bytes]) -> None:
    first, second = map(json.loads, trail[:2])
    assert first["previous"] == chain.GENESIS
    assert second["previous"] == hashlib.sha256(trail[0]).hexdigest()
    assert (second["number"], second["kind"], second["subject"], second["actor"]) == (2, "promoted", "digits@2", "ann")
    assert second["details"] == {"why": "é\n\u2028 better", "gates": [1, 2.5, None]}
    assert second["at"].endswith("+00:00")


def test_a_whole_trail_has_the_head_of_the_ledger(store: Store, trail: list[bytes]) -> None:
    head = chain.head(store)
    assert head == Head(NUM, hashlib.sha256(trail[-1]).hexdigest())
    assert chain.verify(trail) == chain.verify(trail, [head]) == chain.verify(trail, [head, Head(0, chain.GENESIS), head]) == head
    assert chain.verify([]) == Head(0, chain.GENESIS)


def test_an_anchor_vouches_for_a_trail_that_has_grown_since(trail: list[bytes]) -> None:
    anchors = [chain.verify(trail[:number]) for number in (3, 11)]
    assert chain.verify(trail, anchors).number == NUM


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda lines: [*lines[:6], lines[6].replace(b"ann", b"bob"), *lines[7:]], r"Event 7 was altered: event 8 names another hash"),
        (lambda lines: [*lines[:6], *lines[7:]], r"Events 7 to 7 are missing before line 7"),
        (lambda lines: [*lines[:6], lines[3], *lines[6:]], r"Line 7 says that it is event 4: it was inserted"),
        (lambda lines: [*lines[:6], lines[7], lines[6], *lines[8:]], r"Events 7 to 7 are missing before line 7"),
        (lambda lines: [*lines[:6], b"\n", *lines[6:]], r"Line 7 is not an event any more"),
        (lambda lines: lines[:-2], r"ends after event 18; the anchor names event 20"),
        (lambda lines: [], r"ends after event 0"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], r"Event 20 has no end|Event 20 has the hash"),
        (
            lambda lines: rechained([lines[0].replace(b"ann", b"bob"), *lines[1:]]),
            r"Event 20 has the hash .* One of the events 1 to 20 was rewritten",
        ),
        (lambda lines: [lines[0].replace(b'"000', b'"100'), *lines[1:]], r"Event 1 was altered"),
        (lambda lines: [*lines[:-1], lines[-1].replace(b"ann", b"bob")], r"Event 20 has the hash"),
    ],
)
def test_damage_is_found_and_its_place_named(trail: list[bytes], damage: Callable[[list[bytes]], list[bytes]], place: str) -> None:
    with pytest.raises(AuditTrailBroken, match=place):
        chain.verify(damage(trail), [chain.verify(trail)])


def test_a_second_anchor_narrows_down_what_was_rewritten(trail: list[bytes]) -> None:
    anchors = [chain.verify(trail[:8]), chain.verify(trail)]
    with pytest.raises(AuditTrailBroken, match="One of the events 9 to 20 was rewritten"):
        chain.verify(trail[:8] + _rewritten(trail, 10), anchors)


def _rewritten(trail: list[bytes], number: int) -> list[bytes]:
    """The lines from 9 on, of which `number` says something else, chained so that only the anchor at the end can tell."""
    lines, previous = [], hashlib.sha256(trail[7]).hexdigest()
    for place in range(9, NUM + 1):
        line = trail[place - 1].replace(b"ann", b"bob") if place == number else trail[place - 1]
        lines.append(chain._BEGIN + previous.encode() + line[len(chain._BEGIN) + 64 :])
        previous = hashlib.sha256(lines[-1]).hexdigest()
    return lines


@pytest.mark.parametrize("seed", range(4))
def test_random_edits_truncations_and_rewrites_are_all_found(trail: list[bytes], seed: int) -> None:
    head, draw = chain.verify(trail), random.Random(seed)
    for _ in range(100):
        with pytest.raises(AuditTrailBroken):
            chain.verify(attacked(trail, draw), [head])


@pytest.mark.parametrize(
    "statement",
    [
        AUDIT_EVENTS.delete().where(AUDIT_EVENTS.c.number == 7),
        AUDIT_EVENTS.update().where(AUDIT_EVENTS.c.number == 7).values(subject="digits@9"),
        AUDIT_EVENTS.update().where(AUDIT_EVENTS.c.number == 7).values(kind="rejected"),
        AUDIT_EVENTS.update().where(AUDIT_EVENTS.c.number == 7).values(line="{}"),
        AUDIT_EVENTS.update().where(AUDIT_EVENTS.c.number == 7).values(line=sa.func.replace(AUDIT_EVENTS.c.line, "ann", "bob")),
    ],
)
def test_an_edit_in_the_database_is_found_too(store: Store, trail: list[bytes], statement: sa.Update) -> None:
    with store.transaction() as connection:
        connection.execute(statement)
    with pytest.raises(AuditTrailBroken, match=r"[Ee]vent 7|Row 8|no event"):
        chain.verify(chain.lines(store))


def test_an_event_whose_transaction_fails_never_happened(store: Store, trail: list[bytes]) -> None:
    def interrupted() -> None:
        with store.transaction() as connection:
            chain.append(connection, Event("promoted", "digits@99", "ann", {}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert chain.head(store).number == NUM


def test_events_are_found_by_model_and_kind(store: Store) -> None:
    for kind, subject in [("promoted", "a_b@1"), ("approved", "a_b@1"), ("promoted", "axb@1"), ("promoted", "a_b"), ("promoted", "A_B@1")]:
        with store.transaction() as connection:
            chain.append(connection, Event(kind, subject, "ann", {}))
    assert [event.subject for event in chain.events(store, model="a_b", kinds=["promoted"])] == ["a_b@1", "a_b"]
    assert len(chain.events(store)) == 5


def test_a_trail_of_more_rows_than_are_read_at_once_is_exported_whole(store: Store, trail: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (1, 7, NUM):
        monkeypatch.setattr(chain, "_ROWS_AT_ONCE", rows)
        assert list(chain.lines(store)) == trail


@pytest.mark.parametrize("text", ["", "7", "7:abc", f"x:{'0' * 64}", f"7:{'G' * 64}", f"-1:{'0' * 64}"])
def test_an_anchor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is no anchor; expected NUMBER:HASH"):
        Head.parse(text)


def test_an_anchor_is_read_as_it_is_written() -> None:
    head = Head(7, "ab" * 32)
    assert Head.parse(f" {head}\n") == head
