"""Whatever goes wrong around a stage's pod, it ends in a verified record or in a clear failure, with one pod at a time and none left."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_mlops.hooks.kubernetes import StagePod
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.stages.pod import Outcome, PodSpec
from tests.kubernetes.fake_api import PODS, FakeApi
from tests.kubernetes.schedules import Counts, Make, Schedule, World, drawn, playing

Play = Callable[[Schedule, Make], Counts]
CALM = Schedule("good", deferrable=False, late=0, fates=(), deaths={}, faults={})


def stage(world: World, kind: type[StagePodOperator] = StagePodOperator) -> StagePodOperator:
    return kind(
        task_id="t",
        stage="scripted",
        spec={"action": "leave_file"},
        pod_spec=PodSpec("stages", world.namespace, cpu="100m", memory="64Mi", memory_ladder=("128Mi",)),
        config_file=str(world.api.kubeconfig),
        kubernetes_conn_id=None,
        in_cluster=False,
        deferrable=world.schedule.deferrable,
        poll_interval=0,
        startup_check_interval_seconds=0,
        log_events_on_startup=False,
    )


@pytest.fixture
def player(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: ModuleType, workspace: Path, ledger: Store) -> Iterator[Play]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with FakeApi(tmp_path) as api, playing(api) as play:
        yield play


def test_every_schedule_keeps_what_is_promised(player: Play) -> None:
    ended = [(player(schedule, stage), schedule) for schedule in drawn(25)]
    assert [(schedule, counts.broken()) for counts, schedule in ended if counts.broken()] == []
    assert sum(counts.succeeded for counts, _ in ended) > len(ended) // 4, "most of these programs are good"


def ends(player: Play, program: str, deferrable: bool, kind: type[StagePodOperator] = StagePodOperator) -> Iterator[tuple[Counts, World]]:
    """Play a program once for each of the task's last requests, at which its worker dies."""
    worlds: list[World] = []

    def make(world: World) -> StagePodOperator:
        worlds.append(world)
        return stage(world, kind)

    calm = replace(CALM, program=program, deferrable=deferrable)
    player(calm, make)
    last = worlds[-1].calls
    for number in range(last - 2, last + 1):
        for answered in (False, True):
            yield player(replace(calm, deaths={number: answered}), make), worlds[-1]


@pytest.mark.parametrize(("program", "deferrable"), [("fails", False), ("fails", True), ("spoiled", False), ("silent", True)])
def test_wherever_a_worker_dies_a_program_that_failed_runs_once_and_its_pod_goes(player: Play, program: str, deferrable: bool) -> None:
    for counts, world in ends(player, program, deferrable):
        assert (counts.succeeded, counts.broken(), len(world.pods)) == (0, {}, 1)
        assert all("deletionTimestamp" in each["metadata"] for each in world.api.store.list(PODS, world.namespace))


class BuriesFirst(StagePodOperator):
    def _settle(self, outcome: Outcome, pod: Any, failure: str = "") -> None:
        self._take_away(pod, outcome)
        super()._settle(outcome, None, failure)


def test_an_operator_that_deletes_before_it_remembers_runs_a_failed_program_again(player: Play) -> None:
    assert any(counts.failed_again or len(world.pods) > 1 for counts, world in ends(player, "fails", False, BuriesFirst))


class BelievesThePhase(StagePodOperator):
    def _conclude(self, context: Any, *, timed_out: bool = False) -> dict[str, Any] | None:
        pod = self._pod.seen()
        return {} if pod is not None and pod.status.phase == "Succeeded" else super()._conclude(context, timed_out=timed_out)


class NamesAtRandom(StagePodOperator):
    def _prepare(self, context: Any) -> None:
        super()._prepare(context)
        self._name = f"pod-{uuid.uuid4().hex}"
        self._pod = StagePod(self.client, self.pod_spec.namespace, self._name, self.log.warning)


class LeavesItsPod(StagePodOperator):
    def on_kill(self) -> None:
        """Leave it."""


class SpendsRetries(StagePodOperator):
    def _settle(self, outcome: Outcome, pod: Any) -> None:
        super()._settle(outcome, pod)
        if outcome == Outcome.INTERRUPTED:
            raise AirflowException("the pod was taken away")


class TriesAgain(StagePodOperator):
    def _settle(self, outcome: Outcome, pod: Any, failure: str = "") -> None:
        super()._settle(outcome, pod)  # and forget why

    def _conclude(self, context: Any, *, timed_out: bool = False) -> dict[str, Any] | None:
        try:
            return super()._conclude(context, timed_out=timed_out)
        except AirflowFailException as error:
            raise AirflowException("perhaps it works the next time") from error


class TrainsAnew(StagePodOperator):
    def _prepare(self, context: Any) -> None:
        super()._prepare(context)
        self._record = self._directory / "alone" / "result.json"  # so each attempt has its checkpoints for itself
        self._record.parent.mkdir(exist_ok=True)


class TellsAnew(StagePodOperator):
    def trigger_reentry(self, context: Any, event: dict[str, Any]) -> Any:
        return super().trigger_reentry(context, event | {"told": {}})


BROKEN = {
    "silent_successes": (BelievesThePhase, replace(CALM, program="silent")),
    "duplicates": (NamesAtRandom, replace(CALM, deaths={2: True})),
    "orphans": (LeavesItsPod, replace(CALM, program="hangs")),
    "retries_spent": (SpendsRetries, replace(CALM, fates=(("evicted", 5),))),
    "lost_work": (TrainsAnew, replace(CALM, fates=(("evicted", 8),))),
    "garbled_logs": (TellsAnew, replace(CALM, deferrable=True)),
    "failed_again": (TriesAgain, replace(CALM, program="fails")),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_an_operator_that_breaks_a_promise_is_seen_to_do_so(player: Play, promise: str) -> None:
    broken, schedule = BROKEN[promise]
    assert player(schedule, stage).broken() == {}
    assert promise in player(schedule, lambda world: stage(world, broken)).broken()
