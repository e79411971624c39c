"""Requests that ended their model's process, and which of them are refused for a while."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.refusal import precondition

_DEATHS = 2  # once may be chance: another request, or the system
_SECONDS = 60.0  # for which a request is refused then; a model that was mended has another version by then
_MOST = 1000  # requests that are remembered; each has cost a process


class Asked(NamedTuple):
    """A request to one version, with what is cheap to know of it; `payload` is hashed only when one like it has ended a process."""

    model: str
    version: int
    kind: Kind
    payload: bytes

    @property
    def outline(self) -> tuple[str, int, Kind, int]:
        return self.model, self.version, self.kind, len(self.payload)

    @property
    def digest(self) -> bytes:
        return hashlib.blake2b(self.payload, digest_size=16).digest()


class _Record(NamedTuple):
    deaths: int
    refused_until: float


class Suspects:
    """What is remembered, until it is answered after all. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, int, Kind, int], dict[bytes, _Record]] = {}

    def is_one(self, asked: Asked, now: float) -> bool:
        """Return whether a request ended its version's process before; raise `Refusal` if it did so twice and its time is not over."""
        record = self._records.get(asked.outline, {}).get(asked.digest) if asked.outline in self._records else None
        if record is None:
            return False
        if now < record.refused_until:
            raise precondition(
                f"This request ended the process of model {asked.model} version {asked.version} {record.deaths} times, and is refused for "
                f"{record.refused_until - now:.0f} s more. Send other inputs, or correct the model: it should refuse inputs that it cannot process"
            )
        return True

    def note(self, asked: Asked, now: float) -> None:
        """A process ended while it worked on this request."""
        while sum(map(len, self._records.values())) >= _MOST:
            self._records.pop(next(iter(self._records)))
        known = self._records.setdefault(asked.outline, {})
        before = known.get(asked.digest, _Record(0, 0.0))
        deaths = before.deaths + 1
        known[asked.digest] = _Record(deaths, now + _SECONDS if deaths >= _DEATHS else 0.0)

    def clear(self, asked: Asked) -> None:
        """This request was answered, so what ended the process was another."""
        if (known := self._records.get(asked.outline)) is not None:
            known.pop(asked.digest, None)
            if not known:
                del self._records[asked.outline]
