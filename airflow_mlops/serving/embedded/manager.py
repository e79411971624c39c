"""Which versions are loaded, in which state, and which one a request gets.

One thread loads and unloads; requests only look up. A version is unloaded only when another wanted one of its model is AVAILABLE (or the
model is no longer configured), so that a switch never leaves a gap. Requests in flight keep the servable they looked up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.embedded import source
from airflow_mlops.serving.embedded.refusal import invalid, not_found, precondition

if TYPE_CHECKING:
    from airflow_mlops.serving.embedded.engine import Servable

log = logging.getLogger(__name__)
IDLE_SECONDS = 3600.0


class LoadPolicy(NamedTuple):
    """How versions are found and loaded: seconds between looks at the disk (0 = once), tries after the first, seconds between tries."""

    poll_seconds: float = 1.0
    max_retries: int = 1
    retry_seconds: float = 1.0
    labels_for_unavailable: bool = False


DEFAULT_POLICY = LoadPolicy()


@dataclass
class _Version:
    path: Path
    state: str = "START"
    error: str = ""
    servable: Servable | None = None
    aspired: bool = True
    tries: int = 0
    try_at: float = 0.0


class VersionManager:
    """The versions of all models; `load` turns a SavedModel directory into a servable and may raise anything."""

    def __init__(self, load: Callable[[Path], Servable], policy: LoadPolicy = DEFAULT_POLICY, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._policy = policy
        self._clock = clock
        self._config = ServerConfig()
        self._models: dict[str, dict[int, _Version]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)

    def start(self) -> None:
        """Begin to load what `configure` asks for."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the loader; a load under way is given `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def configure(self, config: ServerConfig, *, at_start: bool = False) -> None:
        """Serve `config` from now on; raise `Refusal`, and change nothing, if a label would move to a version that is not AVAILABLE.

        At start-up nothing is AVAILABLE yet, so labels are taken as they are and answer once their version is loaded; the original refuses.
        """
        listings = _listings(config)
        with self._changed:
            if not at_start:
                self._check_labels(config)
            self._config = config
            self._aspire(listings)
            self._changed.notify_all()

    def resolve(self, name: str, version: int | None = None, label: str | None = None) -> tuple[int, Servable]:
        """Return the version number and servable of a request, by default the latest loaded one; raise `Refusal` if there is none."""
        with self._changed:
            if label is not None:
                model = self._config.get(name)
                if model is None or label not in model.labels:
                    raise invalid(f"Unrecognized servable version label: {label}")
                version = model.labels[label]
            servables = {number: entry.servable for number, entry in self._models.get(name, {}).items() if entry.servable is not None}
        if version is None and servables:
            version = max(servables)
        if version not in servables:
            raise not_found(f"Servable not found for request: {f'Latest({name})' if version is None else f'Specific({name}, {version})'}")
        return version, servables[version]

    def states(self, name: str, version: int | None = None) -> list[tuple[int, str, str]]:
        """Return (version, state, error) of the model's versions, the latest first; raise `Refusal` if there is none."""
        with self._changed:
            known = sorted(self._models.get(name, {}).items(), reverse=True)
            found = [(number, entry.state, entry.error) for number, entry in known if version in (None, number)]
        if not found:
            what = "any versions" if version is None else f"version {version}"
            raise not_found(f"Could not find {what} of model {name}")
        return found

    def _check_labels(self, config: ServerConfig) -> None:
        for model in config.models:
            known = self._models.get(model.name, {})
            before = self._config.get(model.name)
            used = before.labels if before else {}
            for label, version in model.labels.items():
                available = version in known and known[version].state == "AVAILABLE"
                new_and_allowed = self._policy.labels_for_unavailable and label not in used
                if not (available or used.get(label) == version or new_and_allowed):
                    raise precondition(
                        f"Request to assign label to version {version} of model {model.name}, which is not currently available for inference"
                    )

    def _aspire(self, listings: dict[str, dict[int, Path]]) -> None:
        """Mark what the configuration wants; a model with nothing on disk stays as it is, for a lost disk is no reason to stop serving."""
        for model in self._config.models:
            if listings[model.name]:
                self._aspire_model(model, listings[model.name])
        for name in self._models.keys() - listings.keys():
            for entry in self._models[name].values():
                entry.aspired = False
        self._unload()

    def _aspire_model(self, model: ModelConfig, on_disk: dict[int, Path]) -> None:
        known = self._models.setdefault(model.name, {})
        loaded = {number for number, entry in known.items() if entry.servable is not None and entry.path.parent == Path(model.base_path)}
        wanted = source.aspired(model, on_disk, loaded)
        for number in wanted:
            entry = known.get(number)
            path = on_disk[number] if number in on_disk or entry is None else entry.path
            if entry is None or entry.path != path or (not entry.aspired and entry.servable is None):
                known[number] = _Version(path, servable=entry.servable if entry else None)
        for number, entry in known.items():
            entry.aspired = number in wanted

    def _unload(self) -> None:
        for name, known in self._models.items():
            if self._config.get(name) and not any(entry.aspired and entry.state == "AVAILABLE" for entry in known.values()):
                continue
            for number, entry in known.items():
                if not entry.aspired and entry.state != "END":
                    _enter(name, number, entry, "UNLOADING")
                    entry.servable = None
                    _enter(name, number, entry, "END")

    def _work(self) -> None:
        looked_at = self._clock()
        while not self._stopping:
            if self._policy.poll_seconds > 0 and self._clock() - looked_at >= self._policy.poll_seconds:
                looked_at = self._clock()
                self._look()
            if (due := self._next()) is not None:
                self._try(*due)
                continue
            with self._changed:
                if not self._stopping and self._next() is None:
                    self._changed.wait(self._idle_seconds())

    def _look(self) -> None:
        config = self._config
        listings = _listings(config)  # outside the lock: a slow disk must not hold up requests
        with self._changed:
            if self._config is config:
                self._aspire(listings)

    def _waiting(self) -> Iterator[tuple[str, int, _Version]]:
        for name, known in self._models.items():
            yield from ((name, number, entry) for number, entry in known.items() if entry.aspired and entry.state in ("START", "LOADING"))

    def _next(self) -> tuple[str, int, _Version] | None:
        """Return what to load now: least tried first, so that a broken version holds nothing up, then the highest number."""
        with self._changed:
            due = [item for item in self._waiting() if item[2].try_at <= self._clock()]
        return min(due, key=lambda item: (item[2].tries, -item[1]), default=None)

    def _idle_seconds(self) -> float:
        poll = self._policy.poll_seconds if self._policy.poll_seconds > 0 else IDLE_SECONDS
        return max(0.0, min([poll, *(entry.try_at - self._clock() for _, _, entry in self._waiting())]))

    def _try(self, name: str, number: int, entry: _Version) -> None:
        _enter(name, number, entry, "LOADING")
        entry.tries += 1
        servable, error = None, ""
        try:
            servable = self._load(entry.path)
        except Exception as problem:  # whatever a SavedModel can do to its loader is that version's END, and nobody else's
            error = f"{problem}".strip() or type(problem).__name__
        with self._changed:
            if servable is not None:
                entry.servable = servable
                _enter(name, number, entry, "AVAILABLE")
            elif entry.tries <= self._policy.max_retries:
                entry.try_at = self._clock() + self._policy.retry_seconds
                log.warning("model %s version %s: try %s failed, again in %g s: %s", name, number, entry.tries, self._policy.retry_seconds, error)
            else:
                entry.error, entry.servable = error, None
                _enter(name, number, entry, "END")
            self._unload()


def _listings(config: ServerConfig) -> dict[str, dict[int, Path]]:
    return {model.name: source.versions_on_disk(Path(model.base_path)) for model in config.models}


def _enter(name: str, number: int, entry: _Version, state: str) -> None:
    if entry.state != state:
        entry.state = state
        log.info("model %s version %s: %s%s", name, number, state, f" ({entry.error})" if entry.error else "")
