"""Whether an alias is where somebody waits for it, and whether it moved: decided without asking, for the sensor and the triggers alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_mlops.exceptions import SpecError
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.base import ModelRegistry


@dataclass(frozen=True)
class Wish:
    """That `alias` of `model` be on `version`, or on any (None).

    `since` is None, or the intent under which the ledger keeps the version that was seen first: then it must be on another one than that.
    """

    model: str
    alias: str
    version: int | None = None
    since: str | None = None


@dataclass(frozen=True)
class Seen:
    """The alias is on `version` (None: on none) and was on `first` at the first look; or that could not be seen, for the reason `problem`."""

    version: int | None = None
    first: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Wait:
    """Look again later; `reason` says what is missing."""

    reason: str


@dataclass(frozen=True)
class Reached:
    """The alias is on `version`, as was wished."""

    version: int


@dataclass(frozen=True)
class TimedOut:
    """It was not seen to be so until the deadline, for this `reason`."""

    reason: str


def look(wish: Wish, registry: ModelRegistry, store: Store | None = None) -> Seen:
    """Return where the alias is; with `wish.since`, `store` remembers where it was at the first look, also one by an earlier try.

    :raises RegistryUnavailable: and `LedgerUnavailable`, when one of them did not answer.
    """
    version = registry.aliases(wish.model).get(wish.alias)
    if wish.since is None or store is None:
        return Seen(version)
    request = {"model": wish.model, "alias": wish.alias}
    return Seen(version, once(store, wish.since, "alias-seen", request, lambda: {"version": version})["version"])


def decide(wish: Wish, seen: Seen, now: float, deadline: float) -> Wait | Reached | TimedOut:
    """Return what to do about a `wish` when this was `seen` at `now`; both times are epoch seconds."""
    if not seen.problem and seen.version is not None and wish.version in (None, seen.version) and (wish.since is None or seen.version != seen.first):
        return Reached(seen.version)
    found = "no version" if seen.version is None else f"version {seen.version}"
    wanted = "any version" if wish.version is None else f"version {wish.version}"
    other = "" if wish.since is None else ", and not where it was at the first look"
    reason = seen.problem or f"alias {wish.alias!r} of {wish.model!r} is on {found}; it must be on {wanted}{other}"
    return Wait(reason) if now < deadline else TimedOut(f"at the deadline {reason}")


def change(known: Mapping[str, Any], version: int | None) -> dict[str, Any] | None:
    """Return the next change after `known`, which holds the `version` told last and its number `change`; None if the alias is still there."""
    if known["version"] == version:
        return None
    return {"version": version, "previous": known["version"], "change": known["change"] + 1}


def version_of(value: Any) -> int | None:
    """Return the version that a whole number or its decimal text names, None for nothing; raise `SpecError` for anything else."""
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()):
        raise SpecError(f"version is {value!r}; expected a whole number, or nothing for any version. Give one, for instance 7 or '7'.")
    return int(text)
