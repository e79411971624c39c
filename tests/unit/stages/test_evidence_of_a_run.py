"""The evidence pack of stages that really ran: data docs, campaign report and every installed package are in it."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from airflow_mlops.gates import ReleasePolicy, decide
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.evidence.facts import Release, trail
from airflow_mlops.ledger.evidence.pack import Pack, verify, write
from airflow_mlops.ledger.store import Store
from airflow_mlops.stages import evaluate, robustness, validate
from tests.released import tags_of

from .conftest import Workshop


@pytest.fixture(scope="module")
def pack(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """What a release of a small real training leaves."""
    validated, _ = workshop.run("validate", validate.Spec(workshop.v1, str(workshop.suite)), "evidence")
    trained, _ = workshop.run("train", workshop.training_spec(validated), "evidence")
    evaluated, measured = workshop.run("evaluate", evaluate.Spec(trained, "unknown", workshop.tracking_uri), "evidence")
    attacked, campaign = workshop.run("robustness", robustness.Spec(trained, max_mutants=60, seed=1), "evidence")
    refs = {"validate": validated, "train": trained, "evaluate": evaluated, "robustness": attacked}
    tags = tags_of(refs, **{"gate.decision": decide(ReleasePolicy({"accuracy": 0.1}), measured, campaign).headline()})
    home = tmp_path_factory.mktemp("release")
    with Store(f"sqlite:///{home}/ledger.db") as store:
        with store.transaction() as connection:
            chain.append(connection, Event("promoted", "digits@1", "digits_release/r", {"evidence_digest": tags["evidence_digest"]}))
        return write(Release("digits", 1, "digits_release/r", tags, trail(store, "digits", 1)), home / "evidence", {})


def test_nothing_that_ran_is_missing_and_sha256sum_agrees(pack: Pack) -> None:
    assert set(pack.missing) == {"differential report", "model-test report"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=pack.path, check=True)
    assert verify(pack.path) == pack.digest
    assert {verdict.test for verdict in pack.score.verdicts if verdict.points} == {"data_schema", "quality_before_serving", "numerically_stable"}


def test_the_environment_names_every_package_that_the_training_could_import(pack: Pack) -> None:
    text = (pack.path / "environment.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {part["name"]: part["version"] for part in json.loads(text)["components"]}
    assert {name: found[name] for name in ("keras", "mlflow", "sqlalchemy")} == {n: metadata.version(n) for n in ("keras", "mlflow", "sqlalchemy")}
    assert len(found) > 100


def test_the_reports_are_the_ones_that_the_stages_wrote(pack: Pack) -> None:
    assert "Robustness campaign" in (pack.path / "reports" / "robustness.html").read_text()
    assert (pack.path / "reports" / "validation" / "index.html").is_file()
    assert sum(file.stat().st_size for file in pack.path.rglob("*") if file.is_file()) < 20 << 20
