"""Aliases of models in MLflow: wait for one, and turn each of its moves into an asset event.

MLflow's client blocks, takes over a second to import, and finds its token in the process's environment only. So one thread of its own asks it
for all triggers of a triggerer: no look sees the token of another connection, and an MLflow that hangs holds up neither the event loop nor the
threads of other triggers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent
from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.registry.base import CHAMPION

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_mlops.ledger.store import Store
    from airflow_mlops.registry.aliases import Seen, Wish

T = TypeVar("T")
log = logging.getLogger(__name__)
_MLFLOW = ThreadPoolExecutor(1, thread_name_prefix="mlflow")


def ask(wish: Wish, mlflow: Connection, ledger: Connection | None) -> Seen:
    """Ask MLflow, and `ledger`, which only a wish for a change needs; that one of them does not answer is something to see, too."""
    from airflow_mlops.registry import aliases

    try:
        registry = MlflowHook.open(mlflow)
        if ledger is None:
            return aliases.look(wish, registry)
        with MlopsLedgerHook.open(ledger) as store:
            return aliases.look(wish, registry, store)
    except MlopsError as error:
        if not error.retryable:
            raise
        return aliases.Seen(problem=str(error))


class MlflowModelAliasTrigger(BaseTrigger):
    """Yields ``{"version": ..., "reason": None, "timed_out": False}`` when an alias is where it was wished, or with the reason why it is not.

    :param model: the registered model.
    :param alias: its alias.
    :param version: version the alias must be on, a number or its decimal text; None: any.
    :param since: intent under which the ledger keeps the first version that was seen; the alias must leave it. None: it need not move.
    :param deadline: when to give up, in epoch seconds.
    :param poll_interval_seconds: 30: people and releases move aliases, and neither is faster.
    """

    def __init__(
        self,
        model: str,
        alias: str,
        version: int | str | None,
        since: str | None,
        deadline: float,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        poll_interval_seconds: float = 30.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.alias = alias
        self.version = version
        self.since = since
        self.deadline = deadline
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id
        self.poll_interval_seconds = poll_interval_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("model", "alias", "version", "since", "deadline", "mlflow_conn_id", "ledger_conn_id", "poll_interval_seconds")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until the wish came true or the deadline is over; an error that no wait can help is an event, for only the task can explain it."""
        try:
            version, reason = await self._outcome()
        except MlopsError as error:
            yield TriggerEvent({"version": None, "reason": str(error), "timed_out": False})
        else:
            yield TriggerEvent({"version": version, "reason": reason, "timed_out": version is None})

    async def _outcome(self) -> tuple[int | None, str | None]:
        from airflow_mlops.registry import aliases

        wish = aliases.Wish(self.model, self.alias, aliases.version_of(self.version), self.since)
        mlflow = await MlflowHook(self.mlflow_conn_id).aget_connection(self.mlflow_conn_id)
        ledger = await MlopsLedgerHook(self.ledger_conn_id).aget_connection(self.ledger_conn_id) if self.since else None
        while True:
            action = aliases.decide(wish, await _of_mlflow(ask, wish, mlflow, ledger), time.time(), self.deadline)
            if isinstance(action, aliases.Reached):
                return action.version, None
            if isinstance(action, aliases.TimedOut):
                return None, action.reason
            await asyncio.sleep(max(0.0, min(self.poll_interval_seconds, self.deadline - time.time())))


