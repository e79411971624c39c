"""From the training's files to the model server: what was altered, is unsigned, or would run code is not published; over a real registry."""

from __future__ import annotations

import itertools
import pickle
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.artifacts import Artifact
from airflow_mlops.gates import ReleasePolicy
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.model import MlflowSelectCandidateOperator
from airflow_mlops.operators.publish import PublishSavedModelOperator
from airflow_mlops.operators.registration import MlflowRegisterModelOperator
from airflow_mlops.registry import registrations
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.results import to_data
from airflow_mlops.serving import protos
from tests import fakes
from tests.bare_saved_models import golden, saved_model
from tests.fakes import FakeTaskInstance, context

CANDIDATE = Asset("digits_candidate")


class Chain:
    """A model's way through register, select and publish."""

    def __init__(self, name: str, database: Path, home: Path, monkeypatch: pytest.MonkeyPatch, connect: Callable[..., None], ledger: Store) -> None:
        self.ledger = ledger
        self.name, self.home, self.registry = name, home, MlflowRegistry(f"sqlite:///{database}")
        self.monkeypatch, self.connect, self.tries = monkeypatch, connect, itertools.count(1)
        self.files = home / "trained"
        saved_model(self.files / "saved_model")
        golden(self.files / "golden.json")
        self.keys()
        self.server()

    def server(self, **extra: Any) -> None:
        fields = {"base_path": str(self.home / "served"), "config_path": str(self.home / "models.config"), **extra}
        self.connect("tf_serving_default", "tf_serving", host="h", port=1, extra=fields)

    def keys(self, signing: str | Path = "", verification: str | Path = "") -> None:
        self.monkeypatch.setenv("AIRFLOW__MLOPS__SIGNING_KEY", str(signing))
        self.monkeypatch.setenv("AIRFLOW__MLOPS__VERIFICATION_KEY", str(verification))

    def register(self) -> dict[str, Any]:
        """Train (files are there already), judge and register; return the version's description."""
        with self.registry.start_run(self.name, name="training", tags={}) as run:
            for name in ("saved_model", "golden.json"):
                run.log_artifact(self.files / name)
        home = self.home / run.run_id
        files = {"saved_model": Artifact.of(self.files / "saved_model"), "golden": Artifact.of(self.files / "golden.json")}
        training = fakes.training(home, mlflow_run_id=run.run_id, mlflow_source=run.artifact_uri, **files)
        refs = fakes.leave_records(home, training, fakes.evaluation(champion_version=None, champion_metrics=None))
        handed = {stage: to_data(ref) for stage, ref in refs.items()}
        task = fakes.handed_over(self.ledger, *handed.values())
        settings: Any = {"model_name": self.name, "policy": ReleasePolicy()}
        measured = {"evaluation": handed["evaluate"], "robustness": handed["robustness"]}
        operator = MlflowRegisterModelOperator(task_id="register", candidate=CANDIDATE, **measured, **settings)
        operator.execute(context(task=task, outlet_events={CANDIDATE: SimpleNamespace(extra={})}))
        return MlflowSelectCandidateOperator(task_id="select", **settings).execute(context(FakeTaskInstance(task_id="select")))

    def tags(self) -> Mapping[str, str]:
        return self.registry.get_by_alias(self.name, "candidate").tags

    def stored(self) -> Path:
        """Return where MLflow keeps the SavedModel of the candidate."""
        return Path(urlsplit(self.registry.get_by_alias(self.name, "candidate").source).path) / "saved_model"

    def publish(self, model: dict[str, Any]) -> dict[str, Any]:
        operator = PublishSavedModelOperator(task_id="publish", model=model, approval_required=False)
        ti = FakeTaskInstance(task_id="publish", try_number=next(self.tries))
        return operator.execute(context(ti, task=fakes.handed_over(self.ledger, model)))

    def refused(self, model: dict[str, Any], message: str) -> None:
        with pytest.raises(AirflowFailException, match=message):
            self.publish(model)
        assert not (self.home / "served").exists()


