"""An old registry with stages becomes one with aliases: nothing is overwritten, nothing is guessed, and twice is as good as once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from airflow_mlops import cli
from airflow_mlops.exceptions import ModelNotFound
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.registry.promotion import reigning
from airflow_mlops.registry.stages import migrate

Staged = Callable[..., str]


@pytest.fixture
def staged(registry: MlflowRegistry, run: SimpleNamespace, tracking_uri: str, new_name: str) -> Staged:
    """A function that registers a version for each stage, as a registry of MLflow 2 has them, and returns the model's name."""

    def make(*stages: str) -> str:
        client = MlflowClient(tracking_uri)
        for number, stage in enumerate(stages, 1):
            registry.register(new_name, run.run_id, run.artifact_uri, idempotency_key=str(number))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                client.transition_model_version_stage(new_name, str(number), stage)
        return new_name

    return make


def test_what_served_is_champion_and_what_was_staged_is_candidate(registry: MlflowRegistry, staged: Staged, store: Store) -> None:
    name = staged("Archived", "Production", "Staging", "None")
    assert registry.stages(name) == {1: "Archived", 2: "Production", 3: "Staging"}
    assert migrate(registry, name) == [
        "version 2 (Production) got the alias 'champion'.",
        "version 3 (Staging) got the alias 'candidate'.",
        "version 1 is Archived: whether one of them served before is not known, so the alias 'previous' is left alone.",
    ]
    assert registry.aliases(name) == {"champion": 2, "candidate": 3}
    assert reigning(store, registry, name).version == 2  # type: ignore[union-attr]
    assert [event.kind for event in chain.events(store, model=name)] == ["adopted"]


def test_of_several_the_newest_is_taken_and_the_others_are_named(registry: MlflowRegistry, staged: Staged) -> None:
    name = staged("Production", "Production", "Production")
    done = migrate(registry, name)
    assert done == ["version 3 (Production) got the alias 'champion'.", "versions 1, 2 are Production, too, and older: left without an alias."]
    assert registry.aliases(name) == {"champion": 3}


def test_a_second_time_changes_nothing(registry: MlflowRegistry, staged: Staged) -> None:
    name = staged("Production", "Staging")
    migrate(registry, name)
    assert migrate(registry, name) == [
        "version 1 (Production) has the alias 'champion' already.",
        "version 2 (Staging) has the alias 'candidate' already.",
    ]
    assert registry.aliases(name) == {"champion": 1, "candidate": 2}


def test_an_alias_that_exists_stays_where_it_is(registry: MlflowRegistry, staged: Staged) -> None:
    name = staged("None", "Production", "Production")
    registry.set_alias(name, "champion", 1)
    assert migrate(registry, name) == ["the alias 'champion' is on version 1 and stays there; versions 2, 3 are Production."]
    assert registry.aliases(name) == {"champion": 1}


def test_a_dry_run_says_the_same_and_does_nothing(registry: MlflowRegistry, staged: Staged) -> None:
    name = staged("Production", "Staging")
    assert migrate(registry, name, dry_run=True) == [
        "version 1 (Production) would get the alias 'champion'.",
        "version 2 (Staging) would get the alias 'candidate'.",
    ]
    assert registry.aliases(name) == {}


def test_a_model_without_stages_and_one_that_is_not_there(registry: MlflowRegistry, staged: Staged) -> None:
    assert migrate(registry, staged("None")) == ["no version has a stage; nothing to do."]
    with pytest.raises(ModelNotFound, match="no-such-model"):
        migrate(registry, "no-such-model")


def test_the_command_does_one_model_or_all(registry: MlflowRegistry, staged: Staged, tracking_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = staged("Production")
    command = ["registry", "migrate-stages", "--tracking-uri", tracking_uri]
    assert cli.main([*command, "--dry-run"]) == 0
    assert f"{name}: version 1 (Production) would get the alias 'champion'.\n" in capsys.readouterr().out
    assert registry.aliases(name) == {}
    assert cli.main([*command, "--model", name]) == 0
    assert capsys.readouterr().out.endswith(f"{name}: version 1 (Production) got the alias 'champion'.\n")
    assert registry.aliases(name) == {"champion": 1}
    assert cli.main([*command, "--model", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err


def test_more_models_and_versions_than_fit_on_a_page_are_all_found(
    registry: MlflowRegistry, staged: Staged, new_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_models, search_versions = MlflowClient.search_registered_models, MlflowClient.search_model_versions
    monkeypatch.setattr(MlflowClient, "search_registered_models", lambda *a, **k: search_models(*a, **k, max_results=1))
    monkeypatch.setattr(MlflowClient, "search_model_versions", lambda *a, **k: search_versions(*a, **k, max_results=1))
    staged("Staging", "Production", "Archived")
    registry.register(f"{new_name}-too", "", "s3://elsewhere")
    assert registry.stages(new_name) == {1: "Staging", 2: "Production", 3: "Archived"}
    assert {new_name, f"{new_name}-too"} <= set(registry.models())
