"""What ledger, registry and servers say of a model is compared; the safe part is repaired, the rest told."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_mlops.exceptions import ModelNotFound, RegistryError, RegistryUnavailable
from airflow_mlops.ledger import chain, champions, journal
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store, now
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.registry.reconciliation import Difference, delete_version, reconcile


def of(name: str, differences: list[Difference]) -> list[Difference]:
    """Leave out what other tests did to their models."""
    return [difference for difference in differences if difference.model == name]


def test_what_agrees_is_not_mentioned(store: Store, registry: MlflowRegistry, name: str) -> None:
    assert of(name, reconcile(store, registry, {name: 2})) == []


def test_an_alias_moved_by_hand_is_moved_back_and_that_is_in_the_trail(store: Store, registry: MlflowRegistry, name: str) -> None:
    registry.set_alias(name, "champion", 3)
    registry.remove_alias(name, "previous")
    (difference,) = of(name, reconcile(store, registry))
    assert difference.repaired
    assert "'champion' was on version 3, 'previous' was on nobody" in difference.message
    assert registry.aliases(name) == {"champion": 2, "previous": 1, "candidate": 3}
    (event,) = chain.events(store, model=name, kinds=["aliases repaired"])
    assert (event.subject, event.details["aliases"]) == (f"{name}@2", {"champion": 3, "previous": None})
    assert of(name, reconcile(store, registry)) == []


def test_a_champion_that_was_deleted_is_told_and_nobody_takes_its_place(store: Store, registry: MlflowRegistry, name: str) -> None:
    registry.delete_version(name, 2)
    (difference,) = of(name, reconcile(store, registry))
    assert not difference.repaired
    assert "The champion, version 2, was deleted from the registry" in difference.message
    assert "champion" not in registry.aliases(name)


def test_a_lost_way_back_and_a_changed_digest_are_told(store: Store, registry: MlflowRegistry, name: str) -> None:
    registry.delete_version(name, 1)
    registry.set_tags(name, 2, {"model_digest": "sha256:other"})
    digest, previous = of(name, reconcile(store, registry))
    assert "has the model_digest sha256:other; it was promoted with sha256:2" in digest.message
    assert "Version 1, which a rollback would go back to, was deleted" in previous.message
    assert not digest.repaired and not previous.repaired


@pytest.mark.parametrize(("served", "spoken"), [(1, "version 1"), (None, "nobody")])
def test_a_server_that_serves_something_else_is_told_and_left_alone(
    store: Store, registry: MlflowRegistry, name: str, served: int | None, spoken: str
) -> None:
    (difference,) = of(name, reconcile(store, registry, {name: served}, at=now() + timedelta(minutes=2)))
    assert not difference.repaired
    assert f"The servers serve {spoken}; the champion is version 2 since" in difference.message


@pytest.mark.parametrize(
    ("version", "reason"), [(2, "the alias 'champion' names it, it is the champion"), (1, "it is what a rollback goes back to"), (3, "'candidate'")]
)
def test_a_version_in_use_is_not_deleted(store: Store, registry: MlflowRegistry, name: str, version: int, reason: str) -> None:
    with pytest.raises(RegistryError, match=f"version {version} is not deleted: .*{reason}"):
        delete_version(store, registry, name, version, actor="ann", served={})
    assert registry.get(name, version).version == version


def test_a_version_that_serves_is_not_deleted_and_one_of_no_use_is(store: Store, registry: MlflowRegistry, name: str) -> None:
    registry.remove_alias(name, "candidate")
    with pytest.raises(RegistryError, match="version 3 is not deleted: it serves"):
        delete_version(store, registry, name, 3, actor="ann", served={name: 3})
    delete_version(store, registry, name, 3, actor="ann", served={name: 2})
    with pytest.raises(ModelNotFound):
        registry.get(name, 3)
    (event,) = chain.events(store, model=name, kinds=["deleted"])
    assert (event.subject, event.actor) == (f"{name}@3", "ann")


def test_a_deletion_whose_answer_was_lost_is_completed_by_the_next_try_with_its_event(store: Store, registry: MlflowRegistry, name: str) -> None:
    class Deaf:
        """The registry, whose answer to a deletion never arrives."""

        def __getattr__(self, method: str) -> object:
            return getattr(registry, method)

        def delete_version(self, name: str, version: int) -> None:
            registry.delete_version(name, version)
            raise RegistryUnavailable("MLflow did not answer.")

    registry.remove_alias(name, "candidate")
    with pytest.raises(RegistryUnavailable):
        delete_version(store, Deaf(), name, 3, actor="ann", served={})  # type: ignore[arg-type]
    assert list(chain.events(store, model=name, kinds=["deleted"])) == []
    for _ in range(2):
        delete_version(store, registry, name, 3, actor="ann", served={})
    (event,) = chain.events(store, model=name, kinds=["deleted"])
    assert event.subject == f"{name}@3"


def test_a_version_that_never_was_is_not_said_to_be_deleted(store: Store, registry: MlflowRegistry, name: str) -> None:
    with pytest.raises(ModelNotFound):
        delete_version(store, registry, name, 9, actor="ann", served={})
    assert list(chain.events(store, model=name, kinds=["deleted"])) == []


def test_without_airflow_a_rollout_runs_until_there_is_a_later_champion(store: Store, registry: MlflowRegistry, name: str) -> None:
    later = now() + timedelta(minutes=2)
    journal.once(store, f"plan {name}", "plan-rollout", {"model": name, "version": 3, "run": "r/1"}, dict)
    assert of(name, reconcile(store, registry, {name: 3}, at=later)) == []
    champions.crown(store, Claim(f"{name} 1 again", name, 1, 2))
    assert "The servers serve version 3" in of(name, reconcile(store, registry, {name: 3}, at=later))[-1].message
