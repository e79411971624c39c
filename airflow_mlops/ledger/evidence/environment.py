"""The environment that a model was trained in, as a CycloneDX 1.6 document."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from airflow_mlops.exceptions import SpecError
from airflow_mlops.results import TrainingResult

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

PYTHON = "python"


def cyclonedx(model: str, version: int, training: TrainingResult, at: datetime) -> bytes:
    """Return the packages of the training as CycloneDX JSON, written down at `at`; the same bytes for the same arguments.

    :raises SpecError: the library for it is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise SpecError(f"The environment cannot be described: {error}. Install airflow-mlops[evidence] where releases run.") from error
    root = Component(name=model, version=str(version), type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=f"{model}@{version}")
    packages = [_component(name, found) for name, found in sorted(training.packages.items())]
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"{model}@{version} {training.model.digest}")
    document = Bom(components=packages, serial_number=serial, metadata=BomMetaData(component=root, timestamp=at))
    document.register_dependency(root, packages)
    return JsonV1Dot6(document).output_as_string(indent=1).encode() + b"\n"


def _component(name: str, version: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    if name == PYTHON:
        return Component(name=name, version=version, type=ComponentType.PLATFORM, bom_ref=f"{name}@{version}")
    url = PackageURL("pypi", name=name, version=version)
    return Component(name=name, version=version, bom_ref=str(url), purl=url)
