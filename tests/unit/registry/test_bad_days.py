"""A real MLflow server that is slow, answers 500 after it has applied, or loses versions: nothing happens twice, nothing stays half done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from airflow_mlops.exceptions import ModelNotFound, RegistryError, RegistryUnavailable
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry import mlflow_server as adapter
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.registry.nomination import nominate
from airflow_mlops.registry.promotion import promote
from airflow_mlops.registry.reconciliation import delete_version, reconcile
from tests import mlflow_server
from tests.mlflow_server import Proxy

CREATE, NEW_MODEL = ("POST", "model-versions/create"), ("POST", "registered-models/create")
SET_ALIAS, NO_ALIAS = ("POST", "registered-models/alias"), ("DELETE", "registered-models/alias")
SET_TAG, DELETE = ("POST", "model-versions/set-tag"), ("DELETE", "model-versions/delete")
ONE_LOST, ALL_LOST = 1, 3  # answers: MLflow's client asks three times
TAGS = {"model_digest": "sha256:new"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[SimpleNamespace]:
    with mlflow_server.running_server(tmp_path_factory.mktemp("server"), empty_mlflow) as running:
        yield running


@pytest.fixture
def proxy(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # the pauses between its tries
    with mlflow_server.proxy(server.port) as running:
        yield running


@pytest.fixture
def behind(server: SimpleNamespace) -> MlflowRegistry:
    """The registry without the proxy before it."""
    return MlflowRegistry(server.uri)


@pytest.fixture
def registry(proxy: Proxy) -> MlflowRegistry:
    return MlflowRegistry(proxy.uri)


@pytest.fixture(scope="module")
def run(server: SimpleNamespace, log_run: Callable[[MlflowRegistry], SimpleNamespace]) -> SimpleNamespace:
    return log_run(MlflowRegistry(server.uri))


@pytest.fixture
def name(behind: MlflowRegistry, run: SimpleNamespace, store: Store, new_name: str) -> str:
    """A model with versions 1 to 3: 1 was champion, 2 is, 3 is the candidate."""
    for version in ("1", "2", "3"):
        behind.register(new_name, run.run_id, run.artifact_uri, tags={"model_digest": f"sha256:{version}"}, idempotency_key=version)
    promote(store, behind, Claim(f"{new_name} 1", new_name, 1, None, digest="sha256:1"))
    promote(store, behind, Claim(f"{new_name} 2", new_name, 2, 1, digest="sha256:2"))
    behind.set_alias(new_name, "candidate", 3)
    return new_name


def release(name: str) -> Claim:
    return Claim(f"promote:{name}:3", name, 3, 2, 2, "sha256:3", actor="release/run 1")


def versions(server: SimpleNamespace, name: str) -> list[int]:
    return sorted(int(version.version) for version in MlflowClient(server.uri).search_model_versions(f"name = '{name}'"))


def seen(store: Store, registry: MlflowRegistry, name: str) -> dict[str, object]:
    """Return what ledger, trail and registry say of a model."""
    trail = [f"{event.kind} {event.subject}" for event in chain.events(store, model=name)]
    return {"reigns": [reign.version for reign in champions.history(store, name)], "trail": trail, "aliases": registry.aliases(name)}


def promoted(name: str) -> dict[str, object]:
    trail = [f"promoted {name}@{version}" for version in (1, 2, 3)]
    return {"reigns": [1, 2, 3], "trail": trail, "aliases": {"champion": 3, "previous": 2}}


@pytest.mark.parametrize("what", [NEW_MODEL, CREATE])
@pytest.mark.parametrize("num", [ONE_LOST, ALL_LOST])
def test_a_registration_whose_answers_are_lost_ends_in_one_version(
    server: SimpleNamespace, proxy: Proxy, registry: MlflowRegistry, run: SimpleNamespace, new_name: str, what: tuple[str, str], num: int
) -> None:
    proxy.lost[what] = num
    if num == ALL_LOST:
        with pytest.raises(RegistryUnavailable, match="500"):
            registry.register(new_name, run.run_id, run.artifact_uri, tags=TAGS)
    version = registry.register(new_name, run.run_id, run.artifact_uri, tags=TAGS)
    assert (version.version, version.tags["model_digest"]) == (1, "sha256:new")
    assert versions(server, new_name) == [1]
    assert registry.register(new_name, run.run_id, run.artifact_uri, tags=TAGS) == version


@pytest.mark.parametrize("what", [SET_ALIAS, NO_ALIAS])
@pytest.mark.parametrize("num", [ONE_LOST, ALL_LOST])
def test_a_promotion_whose_answers_are_lost_happens_once(
    proxy: Proxy, registry: MlflowRegistry, store: Store, name: str, what: tuple[str, str], num: int
) -> None:
    proxy.lost[what] = num
    if num == ALL_LOST:
        with pytest.raises(RegistryUnavailable, match="500"):
            promote(store, registry, release(name))
    for _ in range(2):
        assert promote(store, registry, release(name)).champion == 3
    assert proxy.lost == {what: 0}
    assert seen(store, registry, name) == promoted(name)


@pytest.mark.parametrize("what", [SET_TAG, SET_ALIAS])
def test_a_nomination_whose_answers_are_lost_is_completed(
    proxy: Proxy, registry: MlflowRegistry, run: SimpleNamespace, name: str, what: tuple[str, str]
) -> None:
    version = registry.register(name, run.run_id, run.artifact_uri)
    proxy.lost[what] = ALL_LOST
    with pytest.raises(RegistryUnavailable):
        nominate(registry, version, {"gate.decision": "passed"})
    assert nominate(registry, registry.get(name, version.version), {"gate.decision": "passed"})
    assert registry.get_by_alias(name, "candidate").tags["gate.decision"] == "passed"


@pytest.mark.parametrize("num", [ONE_LOST, ALL_LOST])
def test_a_deletion_whose_answers_are_lost_is_in_the_trail_once(
    server: SimpleNamespace, proxy: Proxy, registry: MlflowRegistry, store: Store, name: str, num: int
) -> None:
    registry.remove_alias(name, "candidate")
    proxy.lost[DELETE] = num
    if num == ALL_LOST:
        with pytest.raises(RegistryUnavailable, match="500"):
            delete_version(store, registry, name, 3, actor="ann", served={})
    for _ in range(2):
        delete_version(store, registry, name, 3, actor="ann", served={})
    assert versions(server, name) == [1, 2]
    assert [event.subject for event in chain.events(store, model=name, kinds=["deleted"])] == [f"{name}@3"]


@pytest.mark.parametrize("what", [CREATE, SET_ALIAS])
def test_an_mlflow_that_applies_and_answers_too_late_is_unavailable_and_then_found_right(
    server: SimpleNamespace,
    proxy: Proxy,
    registry: MlflowRegistry,
    store: Store,
    run: SimpleNamespace,
    name: str,
    what: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def release_anew() -> None:
        registry.register(name, run.run_id, run.artifact_uri)
        promote(store, registry, release(name))

    proxy.late[what] = 30.0
    with monkeypatch.context() as patch, pytest.raises(RegistryUnavailable, match=r"timed out|Timeout") as caught:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # 120 s otherwise
        release_anew()
    assert caught.value.retryable
    assert proxy.count(what) == 3
    proxy.late.clear()
    release_anew()
    assert versions(server, name) == [1, 2, 3, 4]
    assert seen(store, registry, name) == promoted(name)


def test_an_mlflow_whose_health_is_late_is_noticed_before_anything_is_asked(
    proxy: Proxy, registry: MlflowRegistry, store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "PROBE_SECONDS", 0.5)
    proxy.late["GET", "/health"] = 30.0
    with pytest.raises(RegistryUnavailable):
        promote(store, registry, release(name))
    assert proxy.seen == [("GET", "/health")]
    proxy.late.clear()
    promote(store, registry, release(name))
    assert seen(store, registry, name) == promoted(name)


def test_a_candidate_that_is_deleted_before_its_alias_leaves_the_champion_everywhere(
    proxy: Proxy, registry: MlflowRegistry, behind: MlflowRegistry, store: Store, name: str
) -> None:
    proxy.first[SET_ALIAS] = lambda: behind.delete_version(name, 3)
    for _ in range(2):
        with pytest.raises(ModelNotFound):
            promote(store, registry, release(name))
        trail = [f"promoted {name}@{version}" for version in (1, 2, 3)] + [f"taken back {name}@2"]
        assert seen(store, registry, name) == {"reigns": [1, 2, 3, 2], "trail": trail, "aliases": {"champion": 2, "previous": 1}}
    assert champions.current(store, name).digest == "sha256:2"  # type: ignore[union-attr]


def test_a_candidate_that_is_deleted_while_mlflow_is_down_is_taken_back_by_the_next_try(
    proxy: Proxy, registry: MlflowRegistry, behind: MlflowRegistry, store: Store, name: str
) -> None:
    champions.crown(store, release(name))  # and then the first try died
    behind.delete_version(name, 3)
    proxy.lost["GET", "model-versions/get"] = ALL_LOST
    with pytest.raises(RegistryUnavailable):
        promote(store, registry, release(name))
    with pytest.raises(ModelNotFound):
        promote(store, registry, release(name))
    assert seen(store, registry, name)["reigns"] == [1, 2, 3, 2]
    assert registry.aliases(name) == {"champion": 2, "previous": 1}


def test_a_champion_that_was_deleted_later_is_not_taken_back_when_its_release_is_run_again(registry: MlflowRegistry, store: Store, name: str) -> None:
    promote(store, registry, release(name))
    registry.delete_version(name, 3)
    with pytest.raises(ModelNotFound):
        promote(store, registry, release(name))
    assert seen(store, registry, name)["reigns"] == [1, 2, 3]
    assert any("The champion, version 3, was deleted" in one.message for one in reconcile(store, registry) if one.model == name)


def test_a_way_back_that_is_deleted_before_its_alias_does_not_stop_a_promotion(
    proxy: Proxy, registry: MlflowRegistry, behind: MlflowRegistry, store: Store, name: str
) -> None:
    def the_next_one() -> None:
        proxy.first[SET_ALIAS] = lambda: behind.delete_version(name, 2)

    proxy.first[SET_ALIAS] = the_next_one  # of the two that are set, the second is the way back's
    assert promote(store, registry, release(name)).champion == 3
    assert registry.aliases(name)["champion"] == 3
    assert registry.aliases(name).get("previous") != 2


def test_a_version_without_files_or_of_another_digest_is_refused_and_nothing_changes(
    registry: MlflowRegistry, store: Store, name: str, tmp_path: Path
) -> None:
    before = seen(store, registry, name)
    with registry.start_run("digits", name="cut off", tags={}) as run:
        pass
    empty = registry.register(name, run.run_id, run.artifact_uri, tags={"model_digest": "sha256:4"})
    with pytest.raises(ModelNotFound, match=f"Version {empty.version} of '{name}' has no artefact 'saved_model' in run {run.run_id}"):
        registry.download(empty, "saved_model", tmp_path / "saved_model")
    registry.set_tags(name, 3, {"model_digest": "sha256:other"})
    with pytest.raises(RegistryError, match=r"has the model_digest sha256:other; expected sha256:3") as caught:
        promote(store, registry, release(name))
    assert not caught.value.retryable
    assert seen(store, registry, name) == before


def test_a_server_that_dies_in_a_promotion_is_found_right_when_it_is_back(
    proxy: Proxy, registry: MlflowRegistry, server: SimpleNamespace, store: Store, name: str
) -> None:
    """It is frozen, so that it keeps its port; to those who ask it is as dead."""
    proxy.first[SET_ALIAS] = lambda: proxy.lost.update({SET_ALIAS: ALL_LOST})
    with pytest.raises(RegistryUnavailable):
        promote(store, registry, release(name))
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RegistryUnavailable):
            patch.setattr(adapter, "PROBE_SECONDS", 0.5)
            promote(store, MlflowRegistry(server.uri), release(name))
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    promote(store, registry, release(name))
    assert seen(store, registry, name) == promoted(name)
