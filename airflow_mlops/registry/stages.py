"""Versions that have a stage of MLflow 2 get the alias that stands for it, so that an old registry can be gone on with."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_mlops.registry.base import CANDIDATE, CHAMPION, PREVIOUS, ModelRegistry

ALIASES = {"Production": CHAMPION, "Staging": CANDIDATE}
ARCHIVED = "Archived"


def migrate(registry: ModelRegistry, model: str, *, dry_run: bool = False) -> list[str]:
    """Set the aliases that the stages of `model` stand for, and return in sentences what was done, or with `dry_run` what would be.

    The newest version of a stage gets its alias. An alias that exists stays where it is, so a second call changes nothing. The alias `previous`
    is not touched: no registry says which archived version served. The ledger adopts the champion when it is first asked
    (`airflow_mlops.registry.promotion.reigning`).

    :raises ModelNotFound: there is no such model.
    """
    stages, aliases = registry.stages(model), registry.aliases(model)
    told = [line for stage in ALIASES for line in _stage(registry, model, stage, sorted(_in(stages, stage)), aliases.get(ALIASES[stage]), dry_run)]
    if archived := sorted(_in(stages, ARCHIVED)):
        told.append(f"{_spoken(archived)} {ARCHIVED}: whether one of them served before is not known, so the alias {PREVIOUS!r} is left alone.")
    return told or ["no version has a stage; nothing to do."]


def _stage(registry: ModelRegistry, model: str, stage: str, versions: list[int], holder: int | None, dry_run: bool) -> Iterator[str]:
    if not versions:
        return
    alias, newest = ALIASES[stage], versions[-1]
    if holder is None:
        if not dry_run:
            registry.set_alias(model, alias, newest)
        yield f"version {newest} ({stage}) {'would get' if dry_run else 'got'} the alias {alias!r}."
    elif holder == newest:
        yield f"version {newest} ({stage}) has the alias {alias!r} already."
    else:
        yield f"the alias {alias!r} is on version {holder} and stays there; {_spoken(versions)} {stage}."
    if versions[:-1] and holder in (None, newest):
        yield f"{_spoken(versions[:-1])} {stage}, too, and older: left without an alias."


def _in(stages: dict[int, str], stage: str) -> list[int]:
    return [version for version, found in stages.items() if found == stage]


def _spoken(versions: list[int]) -> str:
    """Return ``version 7 is``, or ``versions 6, 7 are``."""
    return f"version {versions[0]} is" if len(versions) == 1 else f"versions {', '.join(map(str, versions))} are"
