"""A queue that nothing leaves is told apart from one that is empty, moves, or is not seen."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.local.stall import Queue, Seen, Stall, Watch


def told(seen: list[Seen | None], seconds: float = 10.0) -> list[float]:
    """Return when (in seconds) the queue was said to stand still, looked at every 10 s."""
    stall = Stall(stall_seconds=60, busy_seconds=300)
    return [index * seconds for index, one in enumerate(seen) if stall.stands(one, index * seconds)]


def seen(*queued: str, running: int = 0) -> Seen:
    return Seen(frozenset(queued), running)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([seen()] * 30, []),
        ([seen(running=4)] * 30, []),
        ([seen("a")] * 6, []),
        ([seen("a")] * 7, [60.0]),
        ([seen(), seen("a"), *[seen("a", "b")] * 6], [70.0]),
        ([seen("a")] * 15, [60.0, 130.0]),
        ([seen(str(number), str(number + 1)) for number in range(30)], []),
        ([seen("a")] * 6 + [seen("b")] * 6, []),
        ([seen("a")] * 6 + [seen()] + [seen("a")] * 6, []),
        ([seen("a")] * 5 + [None] + [seen("a")] * 6, []),
        ([None] * 30, []),
        ([seen("a", running=1)] * 30, []),
        ([seen("a", running=1)] * 32, [300.0]),
    ],
    ids=[
        "empty",
        "all workers are at work",
        "not yet",
        "nothing leaves it",
        "what comes is no movement",
        "what was restarted has its time",
        "it moves",
        "one left it, another came",
        "it was empty in between",
        "a missing answer starts over",
        "nothing is seen",
        "what runs is not interrupted at once",
        "and yet in the end",
    ],
)
def test_stands(seen: list[Seen | None], expected: list[float]) -> None:
    assert told(seen) == expected


class Api:
    """Airflow's REST API, as far as the queue is concerned."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def call(self, method: str, path: str) -> Any:
        assert (method, path.partition("?")[0]) == ("GET", "/dags/~/dagRuns/~/taskInstances")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"task_instances": [{"id": key, "state": state} for key, state in answer]}


def test_the_queue_is_what_airflow_says_and_a_login_that_has_expired_is_made_again() -> None:
    apis = [Api([("a", "queued"), ("b", "running")], MlopsError("401")), Api(httpx.ConnectError("down")), Api([])]
    queue = Queue(lambda: apis.pop(0))  # type: ignore[arg-type,return-value]
    assert [queue.look() for _ in range(4)] == [seen("a", running=1), None, None, seen()]


def test_a_watch_says_once_that_the_queue_stood_still() -> None:
    looked = threading.Semaphore(0)

    def observe() -> Seen:
        looked.release()
        return seen("a")

    watch = Watch(observe, stall=Stall(stall_seconds=0.0), look_seconds=0.01)
    for _ in range(3):
        assert looked.acquire(timeout=60)
    assert watch.stalled()