@pytest.fixture
def chain(
    request: pytest.FixtureRequest,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[..., None],
    ledger: Store,
    workspace: Path,
) -> Chain:
    connect("mlflow_default", "mlflow", host=f"sqlite:///{database}")
    return Chain(re.sub(r"\W", "_", request.node.name), database, tmp_path, monkeypatch, connect, ledger)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Two pairs of keys, private and public."""
    home = tmp_path_factory.mktemp("keys")
    found = []
    for name in ("ours", "theirs"):
        private, public = home / f"{name}.pem", home / f"{name}.pub.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
        found.append((private, public))
    return found


def test_without_keys_nothing_is_signed_and_everything_is_published(chain: Chain) -> None:
    model = chain.register()
    assert "signature" not in chain.tags()
    assert chain.publish(model)["path"] == str(chain.home / "served" / chain.name / "1")


def test_a_signed_version_is_published(chain: Chain, pairs: list[tuple[Path, Path]]) -> None:
    chain.keys(*pairs[0])
    assert chain.publish(chain.register())["path"] == str(chain.home / "served" / chain.name / "1")


def test_an_unsigned_version_is_refused_where_signatures_are_asked_for(chain: Chain, pairs: list[tuple[Path, Path]]) -> None:
    model = chain.register()
    chain.keys(verification=pairs[0][1])
    chain.refused(model, r"RegistryError: Version 1 of .* is not signed, and \[mlops\] verification_key is set")


def test_a_version_that_somebody_else_signed_is_refused(chain: Chain, pairs: list[tuple[Path, Path]]) -> None:
    chain.keys(pairs[1][0], pairs[0][1])
    chain.refused(chain.register(), "RegistryError: .* has no valid signature by the owner of .*ours")


def test_who_can_change_files_and_tags_of_the_registry_cannot_have_another_model_published(chain: Chain, pairs: list[tuple[Path, Path]]) -> None:
    """The tags' digests are those of the new files: the ledger shows it, and where the ledger was rewritten, too, the signature."""
    chain.keys(*pairs[0])
    model = chain.register()
    (chain.stored() / "variables" / "variables.data-00000-of-00001").write_bytes(b"other weights")
    forged = {"saved_model_digest": Artifact.of(chain.stored()).digest}
    chain.registry.set_tags(chain.name, 1, forged)
    chain.refused(model, "RegistryError: The tag 'saved_model_digest' of .* is 'sha256:.*'; expected 'sha256:.*', with which it was registered")
    registrations.note(chain.ledger, chain.name, 1, "a forger", {**registrations.registered(chain.ledger, chain.name, 1), **forged})
    chain.refused(model, "RegistryError: .* has no valid signature .*variables.data-00000-of-00001")
    chain.keys()
    chain.publish(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("saved_model/saved_model.pb", "PublishError: The source of .*saved_model is not the SavedModel that was asked for"),
        ("golden.json", r"RegistryError: The artefact golden\.json of .* has the digest"),
    ],
)
def test_files_that_were_altered_in_the_registry_are_refused_before_anything_reads_them(chain: Chain, name: str, message: str) -> None:
    model = chain.register()
    (chain.stored().parent / name).write_bytes(b"\xff\xffneither message nor JSON")
    chain.refused(model, message)


def test_a_graph_that_reaches_files_is_published_only_where_the_connection_allows_it(chain: Chain) -> None:
    graph = chain.files / "saved_model" / "saved_model.pb"
    message = protos.saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    message.meta_graphs[0].graph_def.node.add(name="steal", op="ReadFile")
    graph.write_bytes(message.SerializeToString())
    model = chain.register()
    chain.refused(model, r"UnsafeModel: .*ReadFile \(steal\).*set unsafe_models_allowed of the model server's connection")
    chain.server(unsafe_models_allowed=True)
    assert chain.publish(model)["path"].endswith("/1")


@pytest.mark.parametrize("name", ["assets/extra.pkl", "assets/vocabulary.txt", "assets/model.joblib"])
def test_a_pickle_beside_the_model_is_refused(chain: Chain, name: str) -> None:
    (chain.files / "saved_model" / name).write_bytes(pickle.dumps({"a": 1}))
    chain.refused(chain.register(), f"UnsafeModel: .*{name} is a pickle")


def test_a_signing_key_that_is_not_there_stops_the_registration_before_anything_is_registered(chain: Chain, tmp_path: Path) -> None:
    chain.keys(signing=tmp_path / "nowhere.pem")
    with pytest.raises(AirflowFailException, match=r"SpecError: The signing key .*nowhere\.pem cannot be used"):
        chain.register()
    assert chain.registry.aliases(chain.name) == {}


def test_the_connection_says_whether_unsafe_models_are_allowed(chain: Chain) -> None:
    assert TFServingHook().unsafe_models_allowed() is False
    for value in (True, "true"):
        chain.server(unsafe_models_allowed=value)
        assert TFServingHook().unsafe_models_allowed() is True
    chain.server(unsafe_models_allowed="perhaps")
    chain.refused(chain.register(), "SpecError: .*unsafe_models_allowed is 'perhaps'; expected true or false")
