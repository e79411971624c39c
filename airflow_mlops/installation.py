"""Which of this package's requirements are installed, by its own metadata, so that no list is kept twice."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from airflow_mlops.exceptions import SpecError, unknown_name

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "airflow-mlops"
# The extras that each process of a deployment needs.
PROCESSES = {
    "dag-processor": (),
    "scheduler": (),
    "triggerer": ("triggerer",),
    "webserver": ("webserver",),
    "worker": ("worker",),
    "pod-worker": ("pod-worker",),
}


def missing(*extras: str) -> list[str]:
    """Return every requirement of the package with `extras` that is not met, as a sentence; raise `SpecError` for an unknown extra."""
    return list(dict.fromkeys(problem for extra in ("", *extras) for problem in _problems(extra)))


def require(*extras: str) -> None:
    """Raise `SpecError`, with what is missing and how to install it, unless everything that the package with `extras` needs is installed."""
    if problems := missing(*extras):
        raise SpecError(f"This process lacks what {advice(*extras)} brings: {'; '.join(problems)}. Run: pip install '{advice(*extras)}'")


def advice(*extras: str) -> str:
    """Return what pip has to install."""
    return f"{PACKAGE}[{','.join(extras)}]" if extras else PACKAGE


def _problems(extra: str) -> Iterator[str]:
    for requirement in _requirements(extra):
        if requirement.name == PACKAGE:
            yield from (problem for inner in sorted(requirement.extras) for problem in _problems(inner))
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} is {found}, expected {requirement.specifier}"


def _requirements(extra: str) -> Iterator[Requirement]:
    """Yield what the package itself needs, or what `extra` adds."""
    from packaging.requirements import Requirement

    distribution = metadata.distribution(PACKAGE)
    known = distribution.metadata.get_all("Provides-Extra") or []
    if extra and extra not in known:
        raise unknown_name("extra", extra, known)
    for text in distribution.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None:
            if not extra:
                yield requirement
        elif extra and requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""}):
            yield requirement
