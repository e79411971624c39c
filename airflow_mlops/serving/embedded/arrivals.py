"""Whether the new models of a reload have arrived: the decision of `Loader.reload`, without its waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc

from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.embedded.versions import Versions


class Arrival(NamedTuple):
    """A model that is not available: why, the version to name if there is one, and whether that will change.

    `open` is True while something loads, False if nothing will, None if a version may still be published.
    """

    name: str
    words: str
    number: int | None = None
    open: bool | None = False

    def is_final(self, until: float | None) -> bool:
        """Return whether waiting `until` some time is useless; None is without end."""
        return self.open is False or (self.open is None and until is None)


def missing(names: Iterable[str], versions: Versions[Any], wrong: Callable[[str], str | None]) -> list[Arrival]:
    """Return those of the models that have no available version; `wrong` returns the problem of a base path."""
    return [arrival for name in sorted(names) for arrival in _missing(name, versions, wrong)]


def _missing(name: str, versions: Versions[Any], wrong: Callable[[str], str | None]) -> Iterator[Arrival]:
    model, wanted = versions.config.get(name), versions.wanted(name)
    if model is None:
        return  # a later reload dropped it: for that one, too, the last word counts
    if not wanted and (reason := wrong(model.base_path)):
        yield Arrival(name, f"Could not find base path {model.base_path} for servable {name}: it {reason}")
    elif not wanted:
        yield Arrival(name, f"No versions of servable {name} found under base path {model.base_path}", open=None)
    elif not any(entry.state == "AVAILABLE" for entry in wanted):
        latest = wanted[0]
        yield Arrival(name, latest.error or f"it is {latest.state}", latest.number, any(entry.state != "END" for entry in wanted))


def refusal(arrivals: Sequence[Arrival]) -> Refusal:
    """Return what a reload answers whose new models are not available, in the words of server_core.cc, which clients look for."""
    words = "".join(
        f"{{{{name: {name}{'' if number is None else f' version: {number}'}}} due to error: {reason}}}, " for name, reason, number, _ in arrivals
    )
    return Refusal(grpc.StatusCode.UNKNOWN, f"{len(arrivals)} model(s) did not become available: {{{words}}}")