class MlflowModelAliasEventTrigger(BaseEventTrigger):
    """Fires for every move of an alias that a look finds, in order; the ledger remembers what was told, across restarts of the triggerer.

    Payload: ``{"model", "alias", "version", "previous", "change"}``, where a version is None when the alias is on none, and `change` is 1, 2, 3
    and so on. A move and its way back between two looks are not seen, nor is what was before the first look. Only a triggerer that dies between
    Airflow's storing the event and the ledger's sends it twice, with the same `change`.

    :param model: the registered model.
    :param alias: its alias.
    :param poll_interval_seconds: 30: a look is two requests to MLflow. Triggers that differ in any parameter remember each for itself.
    """

    def __init__(
        self,
        model: str,
        alias: str = CHAMPION,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        poll_interval_seconds: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.alias = alias
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id
        self.poll_interval_seconds = poll_interval_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("model", "alias", "mlflow_conn_id", "ledger_conn_id", "poll_interval_seconds")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Serve as a plain trigger, without acknowledgements: a change counts as told as soon as the next one is asked for."""
        async with contextlib.aclosing(AliasChanges(**self.serialize()[1])) as producer:
            async for payload, change in producer.open_stream():
                yield TriggerEvent(payload)
                await producer.remember(change)

    def shared_stream_key(self) -> Hashable:
        return self.serialize()[0], *self.serialize()[1].values()

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        return AliasChanges(**kwargs)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        async for payload in shared_stream:
            yield TriggerEvent(payload)


class AliasChanges(SharedStreamProducer):
    """The polling half of `MlflowModelAliasEventTrigger`, with its parameters: one change at a time, remembered when Airflow has stored it."""

    def __init__(self, model: str, alias: str, mlflow_conn_id: str, ledger_conn_id: str, poll_interval_seconds: float) -> None:
        self.model = model
        self.alias = alias
        self.mlflow = MlflowHook(mlflow_conn_id)
        self.ledger = MlopsLedgerHook(ledger_conn_id)
        self.poll_interval_seconds = poll_interval_seconds
        # As Airflow takes triggers for different ones: they must not take each other's changes.
        self.key = f"alias:{mlflow_conn_id}:{model}:{alias}:{poll_interval_seconds:g}"
        self._pending = False
        self._store: Store | None = None
        self._server: Connection | None = None

    async def open_stream(self) -> AsyncIterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield (payload, change) of every change that was not told; look again and again for ever."""
        while True:
            if not self._pending and (found := await self._look()) is not None:
                self._pending = True
                yield {"model": self.model, "alias": self.alias, **found}, found
            await asyncio.sleep(self.poll_interval_seconds)

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Remember the change whose event Airflow has stored; look anew for one whose event it has not."""
        for item in batch:
            if item.outcome.is_clean:
                await self.remember(item.broker_payload)
            self._pending = False

    async def remember(self, change: dict[str, Any]) -> None:
        """Write `change` into the ledger as told."""
        from airflow_mlops.ledger import journal

        told = {"version": change["version"], "change": change["change"]}
        await asyncio.to_thread(journal.remember, await self._ledger(), self.key, "alias-told", told)
        self._pending = False

    async def aclose(self) -> None:
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    async def _look(self) -> dict[str, Any] | None:
        try:
            return await self._change()
        except MlopsError as error:
            if not error.retryable:
                raise
            log.warning("%s Trying again in %g s.", error, self.poll_interval_seconds)
            return None

    async def _change(self) -> dict[str, Any] | None:
        from airflow_mlops.ledger import journal
        from airflow_mlops.registry import aliases

        version = await _of_mlflow(self._version, await self._connection())
        known = await asyncio.to_thread(journal.known, await self._ledger(), self.key)
        if known is None:  # the first look ever: nothing has changed yet
            await self.remember({"version": version, "change": 0})
            return None
        return aliases.change(known, version)

    def _version(self, connection: Connection) -> int | None:
        return MlflowHook.open(connection).aliases(self.model).get(self.alias)

    async def _connection(self) -> Connection:
        if self._server is None:
            self._server = await self.mlflow.aget_connection(self.mlflow.mlflow_conn_id)
        return self._server

    async def _ledger(self) -> Store:
        if self._store is None:
            self._store = await self.ledger.aget_conn()
        return self._store


async def _of_mlflow(look: Callable[..., T], *about: Any) -> T:
    """Return what `look` finds, in the one thread that asks MLflow."""
    return await asyncio.get_running_loop().run_in_executor(_MLFLOW, look, *about)
