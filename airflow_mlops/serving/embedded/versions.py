"""Which versions are wanted, in which state each is, and which one a request gets. No IO and no clock: what happens outside is told.

A version is let go only when another wanted one of its model is AVAILABLE (or the model is no longer configured), so that a switch never
leaves a gap: the original's AvailabilityPreservingPolicy (core/availability_preserving_policy.cc).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import grpc

from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.embedded import source
from airflow_mlops.serving.embedded.refusal import Refusal, invalid, not_found, precondition

log = logging.getLogger(__name__)
S = TypeVar("S")
Listings = Mapping[str, Mapping[int, Path]]  # model -> version -> its directory


class RetryPolicy(NamedTuple):
    """How often and how soon a version is tried again: one that cannot be loaded, and one whose process died while it served.

    The latter at once the first time, then later and later up to `max_restart_seconds`, until it has served for `steady_seconds`.
    """

    max_load_retries: int = 5
    retry_seconds: float = 1.0
    max_restart_seconds: float = 30.0
    steady_seconds: float = 60.0


@dataclass(eq=False)
class Version(Generic[S]):
    """One version of one model; `servable` answers its requests while there is one. `struck`: a request ended its last process."""

    name: str
    number: int
    path: Path
    state: str = "START"
    error: str = ""
    servable: S | None = None
    aspired: bool = True
    loading: bool = False
    tries: int = 0
    deaths: int = 0
    struck: bool = False
    try_at: float = 0.0
    available_at: float = 0.0

    @property
    def returns(self) -> bool:
        """Whether a request ended its process, and it is being started again."""
        return self.struck and self.state == "LOADING"

    def enter(self, state: str, error: str = "") -> None:
        """Change the state and say so."""
        if (self.state, self.error) != (state, error):
            self.state, self.error = state, error
            log.info("model %s version %s: %s%s", self.name, self.number, state, f" ({error})" if error else "")


class Versions(Generic[S]):
    """The versions of all models. `released` collects servables that nobody can ask for any more."""

    def __init__(self, policy: RetryPolicy, *, labels_for_unavailable: bool = False) -> None:
        self.config = ServerConfig()
        self.released: list[S] = []
        self._policy = policy
        self._labels_for_unavailable = labels_for_unavailable
        self._models: dict[str, dict[int, Version[S]]] = {}

    def configure(self, config: ServerConfig, listings: Listings, *, at_start: bool = False) -> None:
        """Serve `config` from now on; raise `Refusal`, and change nothing, if a label would move to a version that is not AVAILABLE.

        At start-up nothing is AVAILABLE yet, so labels are taken as they are and answer once their version is loaded; the original refuses.
        """
        if not at_start:
            self._check_labels(config)
        self.config = config
        self.look(listings)

    def look(self, listings: Listings) -> None:
        """Take notice of what is on disk; a model with nothing there stays as it is, for a lost disk is no reason to stop serving."""
        for model in self.config.models:
            if listings.get(model.name):
                self._aspire(model, listings[model.name])
        for name, known in self._models.items():
            for entry in known.values():
                entry.aspired = entry.aspired and self.config.get(name) is not None
        self._unload()

    def resolve(self, name: str, version: int | None = None, label: str | None = None) -> tuple[int, S]:
        """Return the version number and servable of a request, by default the latest loaded one; raise `Refusal` if there is none."""
        known = self._models.get(name, {})
        if label is not None:
            model = self.config.get(name)
            if model is None or label not in model.labels:
                raise invalid(f"Unrecognized servable version label: {label}")
            version = model.labels[label]
        if version is None:
            # The request that ended the latest version's process must not be passed on to the version before.
            version = max((number for number, entry in known.items() if entry.servable is not None or entry.returns), default=None)
        entry = known.get(version) if version is not None else None
        if version is None or entry is None or entry.servable is None:
            raise _not_served(name, version, [entry] if entry else known.values() if version is None else [])
        return version, entry.servable

    def states(self, name: str, version: int | None = None) -> list[tuple[int, str, str]]:
        """Return (version, state, error) of the model's versions, the latest first; raise `Refusal` if there is none."""
        known = sorted(self._models.get(name, {}).items(), reverse=True)
        found = [(number, entry.state, entry.error) for number, entry in known if version in (None, number)]
        if not found:
            what = "any versions" if version is None else f"version {version}"
            raise not_found(f"Could not find {what} of model {name}")
        return found

    def wanted(self, name: str) -> list[Version[S]]:
        """Return the versions of a model that are to be served, the latest first."""
        return sorted((entry for entry in self._models.get(name, {}).values() if entry.aspired), key=lambda entry: -entry.number)

    def due(self, now: float) -> Version[S] | None:
        """Return what to load now: least tried first, so that a broken version holds nothing up, then the highest number."""
        due = [entry for entry in self._to_load() if entry.try_at <= now]
        return min(due, key=lambda entry: (entry.tries, -entry.number), default=None)

    def due_at(self) -> float | None:
        """Return when there will be something to load, None if nothing waits for its time."""
        return min((entry.try_at for entry in self._to_load()), default=None)

    def begin(self, entry: Version[S]) -> None:
        """Its load begins."""
        entry.loading = True
        entry.tries += 1
        entry.enter("LOADING", entry.error if entry.deaths else "")

    def loaded(self, entry: Version[S], servable: S, now: float) -> None:
        """Its load succeeded; a version that was ended or replaced meanwhile lets the servable go at once."""
        entry.loading = False
        if entry.state == "END" or self._models[entry.name].get(entry.number) is not entry:
            self.released.append(servable)
            return
        self._release(entry)
        entry.servable, entry.available_at, entry.struck = servable, now, False
        entry.enter("AVAILABLE")
        self._unload()

    def failed(self, entry: Version[S], error: str, now: float, *, own_fault: bool = True) -> None:
        """Its load failed; it is tried again, or ends with `error`. What is not its own fault, or has served before, is tried for ever."""
        entry.loading = False
        if entry.state == "END":
            return
        if not own_fault or entry.deaths:
            entry.try_at = now + min(self._policy.max_restart_seconds, self._policy.retry_seconds * 2.0 ** min(entry.tries - 1, 30))
            log.warning("model %s version %s: try %s failed: %s", entry.name, entry.number, entry.tries, error)
            return
        if entry.tries <= self._policy.max_load_retries:
            entry.try_at = now + self._policy.retry_seconds
            log.warning("model %s version %s: try %s failed: %s", entry.name, entry.number, entry.tries, error)
            return
        entry.enter("END", error)  # what answers in its place, because it was moved, goes on
        self._unload()

    def lost(self, entry: Version[S], servable: S, reason: str, now: float, *, by_request: bool = False) -> None:
        """Its process died while it served: load it again: at once if a request was the reason, otherwise after a pause that grows each time."""
        entry = self._models[entry.name][entry.number]
        if entry.servable is not servable:
            return  # it was to go anyhow
        entry.servable = None
        if entry.state != "AVAILABLE":
            return  # it only stood in for one that was moved, which is loaded or failed
        steady = now - entry.available_at > self._policy.steady_seconds
        entry.tries, entry.struck = 0, by_request
        if by_request:
            entry.deaths, entry.try_at = max(1, entry.deaths), now
        else:
            entry.deaths = 1 if steady else entry.deaths + 1
            pause = 0.0 if entry.deaths == 1 else 2.0 ** min(entry.deaths - 2, 30)
            entry.try_at = now + min(self._policy.max_restart_seconds, pause)
        entry.enter("LOADING", f"its process {reason}")

    def _check_labels(self, config: ServerConfig) -> None:
        for model in config.models:
            known = self._models.get(model.name, {})
            before = self.config.get(model.name)
            used = before.labels if before else {}
            for label, version in model.labels.items():
                available = version in known and known[version].state == "AVAILABLE"
                new_and_allowed = self._labels_for_unavailable and label not in used
                if not (available or used.get(label) == version or new_and_allowed):
                    raise precondition(
                        f"Request to assign label to version {version} of model {model.name}, which is not currently available for inference"
                    )

    def _aspire(self, model: ModelConfig, on_disk: Mapping[int, Path]) -> None:
        known = self._models.setdefault(model.name, {})
        loaded = {number for number, entry in known.items() if entry.servable is not None and entry.path.parent == source.local_path(model.base_path)}
        wanted = source.aspired(model, on_disk, loaded)
        for number in wanted:
            entry = known.get(number)
            path = on_disk[number] if number in on_disk or entry is None else entry.path
            if entry is None or entry.path != path or (not entry.aspired and entry.servable is None):
                known[number] = Version(model.name, number, path)
                if entry is not None:  # the old servable of a moved version answers until the new one is loaded
                    known[number].servable, entry.servable = entry.servable, None
        for number, entry in known.items():
            entry.aspired = number in wanted

    def _unload(self) -> None:
        for name, known in self._models.items():
            if self.config.get(name) and not any(entry.aspired and entry.state == "AVAILABLE" for entry in known.values()):
                continue
            for entry in known.values():
                if not entry.aspired and entry.state != "END":
                    entry.enter("UNLOADING")
                    self._release(entry)
                    entry.enter("END")
                elif not entry.aspired:
                    self._release(entry)

    def _release(self, entry: Version[S]) -> None:
        if entry.servable is not None:
            self.released.append(entry.servable)
            entry.servable = None

    def _to_load(self) -> Iterator[Version[S]]:
        for known in self._models.values():
            for entry in known.values():
                # One that died while it was kept for want of a better one is still needed.
                if (entry.aspired or entry.deaths) and not entry.loading and entry.state in ("START", "LOADING"):
                    yield entry


def _not_served(name: str, version: int | None, asked: Iterable[Version[S]]) -> Refusal:
    """Return the refusal of a request for a version, or for any: one that is started again is worth another try."""
    again = next((entry for entry in asked if entry.deaths and entry.state == "LOADING"), None)
    if again is not None:
        return Refusal(grpc.StatusCode.UNAVAILABLE, f"Version {again.number} of model {name} is being started again: {again.error}")
    return not_found(f"Servable not found for request: {f'Latest({name})' if version is None else f'Specific({name}, {version})'}")
