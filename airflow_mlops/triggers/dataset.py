"""Dataset arrival as an event trigger: at least one asset event per complete dataset version, also across restarts of the triggerer.

The trigger uses Airflow's acknowledged streams: a version enters the ledger as announced only after Airflow has its event in the metadata
database. A triggerer that dies before that announces the version again after its restart, one that dies later does not; should it die
between the two, the event comes twice. A version whose event brought no run is offered again, for Airflow drops events that come while a run
waits for its turn. The run's claim on the version (`airflow_mlops.ledger.datasets.claim`) skips the second run of whatever came twice.
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
from airflow_mlops.data.inbox import LOOK_SECONDS, Inbox
from airflow_mlops.exceptions import MlopsError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.results import DatasetVersion, from_data, to_data

if TYPE_CHECKING:
    from airflow_mlops.ledger.store import Store

log = logging.getLogger(__name__)


class DatasetVersionTrigger(BaseEventTrigger):
    """Fires for every complete version of a dataset that appears in an inbox, once unless a crash intervenes; its payload is the `DatasetVersion`.

    :param dataset: name of the dataset, as in the manifests.
    :param inbox: directory with one directory per version.
    :param ledger_conn_id: connection of type ``mlops_ledger``.
    :param poll_interval_seconds: 5: a look at an unchanged inbox costs its listing and the times of one manifest per version. A look that took
        longer is followed by a pause as long as it was.
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
        self._inbox = Inbox(self.inbox, look_seconds=LOOK_SECONDS)
        self._order: dict[str, int] = {}
        self._told_of: set[tuple[str, str]] = set()
        self._pending: dict[str, DatasetVersion] = {}
        self._store: Store | None = None

    async def open_stream(self) -> AsyncIterator[tuple[dict[str, Any], str]]:
        """Yield (version as JSON data, key) of every complete version that was not announced; look again and again for ever."""
        from airflow_mlops.ledger.datasets import announce_broken

        while True:
            began = time.monotonic()
            try:
                for found in await self._look():
                    if isinstance(found, arrival.AnnounceComplete):
                        self._pending[found.key] = found.version
                        if found.again:
                            log.warning("No run has taken %s %s, which was announced: it is offered again.", self.dataset, found.version.name)
                        yield to_data(found.version), found.key
                    else:
                        log.error("Dataset version %s arrived broken: %s", found.name, found.reason)
                        store = await self._ledger()
                        await asyncio.to_thread(announce_broken, store, self.dataset, found.key, found.name, found.reason)
            except MlopsError as error:
                if not error.retryable:
                    raise
                log.warning("%s Trying again in %g s.", error, self.poll_interval_seconds)
            await asyncio.sleep(max(self.poll_interval_seconds, time.monotonic() - began))

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
        return await asyncio.to_thread(self._decided, await self._ledger())

    def _decided(self, store: Store) -> tuple[arrival.Announcement, ...]:
        from airflow_mlops.ledger.datasets import announced, waiting

        known = announced(store, self.dataset) | self._pending.keys()
        candidates = self._candidates(store, known)
        # Asked for after the look, which may take long.
        untaken = tuple(arrival.Untaken(*one) for one in waiting(store, self.dataset))
        observation = arrival.Observation(candidates, known, self._order, untaken, bool(self._pending))
        actions = arrival.decide(observation, time.time(), self.policy)
        if untaken and not any(isinstance(action, arrival.AnnounceComplete) for action in actions):
            self._tell_of_held([candidate for candidate in candidates if candidate.version], untaken[-1])
        return actions

    def _candidates(self, store: Store, known: Set[str]) -> tuple[arrival.Candidate, ...]:
        """Look at what is there; give what was never seen before its number in the ledger."""
        from airflow_mlops.ledger.datasets import see

        mine = [one for one in self._inbox.listed() if one.heading is None or one.heading.dataset == self.dataset]
        seen = [one.heading.digest for one in mine if one.heading and not one.problem]
        if any(digest not in self._order for digest in seen):
            self._order = see(store, self.dataset, seen)
        return tuple(self._inbox.examine((one for one in mine if one.problem or one.heading is None or one.heading.digest not in known), known))

    def _tell_of_held(self, held: Sequence[arrival.Candidate], untaken: arrival.Untaken) -> None:
        """Log once for each version why it is not announced."""
        name = untaken.version.name
        latest = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(untaken.since + self.policy.hold_seconds))
        for candidate in held:
            if (candidate.key, name) not in self._told_of:
                message = "%s %s has arrived and is held until the run of %s has begun, which was announced before it; at the latest until %s."
                log.info(message, self.dataset, candidate.name, name, latest)
        self._told_of = {(candidate.key, name) for candidate in held}

    async def _ledger(self) -> Store:
        if self._store is None:
            self._store = await self.hook.aget_conn()
        return self._store


def version_of(payload: Any) -> DatasetVersion:
    """Return the dataset version that an asset event of this trigger carries."""
    return from_data(DatasetVersion, payload, what="payload of the dataset's asset event")
