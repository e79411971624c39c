"""What each task of a run handed over to those that follow, in the audit trail, so that they need not believe an XCom.

Whoever may edit XComs, clear tasks or mark them can write any reference; only a task that did its work writes here. A later task compares what
its XCom says with what the trail says, and uses the latter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import NotHandedOver
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import AUDIT_EVENTS
from airflow_mlops.names import shown

HANDED_OVER = "handed over"
_SUBJECT_LENGTH = 300  # of the trail's column


@dataclass(frozen=True)
class Task:
    """A task instance: `map_index` is -1 for one that is not mapped."""

    task_id: str
    map_index: int = -1
    try_number: int = 1


@dataclass(frozen=True)
class Handover:
    """What the trail's event `number` says that the task handed over."""

    number: int
    task: Task
    value: Any


Handovers = Mapping[str, Mapping[int, Handover]]  # the newest of each task, by task id and map index


def hand_over(store: Store, run: str, task: Task, value: Any, before: frozenset[str] = frozenset()) -> None:
    """Note that `task` of `run` (``DAG id/run id``) hands over `value`, JSON data, unless it did so last.

    :param before: all tasks before it; when one of them has done its work again since, the same value is handed over again.
    """
    handed = handed_over(store, run)
    last = handed.get(task.task_id, {}).get(task.map_index)
    if last is not None and _same(last.value, value) and not _later(handed, before, last.number):
        return
    about = {"task_id": task.task_id, "map_index": task.map_index, "try_number": task.try_number, "value": value}
    with store.transaction() as connection:
        chain.append(connection, chain.Event(HANDED_OVER, run[:_SUBJECT_LENGTH], run, about))


def handed_over(store: Store, run: str) -> Handovers:
    """Return what the tasks of `run` handed over, of each task the newest."""
    table, found = AUDIT_EVENTS.c, dict[str, dict[int, Handover]]()
    query = sa.select(table.line).where(table.kind == HANDED_OVER, table.subject == run[:_SUBJECT_LENGTH]).order_by(table.number)
    with store.transaction() as connection:
        events = [chain.parsed(line) for line in connection.scalars(query)]
    for event in events:
        if (event.kind, event.actor) == (HANDED_OVER, run):  # a long name is cut off in the subject
            said = event.details
            task = Task(said["task_id"], said["map_index"], said["try_number"])
            found.setdefault(task.task_id, {})[task.map_index] = Handover(event.number, task, said["value"])
    return {task_id: dict(sorted(of_task.items())) for task_id, of_task in found.items()}


def check(handed: Handovers, sources: Mapping[str, frozenset[str]]) -> None:
    """Raise `NotHandedOver` if one of the tasks `sources` did nothing in this run, or one of those before it did its work again since.

    :param sources: the tasks directly before this one, each with all tasks before it.
    """
    if missing := [source for source in sources if source not in handed]:
        raise NotHandedOver(
            f"Nothing was handed over in this run by {_named(missing)}: by the ledger it never succeeded. It was marked as success by hand, or "
            f"this ledger is not the one it wrote to. A mark is no result: clear {_named(missing)} with what follows, so that it runs."
        )
    for source, before in sources.items():
        if later := _later(handed, before, min(each.number for each in handed[source].values())):
            raise NotHandedOver(
                f"Task {later[0]!r} ran again after {source!r}, whose result was made from the earlier one. Clear {source!r} with what follows, so "
                "that all results belong together."
            )


def take(handed: Handovers, sources: Collection[str], value: Any) -> Any:
    """Return what a task before this one handed over and an XCom says to be `value`; of several that are mapped, a list of all.

    :raises NotHandedOver: none of the tasks `sources` handed over such a thing.
    """
    if isinstance(value, list):
        value = [one for one in value if one is not None]  # a mapped task that failed has no XCom
    for found in _offers(handed, sources):
        if _same(found, value):
            return found
    said = "; ".join(f"{source!r} handed over {shown(repr([each.value for each in handed[source].values()]))}" for source in sources)
    raise NotHandedOver(
        f"The XCom that this task reads says {shown(repr(value))}, but by the ledger {said or 'no task is before this one'}. It is not used: it was "
        f"altered or deleted, or a task was marked by hand. Clear {_named(sources)} with what follows, so that the XCom is written again."
    )


def _later(handed: Handovers, tasks: frozenset[str], number: int) -> list[str]:
    """Return those of `tasks` that handed over something after event `number`."""
    return sorted(task_id for task_id in tasks & handed.keys() if any(each.number > number for each in handed[task_id].values()))


def _offers(handed: Handovers, sources: Collection[str]) -> Iterator[Any]:
    for source in sources:
        found = handed[source]
        yield from (each.value for each in found.values())
        if set(found) != {-1}:
            yield [each.value for index, each in found.items() if index >= 0]


def _same(one: Any, other: Any) -> bool:
    try:
        return canonical_json(one) == canonical_json(other)
    except (TypeError, ValueError):  # whatever an XCom can hold that is no JSON
        return False


def _named(sources: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(sources))) or "the tasks before it"
