"""What clients get of a model now: the version behind a label, if every replica has it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from airflow_mlops.exceptions import ServingUnavailable, SpecError
from airflow_mlops.serving.availability import VersionStatus
from airflow_mlops.serving.fleet import Replicas, ServingFleet
from airflow_mlops.serving.rollout import labelled

_ON_ITS_WAY = ("START", "LOADING", "AVAILABLE")


class Served(NamedTuple):
    """Clients get `version` (None: the model is not configured); or not all do, for the reason `problem`, a sentence."""

    version: int | None
    problem: str = ""


def look(client: Replicas, config_path: Path, model: str, label: str) -> Served:
    """Return what `label` of `model` leads to by the server's configuration, and whether the replicas have that; one may still load it.

    :raises ServingUnavailable: a replica does not answer.
    """
    try:
        version = labelled(config_path, model, label)
    except SpecError as error:
        return Served(None, str(error))
    if version is None:
        return Served(None)
    statuses = ServingFleet(client.replicas).statuses(model)
    if silent := [address for address, versions in statuses.items() if versions is None]:
        raise ServingUnavailable(f"What {model!r} serves is not known: no answer from {', '.join(silent)}. Look whether it runs.")
    missing = [said for address, versions in statuses.items() if (said := _missing(address, (versions or {}).get(version)))]
    if not missing:
        return Served(version)
    return Served(version, f"Label {label!r} leads to version {version}, which clients do not get: {', '.join(missing)}. Restart that, or roll back.")


def _missing(address: str, status: VersionStatus | None) -> str:
    if status is None:
        return f"{address} does not know it"
    if status.state in _ON_ITS_WAY:
        return ""
    return f"{status.state} on {address}" + (f" ({status.error})" if status.error else "")
