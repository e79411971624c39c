"""A triggerer with one trigger, beside the test."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.kubernetes.control_plane import eventually


class Triggerer:
    """Runs one trigger beside the test, until its event or until it is stopped."""

    def __init__(self, trigger: Any, pool: ThreadPoolExecutor) -> None:
        self._trigger, self._task = trigger, Future[asyncio.Task[Any]]()
        self.event: Future[dict[str, Any]] = pool.submit(asyncio.run, self._run())

    async def _run(self) -> dict[str, Any]:
        async def first() -> dict[str, Any]:
            return dict((await anext(self._trigger.run())).payload)

        self._loop = asyncio.get_running_loop()
        task = asyncio.create_task(first())
        self._task.set_result(task)
        return await task

    def stop(self, go_on: threading.Event | None = None) -> None:
        """Cancel the trigger; `go_on`, where its thread waits for that in the middle of a look, is set when the trigger knows."""
        self._loop.call_soon_threadsafe(self._task.result().cancel)
        if go_on:
            eventually(lambda: self._trigger._over or self._task.result().done())
            go_on.set()
        with pytest.raises(asyncio.CancelledError):
            self.event.result()
