"""Every version that arrives gets a run, and none two, whatever happens in between: hypothesis plays Airflow, people and crashes.

The ledger, the trigger's look with its decider, and the operator are the real ones. Airflow is played as its scheduler does it: one queued
event per DAG, whose time the first event decides, and a run of what came until then as soon as no more than `max_active_runs` are there.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_mlops.data.arrival import AnnounceComplete
from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.exceptions import DatasetNotFound
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.dataset import ClaimDatasetOperator
from airflow_mlops.results import DatasetVersion, to_data
from airflow_mlops.triggers import dataset as trigger
from tests.fakes import FakeTaskInstance, context

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
PIPELINES = st.sampled_from(["one", "two"])
QUARTER, DAYS = 15 * 60.0, 60


@dataclass
class Run:
    """A DAG run; `payloads` are those of its asset events, `events` of them."""

    dag_id: str
    run_id: str
    payloads: list[dict[str, Any]] = field(default_factory=list)
    by_event: bool = False
    version: str | None = None
    repeat: bool = False
    state: str = "queued"
    got: str | None = None


class Arrival(RuleBasedStateMachine):
    """Pipelines ``one`` and perhaps ``two``, which follow the same inbox."""

    @initialize(two=st.booleans(), max_active_runs=st.integers(1, 2))
    def start(self, two: bool, max_active_runs: int) -> None:
        self.home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.inbox = self.home / "inbox"
        self.inbox.mkdir()
        self.store = Store(f"sqlite:///{self.home}/ledger.db")
        self.clock = EPOCH
        self.dags = ["one", "two"] if two else ["one"]
        self.max_active_runs = max_active_runs
        self.published: list[DatasetVersion] = []
        self.events: list[tuple[datetime, dict[str, Any]]] = []
        self.queued: dict[str, datetime] = {}
        self.until: dict[str, datetime] = dict.fromkeys(self.dags, EPOCH - timedelta(days=1))
        self.runs: list[Run] = []
        self.hook = mock.patch("airflow_mlops.hooks.ledger.MlopsLedgerHook.get_conn", lambda _: Store(f"sqlite:///{self.home}/ledger.db"))
        watch = SimpleNamespace(time=lambda: self.clock.timestamp(), monotonic=time.monotonic, strftime=time.strftime, gmtime=time.gmtime)
        self.times = [mock.patch.object(datasets, "now", lambda: self.clock), mock.patch.object(trigger, "time", watch)]
        for patch in (self.hook, *self.times):
            patch.start()
        self.restart()

    def teardown(self) -> None:
        if not hasattr(self, "home"):
            return
        try:
            self.come_to_rest()
            self.require_that_nothing_is_lost()
        finally:
            for patch in (self.hook, *self.times):
                patch.stop()
            self.store.close()
            shutil.rmtree(self.home)

    # The world

    @precondition(lambda self: len(self.published) < 6)
    @rule()
    def publish(self) -> None:
        name = f"v{len(self.published) + 1}"
        self.published.append(publish_version({"a.csv": name.encode()}, self.inbox, name=name, dataset="digits"))

    @rule(seconds=st.sampled_from([1.0, QUARTER, 7 * 3600.0]))
    def wait(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)

    @rule()
    def restart(self) -> None:
        """The triggerer is new, and has forgotten what it had not written down."""
        self.watcher = trigger.DatasetInbox("digits", str(self.inbox), "mlops_ledger_default", 5.0, 600.0)

    @precondition(lambda self: self.published)
    @rule(crash=st.sampled_from(["", "", "", "before", "after"]))
    def look(self, crash: str = "") -> None:
        """The trigger looks; Airflow stores its event, unless the triggerer dies before that; and it dies before it knows, or does not."""
        for found in self.watcher._decided(self.store):
            if isinstance(found, AnnounceComplete) and crash != "before":
                self.tick()
                self.events.append((self.clock, to_data(found.version)))
                for dag_id in self.dags:
                    self.queued.setdefault(dag_id, self.clock)
                if not crash:
                    datasets.announce(self.store, found.version)
        if crash:
            self.restart()

    @precondition(lambda self: self.queued)
    @rule(dag_id=PIPELINES)
    def schedule(self, dag_id: str) -> None:
        """Make the run of the event that is queued; Airflow gives it the events until then and drops the later ones."""
        active = [run for run in self.runs if run.dag_id == dag_id and run.state in ("queued", "running")]
        if dag_id not in self.queued or len(active) >= self.max_active_runs:
            return
        until = self.queued.pop(dag_id)
        payloads = [payload for at, payload in self.events if self.until[dag_id] < at <= until]
        self.until[dag_id] = until
        self.runs.append(Run(dag_id, f"asset {len(self.runs)}", payloads, by_event=True))

    @rule(dag_id=PIPELINES, number=st.integers(0, 6), repeat=st.booleans())
    def trigger_by_hand(self, dag_id: str, number: int, repeat: bool) -> None:
        """A person starts a run, for a version or for the newest one."""
        if dag_id in self.dags:
            version = self.published[number - 1].name if 0 < number <= len(self.published) else None
            self.runs.append(Run(dag_id, f"manual {len(self.runs)}", version=version, repeat=repeat))

    @precondition(lambda self: any(run.state == "queued" for run in self.runs))
    @rule(which=st.integers(0, 100), dies=st.booleans())
    def begin(self, which: int, dies: bool) -> None:
        """The task ``claim`` of a queued run is run, or dies before it did anything."""
        queued = [run for run in self.runs if run.state == "queued"]
        run = queued[which % len(queued)]
        running = [other for other in self.runs if other.dag_id == run.dag_id and other.state == "running"]
        if len(running) < self.max_active_runs:
            run.state = "done" if dies else "running"
            if not dies:
                self.claim(run)

    @precondition(lambda self: any(run.state == "running" for run in self.runs))
    @rule(which=st.integers(0, 100))
    def finish(self, which: int) -> None:
        running = [run for run in self.runs if run.state == "running"]
        running[which % len(running)].state = "done"

    @precondition(lambda self: any(run.state == "done" for run in self.runs))
    @rule(which=st.integers(0, 100))
    def clear(self, which: int) -> None:
        done = [run for run in self.runs if run.state == "done"]
        done[which % len(done)].state = "queued"

    @precondition(lambda self: len(self.published) > 1)
    @rule(one=st.integers(0, 5), other=st.integers(0, 5))
    def forge(self, one: int, other: int) -> None:
        """An event is forged: the name of one version, the digest of another."""
        named, meant = (self.published[index % len(self.published)] for index in (one, other))
        if named != meant:
            self.tick()
            self.events.append((self.clock, to_data(dataclasses.replace(named, digest=meant.digest))))
            for dag_id in self.dags:
                self.queued.setdefault(dag_id, self.clock)

    # What must hold

    @invariant()
    def none_is_worked_on_twice_unless_asked(self) -> None:
        for dag_id in getattr(self, "dags", ()):
            got = [run.got for run in self.runs if run.dag_id == dag_id and run.got and not run.repeat]
            assert len(got) == len(set(got)), f"{dag_id} worked twice on one of {got}"

    def require_that_nothing_is_lost(self) -> None:
        """Every pipeline has every version since the first that it took an event of, and every version some pipeline."""
        owned = {dag_id: set(datasets.claimed(self.store, "digits", purpose=dag_id)) for dag_id in self.dags}
        assert {version.digest for version in self.published} <= set().union(*owned.values())
        number = datasets.numbers(self.store, "digits")
        for dag_id in self.dags:
            told = [payload for run in self.runs if run.by_event and run.dag_id == dag_id and run.got for payload in run.payloads]
            first = min((number[version.digest] for version in self.published if to_data(version) in told), default=len(number) + 1)
            assert {digest for digest, at in number.items() if at >= first} <= owned[dag_id], f"{dag_id} lost a version"

    def come_to_rest(self) -> None:
        """Let everyone work for some weeks; a full queue is worked off first."""
        for _ in range(DAYS * 24):
            before = self.seen()
            for run in self.runs:
                run.state = "done" if run.state == "running" else run.state
            for dag_id in self.dags:
                while queued := [run for run in self.runs if run.dag_id == dag_id and run.state == "queued"]:
                    self.claim(queued[0])
                    queued[0].state = "done"
                self.schedule(dag_id)
            self.look()
            self.wait(3600.0)
            if before == self.seen() and not datasets.waiting(self.store, "digits") and not self.queued:
                return
        raise AssertionError(f"There is no end: {datasets.waiting(self.store, 'digits')}")

    def seen(self) -> tuple[object, ...]:
        return len(self.runs), len(self.events), tuple(run.state for run in self.runs)

    def claim(self, run: Run) -> None:
        operator = ClaimDatasetOperator(task_id="claim", dataset="digits", inbox=str(self.inbox), version=run.version, repeat=run.repeat)
        extras = [{"from_trigger": True, "payload": payload} for payload in run.payloads]
        try:
            answer = operator.execute(context(FakeTaskInstance(run.dag_id, run.run_id), extras=extras))
        except (AirflowSkipException, AirflowFailException, DatasetNotFound):
            return  # the run has nothing to do, or a person is told why not
        assert run.got in (None, answer["digest"]), "a cleared run keeps its version"
        run.got = answer["digest"]

    def tick(self) -> None:
        self.clock += timedelta(microseconds=1)


Arrival.TestCase.settings = settings(
    max_examples=30, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, print_blob=True
)


class TestInterleavings(Arrival.TestCase):
    """Hypothesis chooses."""
