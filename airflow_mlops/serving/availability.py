"""Whether a version serves on every replica: the decision without the asking, the same one for rollout, sensor and triggers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_mlops.exceptions import SpecError

_FROM_THE_WORST = ("END", "UNKNOWN", "UNLOADING", "START", "LOADING", "AVAILABLE")


@dataclass(frozen=True)
class VersionStatus:
    """State of one version: START, LOADING, AVAILABLE, UNLOADING or END; `error` is the server's reason for an END, else empty."""

    state: str
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the server gave the version up."""
        return self.state == "END" and bool(self.error)


Versions = Mapping[int, VersionStatus]
Observation = Mapping[str, Versions | None]  # by the replica's address; None: it did not answer


@dataclass(frozen=True)
class Wait:
    """Look again later; `reason` says what is missing where."""

    reason: str = field(default="", compare=False)


@dataclass(frozen=True)
class Available:
    """Every replica serves the version."""


@dataclass(frozen=True)
class Fail:
    """The version will not serve, for this `reason`; `timed_out` if it was only not seen to serve until the deadline."""

    reason: str
    timed_out: bool = False


Action = Wait | Available | Fail


def decide(observation: Observation, version: int, now: float, deadline: float, *, fail_on_load_error: bool = True) -> Action:
    """Return what to do about `version` as the replicas are at `now`; both times are epoch seconds.

    A replica that could not load it ends the wait at once unless `fail_on_load_error` is false: then somebody may still repair it.
    """
    seen = {replica: (versions or {}).get(version) for replica, versions in observation.items()}
    failed = [f"replica {replica} could not load version {version}: {status.error}" for replica, status in seen.items() if status and status.failed]
    if failed and fail_on_load_error:
        return Fail("; ".join(failed))
    missing = [said for replica, status in seen.items() if (said := _missing(replica, status, observation[replica] is not None))]
    if seen and not missing:
        return Available()
    reason = f"version {version} is not AVAILABLE on every replica: {', '.join(missing) or 'there is none'}"
    return Wait(reason) if now < deadline else Fail(f"at the deadline {reason}", timed_out=True)


def worst(states: Mapping[str, Versions]) -> dict[int, VersionStatus]:
    """Return for each version its worst state over all replicas, START where one does not know it; an error names its replica."""

    def badness(entry: tuple[str, VersionStatus]) -> tuple[bool, int]:
        return not entry[1].failed, _FROM_THE_WORST.index(entry[1].state)

    result = {}
    for version in sorted({version for versions in states.values() for version in versions}):
        replica, status = min(((replica, versions.get(version, VersionStatus("START"))) for replica, versions in states.items()), key=badness)
        result[version] = VersionStatus(status.state, status.error and f"replica {replica}: {status.error}")
    return result


def version_number(value: Any) -> int:
    """Return the version that a whole number or its decimal text (what a template renders to) names; raise `SpecError` for anything else."""
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise SpecError(f"version is {value!r}; expected a whole number from 0 to 2**63 - 1. Give one, for instance 7 or '7'.")
    return int(text)


def _missing(replica: str, status: VersionStatus | None, answered: bool) -> str:
    """Return what is missing on a replica, nothing where it serves the version."""
    if status is None:
        return f"unknown to {replica}" if answered else f"no answer from {replica}"
    return "" if status.state == "AVAILABLE" else f"{status.state} on {replica}" + (f" ({status.error})" if status.error else "")
