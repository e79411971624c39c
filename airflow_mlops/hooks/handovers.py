"""What a task hands over to those that follow, and takes from those before it: by the ledger, with an XCom as a reference and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_mlops.hooks.workspace import run_of
from airflow_mlops.ledger import handovers
from airflow_mlops.ledger.handovers import Task
from airflow_mlops.records import ResultRef, lineage
from airflow_mlops.results import from_data, to_data

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.store import Store


class HandsOver:
    """Marks the operators whose result the ledger holds: what comes after them asks for it there."""

    hands_over = True


def hand_over(store: Store, context: Context, value: Any) -> Any:
    """Note in the ledger what this task returns, for the tasks after it, and return it."""
    ti = context["ti"]
    task = Task(ti.task_id, ti.map_index if ti.map_index is not None else -1, ti.try_number)
    handovers.hand_over(store, run_of(context), task, value, _before(context["task"]))
    return value


def take(store: Store, context: Context, *values: Any) -> list[Any]:
    """Return what the tasks before this one handed over and XComs say to be `values`; without any, look whether those tasks did their work.

    :raises NotHandedOver: an XCom was altered, deleted or written by hand, or a task before this one did nothing.
    """
    task: Any = context["task"]
    direct = [task.dag.get_task(task_id) for task_id in sorted(task.upstream_task_ids)]
    sources = {one.task_id: _before(one) for one in direct if issubclass(getattr(one, "operator_class", type(one)), HandsOver)}
    handed = handovers.handed_over(store, run_of(context))
    handovers.check(handed, sources)
    return [handovers.take(handed, sources, value) for value in values]


def requested(store: Store, context: Context, parse: Callable[[], Any]) -> Any:
    """Return the typed spec of a stage; raise `NotHandedOver` unless all it refers to was handed over to this task."""
    from airflow_mlops.stages.runner import references

    take(store, context)  # before the spec is read, which has gaps where a task was marked by hand
    spec = parse()
    take(store, context, *references(spec))
    return spec


def evidence_refs(store: Store, context: Context, evaluation: Any, robustness: Any) -> dict[str, ResultRef]:
    """Return, by stage, the records of which an evaluation and a campaign are the last: of one training, and each handed over in this run.

    :raises NotHandedOver: an XCom was altered, or a record behind these is of another run, or not the newest of its task.
    :raises ResultInvalid: a record changed, or they are of two trainings.
    """
    taken = take(store, context, evaluation, robustness)
    refs = lineage(*(from_data(ResultRef, one, what="reference to a stage's result") for one in taken))
    handed = handovers.handed_over(store, run_of(context))
    for ref in refs.values():
        handovers.take(handed, handed, to_data(ref))
    return refs


def _before(task: Any) -> frozenset[str]:
    """Return all tasks before one, not only those directly before it."""
    return frozenset(task.get_flat_relative_ids(upstream=True))
