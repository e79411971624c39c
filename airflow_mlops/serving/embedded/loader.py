"""Makes true what `versions` wants: looks at the disk, starts and ends model processes, tries again. Runs beside the requests, in their loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.embedded import arrivals, source
from airflow_mlops.serving.embedded.model_process import End
from airflow_mlops.serving.embedded.refusal import Refusal, Shortage, invalid
from airflow_mlops.serving.embedded.versions import Version, Versions

log = logging.getLogger(__name__)
_WAIT_SECONDS = 0.02  # between two looks whether a new model is available
_LISTING_SECONDS = 5.0  # a look at a base path takes milliseconds; a dead network disk must not hold up the others


class Servable(Protocol):
    """What answers requests: `gone` ends with the reason when it can no longer, and whether a request was it; `retire` lets it end."""

    @property
    def gone(self) -> asyncio.Future[End]: ...

    def retire(self) -> None: ...


S = TypeVar("S", bound=Servable)


class LoaderOptions(NamedTuple):
    """Seconds between looks at the disk (0 or less: only on a reload), and how many versions may be loaded at the same time."""

    poll_seconds: float = 1.0
    num_load_threads: int = 4


class Loader(Generic[S]):
    """Keeps `versions` and the processes behind them in step; `start` loads one version or raises `Refusal`."""

    def __init__(self, versions: Versions[S], start: Callable[[Version[S]], Awaitable[S]], options: LoaderOptions) -> None:
        self._versions = versions
        self._start = start
        self._options = options._replace(num_load_threads=max(1, options.num_load_threads))
        self._listings = Listings()
        self._configuring = asyncio.Lock()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_loading = 0

    async def reload(self, config: ServerConfig, seconds: float | None) -> None:
        """Serve `config`, or raise `Refusal` and change nothing; then wait until each model that is new has an available version.

        If one will have none, or has none yet after `seconds` (None: for as long as something loads), the `Refusal` is UNKNOWN in the words of
        server_core.cc, and `config` is served all the same. Other requests do not wait.
        """
        until = None if seconds is None else time.monotonic() + seconds
        new = await self.configure(config)
        while missing := arrivals.missing(new, self._versions, self._listings.wrong):
            if (until is not None and time.monotonic() >= until) or all(arrival.is_final(until) for arrival in missing):
                raise arrivals.refusal(missing)
            await asyncio.sleep(_WAIT_SECONDS)

    def names(self) -> set[str]:
        """Return the models that are configured."""
        return {model.name for model in self._versions.config.models}

    async def configure(self, config: ServerConfig, *, at_start: bool = False) -> set[str]:
        """Serve `config`, or raise `Refusal` and change nothing; return the models that are new, without waiting for their versions."""
        for model in config.models:
            if source.local_path(model.base_path) is None:
                raise invalid(f"base_path of model {model.name} is {model.base_path}; this server reads directories of its own machine only")
        async with self._configuring:
            listings = await self._listings.of(config)
            before = self.names()
            self._versions.configure(config, listings, at_start=at_start)
        self._wake.set()
        return {model.name for model in config.models} - before

    async def run(self) -> None:
        """Work until cancelled."""
        if self._options.poll_seconds > 0:
            self._begin(self._poll())
        while True:
            self._release()
            while self._num_loading < self._options.num_load_threads and (entry := self._versions.due(time.monotonic())):
                self._versions.begin(entry)
                self._num_loading += 1
                self._begin(self._load(entry))
            due_at = self._versions.due_at() if self._num_loading < self._options.num_load_threads else None
            self._wake.clear()
            with contextlib.suppress(TimeoutError):  # `wait_for` could lose a cancellation
                async with asyncio.timeout(None if due_at is None else max(0.01, due_at - time.monotonic())):
                    await self._wake.wait()

    def stop(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll_seconds)
            try:
                async with self._configuring:
                    self._versions.look(await self._listings.of(self._versions.config))
            except Exception:  # for instance no thread could be started: the next look may be luckier
                log.exception("the base paths could not be looked at")
            self._wake.set()

    async def _load(self, entry: Version[S]) -> None:
        try:
            servable = await self._start(entry)
        except Exception as error:
            if not isinstance(error, Refusal):
                log.exception("model %s version %s could not be loaded", entry.name, entry.number)
            own_fault = not isinstance(error, Shortage)
            self._versions.failed(entry, str(error) or type(error).__name__, time.monotonic(), own_fault=own_fault)
        else:
            self._versions.loaded(entry, servable, time.monotonic())
            servable.gone.add_done_callback(lambda gone: self._lost(entry, servable, gone))
        finally:
            self._num_loading -= 1
            self._wake.set()

    def _lost(self, entry: Version[S], servable: S, gone: asyncio.Future[End]) -> None:
        if not gone.cancelled():
            end = gone.result()
            self._versions.lost(entry, servable, end.reason, time.monotonic(), by_request=end.by_request)
            self._wake.set()

    def _release(self) -> None:
        while self._versions.released:
            self._versions.released.pop().retire()


class Listings:
    """What lies under each base path, looked at in threads of their own, of which a hanging disk keeps at most one per path.

    What is wrong with a path is logged when it begins, changes or ends, not at every look.
    """

    def __init__(self) -> None:
        self._looking: dict[Path, asyncio.Future[dict[int, Path] | str]] = {}
        self._wrong: dict[Path, str] = {}

    async def of(self, config: ServerConfig) -> dict[str, dict[int, Path]]:
        """Return version directories by model, none for a path that cannot be read now."""
        self._looking = {path: look for path, look in self._looking.items() if not look.done()}  # an answer that nobody took is old
        paths = {path for model in config.models if (path := source.local_path(model.base_path))}
        for path in paths - self._looking.keys():
            self._looking[path] = self._look(path)
        if paths:
            await asyncio.wait([self._looking[path] for path in paths], timeout=_LISTING_SECONDS)
        found = {path: self._taken(path) for path in paths}
        self._wrong = {path: reason for path, reason in self._wrong.items() if path in paths}
        return {model.name: found[path] for model in config.models if (path := source.local_path(model.base_path))}

    def wrong(self, base_path: str) -> str | None:
        """Return why a base path could not be listed when it was last looked at, None if it could."""
        path = source.local_path(base_path)
        return self._wrong.get(path) if path else None

    def _look(self, path: Path) -> asyncio.Future[dict[int, Path] | str]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[int, Path] | str] = loop.create_future()

        def look() -> None:
            found: dict[int, Path] | str
            try:
                found = source.versions_on_disk(path)
            except FileNotFoundError:
                found = "does not exist"
            except Exception as error:  # for instance a null byte in the path
                found = f"cannot be listed ({error})"
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended meanwhile
                loop.call_soon_threadsafe(future.set_result, found)

        threading.Thread(target=look, name=f"look {path}", daemon=True).start()
        return future

    def _taken(self, path: Path) -> dict[int, Path]:
        found = self._looking.pop(path).result() if self._looking[path].done() else f"does not answer within {_LISTING_SECONDS:g} s"
        if isinstance(found, str):
            if self._wrong.get(path) != found:
                log.warning("base path %s %s, so nothing changes for its model", path, found)
            self._wrong[path] = found
            return {}
        if self._wrong.pop(path, None):
            log.info("base path %s can be listed again", path)
        return found
