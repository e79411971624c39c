"""Dataset arrival as an event trigger: at least one asset event per complete dataset version, also across restarts of the triggerer.

The trigger uses Airflow's acknowledged streams: a version enters the ledger as announced only after Airflow has its event in the metadata
database. A triggerer that dies before that announces the version again after its restart, one that dies later never does; should it die
between the two, the event comes twice. The run's claim on the version (`airflow_mlops.ledger.datasets.claim`) then skips the second run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Hashable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

from airflow_mlops.data import arrival
from airflow_mlops.exceptions import MlopsError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.results import DatasetVersion, from_data, to_data

if TYPE_CHECKING:
    from airflow_mlops.ledger.datasets import Waiting
    from airflow_mlops.ledger.store import Store

log = logging.getLogger(__name__)


class DatasetVersionTrigger(BaseEventTrigger):
    """Fires for every complete version of a dataset that appears in an inbox, once unless a crash intervenes; its payload is the `DatasetVersion`.

    :param dataset: name of the dataset, as in the manifests.
    :param inbox: directory with one directory per version.
    :param ledger_conn_id: connection of type ``mlops_ledger``.
    :param poll_interval_seconds: 5: a look at an unchanged inbox costs its listing and the times of one manifest per version.
    :param settle_seconds: how long a version may differ from its manifest before it is reported as broken.
    """

    def __init__(
        self,
        dataset: str,
        inbox: str,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        poll_interval_seconds: float = 5.0,
        settle_seconds: float = 600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.inbox = inbox
        self.ledger_conn_id = ledger_conn_id
        self.poll_interval_seconds = poll_interval_seconds
        self.settle_seconds = settle_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("dataset", "inbox", "ledger_conn_id", "poll_interval_seconds", "settle_seconds")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Serve as a plain trigger, without acknowledgements: a version counts as announced as soon as the next one is asked for."""
        async with contextlib.aclosing(DatasetInbox(**self.serialize()[1])) as producer:
            async for version, key in producer.open_stream():
                yield TriggerEvent(version)
                await producer.remember(key)

    def shared_stream_key(self) -> Hashable:
        return self.serialize()[0], *self.serialize()[1].values()

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        return DatasetInbox(**kwargs)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        async for version in shared_stream:
            yield TriggerEvent(version)


class DatasetInbox(SharedStreamProducer):
    """The polling half of `DatasetVersionTrigger`, with its parameters: looks, asks the decider, remembers what Airflow has stored."""

    def __init__(self, dataset: str, inbox: str, ledger_conn_id: str, poll_interval_seconds: float, settle_seconds: float) -> None:
        self.dataset = dataset
        self.inbox = Path(inbox)
        self.hook = MlopsLedgerHook(ledger_conn_id)
        self.poll_interval_seconds = poll_interval_seconds
        self.policy = arrival.ArrivalPolicy(settle_seconds=settle_seconds)
        self._digest_of = arrival.DigestCache()
        self._heading_of = arrival.HeadingCache()
        self._told_of: set[tuple[str, str]] = set()
        self._pending: dict[str, DatasetVersion] = {}
        self._store: Store | None = None

    async def open_stream(self) -> AsyncIterator[tuple[dict[str, Any], str]]:
        """Yield (version as JSON data, key) of every complete version that was not announced; look again and again for ever."""
        from airflow_mlops.ledger.datasets import announce_broken

        while True:
            try:
                for found in await self._look():
                    if isinstance(found, arrival.AnnounceComplete):
                        self._pending[found.key] = found.version
                        yield to_data(found.version), found.key
                    else:
                        log.error("Dataset version %s arrived broken: %s", found.name, found.reason)
                        store = await self._ledger()
                        await asyncio.to_thread(announce_broken, store, self.dataset, found.key, found.name, found.reason)
            except MlopsError as error:
                if not error.retryable:
                    raise
                log.warning("%s Trying again in %g s.", error, self.poll_interval_seconds)
            await asyncio.sleep(self.poll_interval_seconds)

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Remember the versions whose events Airflow has stored; offer the others again."""
        for item in batch:
            if item.outcome.is_clean:
                await self.remember(item.broker_payload)
            else:
                self._pending.pop(item.broker_payload, None)

    async def remember(self, key: str) -> None:
        """Write the version under `key` into the ledger as announced."""
        from airflow_mlops.ledger.datasets import announce

        await asyncio.to_thread(announce, await self._ledger(), self._pending[key])
        del self._pending[key]

    async def aclose(self) -> None:
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    async def _look(self) -> tuple[arrival.Announcement, ...]:
        from airflow_mlops.ledger.datasets import announced, waiting

        store = await self._ledger()
        known = await asyncio.to_thread(announced, store, self.dataset) | self._pending.keys()
        now = time.time()
        untaken = await asyncio.to_thread(waiting, store, self.dataset)
        # What Airflow has not stored yet waits for a run, too.
        since = now if self._pending else untaken and untaken.since
        candidates = await asyncio.to_thread(self._scan, known)
        actions = arrival.decide(arrival.Observation(candidates, known, since), now, self.policy)
        if untaken and not any(isinstance(action, arrival.AnnounceComplete) for action in actions):
            self._tell_of_held([c for c in candidates if c.version], untaken)
        return actions

    def _scan(self, known: Set[str]) -> tuple[arrival.Candidate, ...]:
        def wanted(found: arrival.Heading) -> bool:
            return found.dataset == self.dataset and found.digest not in known

        return tuple(arrival.scan(self.inbox, wanted=wanted, digest_of=self._digest_of, heading_of=self._heading_of))

    def _tell_of_held(self, held: Sequence[arrival.Candidate], untaken: Waiting) -> None:
        """Log once for each version why it is not announced."""
        latest = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(untaken.since + self.policy.hold_seconds))
        for candidate in held:
            if (candidate.key, untaken.name) not in self._told_of:
                message = "%s %s has arrived and is held until a run has taken %s, which was announced before it; at the latest until %s."
                log.info(message, self.dataset, candidate.name, untaken.name, latest)
        self._told_of = {(candidate.key, untaken.name) for candidate in held}

    async def _ledger(self) -> Store:
        if self._store is None:
            self._store = await self.hook.aget_conn()
        return self._store


def version_of(payload: Any) -> DatasetVersion:
    """Return the dataset version that an asset event of this trigger carries."""
    return from_data(DatasetVersion, payload, what="payload of the dataset's asset event")
