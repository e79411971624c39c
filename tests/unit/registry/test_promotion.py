"""Promotion on a real registry and ledger: conflicts, repetition, several at once, and death between any two steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_mlops.exceptions import ModelNotFound, PromotionConflict, RegistryError, RegistryUnavailable
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.registry.nomination import nominate
from airflow_mlops.registry.promotion import Promotion, project, promote, reigning

ROOT = Path(__file__).parents[3]


def claim(name: str, version: int, expected: int | None, *, intent: str = "", digest: str | None = None, token: int | None = None) -> Claim:
    return Claim(intent or f"promote:{name}:{version}", name, version, expected, token, digest, actor="release/run 1")


def test_the_challenger_becomes_champion_and_the_champion_previous(store: Store, registry: MlflowRegistry, name: str) -> None:
    assert promote(store, registry, claim(name, 3, 2, digest="sha256:3", token=2)) == Promotion(name, champion=3, previous=2, token=3)
    assert registry.aliases(name) == {"champion": 3, "previous": 2}
    assert champions.current(store, name).version == 3  # type: ignore[union-attr]


def test_promoting_twice_changes_nothing_more(store: Store, registry: MlflowRegistry, name: str) -> None:
    first = promote(store, registry, claim(name, 3, 2))
    events = chain.head(store)
    assert promote(store, registry, claim(name, 3, 2)) == first
    assert chain.head(store) == events
    assert registry.aliases(name) == {"champion": 3, "previous": 2}


def test_a_release_that_is_run_again_after_another_does_not_say_that_its_version_is_champion(
    store: Store, registry: MlflowRegistry, name: str
) -> None:
    promote(store, registry, claim(name, 3, 2))
    promote(store, registry, claim(name, 1, 3))
    with pytest.raises(PromotionConflict, match=r"This run made version 3 of .* champion on .*, and version 1 took its place on"):
        promote(store, registry, claim(name, 3, 2))
    assert registry.aliases(name) == {"champion": 1, "previous": 3}


def test_the_first_champion_has_no_previous(store: Store, registry: MlflowRegistry, run: SimpleNamespace, new_name: str) -> None:
    registry.register(new_name, run.run_id, run.artifact_uri)
    assert promote(store, registry, claim(new_name, 1, None)) == Promotion(new_name, champion=1, previous=None, token=1)
    assert registry.aliases(new_name) == {"champion": 1}


@pytest.mark.parametrize(("expected", "spoken"), [(1, "version 1"), (None, "nobody")])
def test_a_champion_that_changed_since_the_evaluation_is_a_conflict(
    store: Store, registry: MlflowRegistry, name: str, expected: int | None, spoken: str
) -> None:
    with pytest.raises(PromotionConflict, match=f"is version 2 since .*, but version 3 was evaluated against {spoken}.*again"):
        promote(store, registry, claim(name, 3, expected))
    assert registry.aliases(name) == {"champion": 2, "previous": 1, "candidate": 3}


@pytest.mark.parametrize("alias", ["champion", "previous"])
def test_an_alias_that_was_moved_or_removed_by_hand_does_not_decide(store: Store, registry: MlflowRegistry, name: str, alias: str) -> None:
    registry.remove_alias(name, alias)
    registry.set_alias(name, "champion", 1)
    assert promote(store, registry, claim(name, 3, 2)).champion == 3
    assert registry.aliases(name) == {"champion": 3, "previous": 2}


def test_a_version_that_does_not_exist_or_no_longer_is_not_promoted(store: Store, registry: MlflowRegistry, name: str) -> None:
    registry.delete_version(name, 3)
    for version in (3, 9):
        with pytest.raises(ModelNotFound):
            promote(store, registry, claim(name, version, 2))
    assert registry.aliases(name)["champion"] == 2
    assert champions.current(store, name).version == 2  # type: ignore[union-attr]


def test_a_version_whose_digest_is_not_the_approved_one_is_not_promoted(store: Store, registry: MlflowRegistry, name: str) -> None:
    registry.set_tags(name, 3, {"model_digest": "sha256:other"})
    with pytest.raises(RegistryError, match=r"has the model_digest sha256:other; expected sha256:3, which was evaluated and approved"):
        promote(store, registry, claim(name, 3, 2, digest="sha256:3"))
    assert champions.current(store, name).version == 2  # type: ignore[union-attr]


def test_another_versions_candidacy_is_left_alone(store: Store, registry: MlflowRegistry, name: str) -> None:
    promote(store, registry, claim(name, 1, 2))
    assert registry.aliases(name) == {"champion": 1, "previous": 2, "candidate": 3}


def test_a_way_back_that_was_deleted_does_not_stop_a_release(store: Store, registry: MlflowRegistry, name: str) -> None:
    registry.delete_version(name, 2)
    assert promote(store, registry, claim(name, 3, 2)).previous == 2
    assert registry.aliases(name)["champion"] == 3


def test_a_champion_from_before_the_ledger_is_adopted_once(store: Store, registry: MlflowRegistry, run: SimpleNamespace, new_name: str) -> None:
    for version in ("1", "2"):
        registry.register(new_name, run.run_id, run.artifact_uri, idempotency_key=version)
    assert reigning(store, registry, new_name) is None
    registry.set_alias(new_name, "champion", 1)
    for _ in range(2):
        assert reigning(store, registry, new_name).version == 1  # type: ignore[union-attr]
    assert promote(store, registry, claim(new_name, 2, 1)).previous == 1
    assert [event.kind for event in chain.events(store, model=new_name)] == ["adopted", "promoted"]
    assert reigning(store, registry, f"no-{new_name}") is None


def test_aliases_that_something_else_moves_all_the_time_are_not_fought_for_ever(store: Store, registry: MlflowRegistry, name: str) -> None:
    class Moved:
        """The registry, in which somebody moves the alias back after each of our writes."""

        def __getattr__(self, method: str) -> object:
            return getattr(registry, method)

        def set_alias(self, name: str, alias: str, version: int) -> None:
            registry.set_alias(name, alias, 3 - version)

    registry.set_alias(name, "champion", 1)
    with pytest.raises(RegistryUnavailable, match="do not stay as they are set"):
        project(store, Moved(), name)  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "nominated"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_registration_that_is_repeated_later_brings_no_old_model_back(
    registry: MlflowRegistry, run: SimpleNamespace, name: str, version: int, nominated: bool
) -> None:
    registry.register(name, run.run_id, run.artifact_uri, idempotency_key="4")
    assert nominate(registry, registry.get(name, version), {"gate.evaluation": "measured again"}) is nominated
    candidate = version if nominated else 3
    assert registry.get_by_alias(name, "candidate").version == candidate
    assert registry.get_by_alias(name, "champion").version == 2
    assert ("gate.evaluation" in registry.get(name, version).tags) is nominated


@pytest.mark.parametrize("ledger_server", ["sqlite"], indirect=True)  # on PostgreSQL the proofs do it, at every step
def test_a_promoter_killed_between_two_steps_promotes_exactly_once(tmp_path: Path, ledger_server: list[str]) -> None:
    """At every twentieth step; at all of them in tests/proofs."""
    command = [sys.executable, "-m", "tests.promotions", "kill", str(tmp_path), "20", *ledger_server]
    report = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert report == {"num_kills": 3, "wrong": []}


@pytest.mark.parametrize(
    ("ledger_server", "frozen_at"),
    [
        ("sqlite", "between look and write"),
        pytest.param("postgresql", "between look and write", marks=pytest.mark.long),
        ("sqlite", "in the middle of its aliases"),
    ],
    indirect=["ledger_server"],
)
def test_a_promoter_frozen_while_another_wins_does_not_win_when_it_goes_on(tmp_path: Path, frozen_at: str, ledger_server: list[str]) -> None:
    command = [sys.executable, "-m", "tests.promotions", "freeze", str(tmp_path), frozen_at, *ledger_server]
    report = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert report["champion"] == report["alias"] == 3
    assert report["reigns"] == ([1, 3] if frozen_at == "between look and write" else [1, 2, 3])
    assert report["frozen"] == "PromotionConflict"


def test_of_eight_that_promote_at_once_one_wins_each_round_and_the_others_are_told(ledger_url: str) -> None:
    command = [sys.executable, "-m", "tests.promotions", "race", ledger_url, "25"]
    report = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert report == {"rounds": 25, "won": 25, "conflicts": 25 * 7, "reigns": 25, "events": 25, "lost": 0}
