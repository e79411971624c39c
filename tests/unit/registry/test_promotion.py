"""Promotion on a real registry: conflicts, repetition, and a crash after every single write."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_mlops.exceptions import ModelNotFound, PromotionConflict
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.registry.promotion import Promotion, nominate, promote

NAMES = (f"promoted-{number}" for number in count())


class Crash(Exception):
    """The process dies here."""


class CrashingRegistry:
    """A registry whose process dies right after its write number `last`."""

    def __init__(self, registry: MlflowRegistry, last: int) -> None:
        self._registry = registry
        self._left = last

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._registry, name)
        return self._counted(method) if name in {"set_alias", "remove_alias", "set_tags"} else method

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            method(*args)
            self._left -= 1
            if not self._left:
                raise Crash

        return call


@pytest.fixture
def name(registry: MlflowRegistry, run: SimpleNamespace) -> str:
    """A model with versions 1 to 3: 1 was champion, 2 is, 3 is the candidate."""
    name = next(NAMES)
    for version in ("1", "2", "3"):
        registry.register(name, run.run_id, run.artifact_uri, idempotency_key=version)
    for alias, holder in {"previous": 1, "champion": 2, "candidate": 3}.items():
        registry.set_alias(name, alias, holder)
    return name


def aliases(registry: MlflowRegistry, name: str) -> dict[str, int]:
    return {alias: version for version in (1, 2, 3) for alias in registry.get(name, version).aliases}


def test_the_challenger_becomes_champion_and_the_champion_previous(registry: MlflowRegistry, name: str) -> None:
    assert promote(registry, name, 3, 2) == Promotion(name, champion=3, previous=2)
    assert aliases(registry, name) == {"champion": 3, "previous": 2}


def test_promoting_twice_changes_nothing_more(registry: MlflowRegistry, name: str) -> None:
    first = promote(registry, name, 3, 2)
    assert promote(registry, name, 3, 2) == first
    assert aliases(registry, name) == {"champion": 3, "previous": 2}


def test_the_first_champion_has_no_previous(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    name = next(NAMES)
    registry.register(name, run.run_id, run.artifact_uri)
    assert promote(registry, name, 1, None) == Promotion(name, champion=1, previous=None)
    assert registry.get(name, 1).aliases == ("champion",)


@pytest.mark.parametrize(("expected", "spoken"), [(1, "version 1"), (None, "nobody")])
def test_a_champion_that_changed_since_the_evaluation_is_a_conflict(registry: MlflowRegistry, name: str, expected: int | None, spoken: str) -> None:
    with pytest.raises(PromotionConflict, match=f"is version 2, but version 3 was evaluated against {spoken}.*again"):
        promote(registry, name, 3, expected)
    assert aliases(registry, name) == {"champion": 2, "previous": 1, "candidate": 3}


def test_a_champion_that_vanished_is_a_conflict(registry: MlflowRegistry, name: str) -> None:
    registry.remove_alias(name, "champion")
    with pytest.raises(PromotionConflict, match="is nobody, but"):
        promote(registry, name, 3, 2)


def test_a_version_that_does_not_exist_is_not_promoted(registry: MlflowRegistry, name: str) -> None:
    with pytest.raises(ModelNotFound):
        promote(registry, name, 9, 2)
    assert aliases(registry, name)["champion"] == 2


def test_another_versions_candidacy_is_left_alone(registry: MlflowRegistry, name: str) -> None:
    promote(registry, name, 1, 2)
    assert aliases(registry, name) == {"champion": 1, "previous": 2, "candidate": 3}


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_crash_after_any_write_loses_nobody_and_the_same_call_completes(registry: MlflowRegistry, name: str, last: int) -> None:
    with pytest.raises(Crash):
        promote(CrashingRegistry(registry, last), name, 3, 2)  # type: ignore[arg-type]
    left = aliases(registry, name)
    assert left["champion"] in {2, 3}
    assert 2 in {left["champion"], left["previous"]}
    assert promote(registry, name, 3, 2) == Promotion(name, champion=3, previous=2)
    assert aliases(registry, name) == {"champion": 3, "previous": 2}


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
