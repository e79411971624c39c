"""Gate, register, select, promote: over a real registry in a SQLite file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped

from airflow_mlops.exceptions import ModelNotFound, RegistryUnavailable
from airflow_mlops.gates import ReleasePolicy
from airflow_mlops.ledger import champions, handovers
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.gate import GateModelOperator
from airflow_mlops.operators.model import MlflowPromoteModelOperator, MlflowSelectCandidateOperator
from airflow_mlops.operators.registration import MlflowRegisterModelOperator
from airflow_mlops.records import ResultRef, evidence_digest, lineage
from airflow_mlops.registry import registrations
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.results import from_data, to_data
from tests import fakes
from tests.fakes import FakeTaskInstance, context

CANDIDATE = Asset("digits_candidate")


class Shop:
    """One registered model of its own name per test, and the records of a training."""

    def __init__(self, name: str, database: Path, directory: Path, ledger: Store) -> None:
        self.name, self.directory, self.registry, self.ledger = name, directory, MlflowRegistry(f"sqlite:///{database}"), ledger

    def records(self, **training: Any) -> dict[str, Any]:
        """Return what the stages before the gate returned."""
        with self.registry.start_run(self.name, name="training", tags={}) as run:
            pass
        origin = {"mlflow_run_id": run.run_id, "mlflow_source": run.artifact_uri, **training}
        home = self.directory / run.run_id
        refs = fakes.leave_records(home, fakes.training(home, **origin), fakes.evaluation(champion_version=None, champion_metrics=None))
        return {"evaluation": to_data(refs["evaluate"]), "robustness": to_data(refs["robustness"])}

    def handed(self, records: dict[str, Any]) -> Any:
        """Let the run's stages hand over all records that `records` are made from; return what comes after them."""
        refs = lineage(*(from_data(ResultRef, ref) for ref in records.values()))
        return fakes.handed_over(self.ledger, *map(to_data, refs.values()))

    def gate(self, records: dict[str, Any], policy: ReleasePolicy | None = None) -> GateModelOperator:
        return GateModelOperator(task_id="gate", policy=policy or ReleasePolicy(), **records)

    def decide(self, records: dict[str, Any], ti: FakeTaskInstance | None = None) -> dict[str, Any]:
        return self.gate(records).execute(context(ti, task=self.handed(records)))

    def register(self, records: dict[str, Any], policy: ReleasePolicy | None = None, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Register the model of `records`; return the operator's answer and its asset event's extra."""
        events, task = {CANDIDATE: SimpleNamespace(extra={})}, self.handed(records)
        settings: Any = {"model_name": self.name, "candidate": CANDIDATE, "policy": policy or ReleasePolicy(), **records}
        operator = MlflowRegisterModelOperator(task_id="register", **settings)
        return operator.execute(context(outlet_events=events, task=task, **more)), events[CANDIDATE].extra

    def select(self, *extras: dict[str, Any], version: Any = None, policy: ReleasePolicy | None = None) -> dict[str, Any]:
        settings: Any = {"model_name": self.name, "policy": policy or ReleasePolicy(), "version": version}
        ti = FakeTaskInstance(task_id="select")
        return MlflowSelectCandidateOperator(task_id="select", **settings).execute(context(ti, extras=extras))

    def promote(self, model: dict[str, Any], **about: Any) -> dict[str, Any]:
        ti = FakeTaskInstance(**{"run_id": "run 1", "task_id": "promote", **about})
        return MlflowPromoteModelOperator(task_id="promote", model=model).execute(context(ti, task=fakes.handed_over(self.ledger, model, ti=ti)))


@pytest.fixture
def shop(request: pytest.FixtureRequest, database: Path, tmp_path: Path, connect: Callable[..., None], ledger: Store) -> Shop:
    connect("mlflow_default", "mlflow", host=f"sqlite:///{database}")
    return Shop(request.node.name, database, tmp_path, ledger)


def test_a_good_model_passes_the_gate_and_nothing_is_skipped(shop: Shop) -> None:
    ti = FakeTaskInstance(task_id="gate")
    answer = shop.decide(shop.records(), ti)
    assert json.loads(json.dumps(answer)) == answer
    assert answer["released"]
    assert answer["headline"].startswith("released: no champion to compare with")
    assert ti.pushed == {}
    handed = handovers.handed_over(shop.ledger, f"{ti.dag_id}/{ti.run_id}")["gate"][-1].value
    assert set(handed["records"]) == {"validate", "train", "evaluate", "robustness"}


def test_a_model_that_is_not_good_enough_is_a_result_and_what_follows_directly_is_skipped(shop: Shop) -> None:
    ti, records = FakeTaskInstance(task_id="gate"), shop.records()
    with DAG("d"):
        gate = shop.gate(records, ReleasePolicy({"accuracy": 0.99}))
        after, later, beside = (BaseOperator(task_id=name) for name in ("after", "later", "beside"))
        gate >> after >> later
        gate >> beside
    task = shop.handed(records)
    task.get_direct_relatives = gate.get_direct_relatives
    seen = context(ti, task=task)
    with pytest.raises(DownstreamTasksSkipped) as caught:
        gate.execute(seen)
    assert seen["gate_decision"] == ti.pushed["return_value"]["headline"], "messages say what was decided, not what the XCom says by then"
    assert set(caught.value.tasks) == {"after", "beside"}
    stored = ti.pushed["return_value"]
    assert not stored["released"]
    assert stored["reasons"] == ["accuracy is 0.9500 on 200 held-out rows, below the required 0.99."]
    assert json.loads(json.dumps(stored)) == stored
    assert "gate" not in handovers.handed_over(shop.ledger, f"{ti.dag_id}/{ti.run_id}"), "so that a mark does not let 'register' run"


def test_a_gate_with_nothing_behind_it_still_says_no(shop: Shop) -> None:
    records = shop.records()
    with DAG("d"):
        gate = shop.gate(records, ReleasePolicy(max_defect_rate=0.1))
    task = shop.handed(records)
    task.get_direct_relatives = gate.get_direct_relatives
    answer = gate.execute(context(task=task))
    assert not answer["released"]


def test_a_gate_does_not_believe_a_record_that_changed(shop: Shop) -> None:
    records = shop.records()
    after = shop.handed(records)
    Path(records["evaluation"]["uri"]).write_text("{}")
    with pytest.raises(AirflowFailException, match=r"ResultInvalid: .*changed after its stage ended"):
        shop.gate(records).execute(context(task=after))


def test_a_gate_refuses_measures_of_two_different_models(shop: Shop) -> None:
    mixed = {"evaluation": shop.records()["evaluation"], "robustness": shop.records()["robustness"]}
    with pytest.raises(AirflowFailException, match=r"ResultInvalid: .*two different runs of stage 'train'"):
        shop.gate(mixed).execute(context(task=fakes.handed_over(shop.ledger, *mixed.values())))


@pytest.mark.parametrize("stage", ["validate", "train"])
def test_a_gate_and_a_registration_refuse_measures_of_a_model_that_another_run_trained(shop: Shop, stage: str) -> None:
    records = shop.records()
    refs = lineage(*(from_data(ResultRef, ref) for ref in records.values()))
    after = fakes.handed_over(shop.ledger, *(to_data(ref) for name, ref in refs.items() if name != stage))
    events = {CANDIDATE: SimpleNamespace(extra={})}
    register = MlflowRegisterModelOperator(task_id="r", model_name=shop.name, candidate=CANDIDATE, policy=ReleasePolicy(), **records)
    for operator in (shop.gate(records), register):
        with pytest.raises(AirflowFailException, match=f"NotHandedOver: .*{stage}"):
            operator.execute(context(task=after, outlet_events=events))
    assert shop.registry.models().count(shop.name) == 0


def test_a_version_says_what_each_stage_behind_it_used_and_cost(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__MLOPS__PRICE_CPU_HOUR", "0.5")
    monkeypatch.setenv("AIRFLOW__MLOPS__CURRENCY", "EUR")
    registered, _ = shop.register(shop.records())
    tags = shop.registry.get(registered["name"], registered["version"]).tags
    used = {name: tags[name] for name in tags if name.startswith("usage.")}
    assert used == dict.fromkeys(
        ("usage.evaluate", "usage.robustness", "usage.train", "usage.validate"), "1800.0 s, 3600.0 CPU seconds, 1.00 GiB of memory, 0.5000 EUR"
    )


def test_a_model_is_registered_once_with_its_origin_and_its_gates(shop: Shop) -> None:
    records = shop.records()
    first, extra = shop.register(records)
    again, _ = shop.register(records)
    assert first == again
    assert (first["name"], first["version"]) == (shop.name, 1)
    assert extra == {"model": shop.name, "version": 1}
    version = shop.registry.get(shop.name, 1)
    assert version.aliases == ("candidate",)
    training = fakes.training(shop.directory)
    expected = {
        "dataset": "digits v1",
        "evaluated_against": "none",
        "model_digest": training.model.digest,
        "saved_model_digest": training.saved_model.digest,
        "airflow_run": f"{FakeTaskInstance().dag_id}/{FakeTaskInstance().run_id}",
    }
    assert {name: version.tags[name] for name in expected} == expected
    assert version.tags["gate.decision"].startswith("released")
    refs = lineage(*(from_data(ResultRef, ref) for ref in records.values()))
    assert registrations.registered(shop.ledger, shop.name, 1).items() <= version.tags.items()
    assert json.loads(version.tags["evidence"]) == {stage: {"uri": ref.uri, "digest": ref.digest} for stage, ref in refs.items()}
    assert set(refs) == {"validate", "train", "evaluate", "robustness"}
    assert version.tags["evidence_digest"] == evidence_digest(refs)
    assert {"gate.validation", "gate.evaluation", "gate.robustness"} <= set(version.tags)


def test_a_version_names_its_features_so_that_whoever_measures_it_later_can_verify_them(shop: Shop) -> None:
    features = fakes.artifact(shop.directory / "features")
    registered, _ = shop.register(shop.records(features=features))
    assert shop.registry.get(shop.name, registered["version"]).tags["features_digest"] == features.digest
    registered, _ = shop.register(shop.records())
    assert "features_digest" not in shop.registry.get(shop.name, registered["version"]).tags


@pytest.mark.parametrize("how", ["alias", "event", "number", "text"])
def test_the_version_to_release_is_the_one_asked_for_the_one_that_came_or_the_candidate(shop: Shop, how: str) -> None:
    for _ in range(2):
        shop.register(shop.records())
    other = {"model": "another model", "version": 99}
    if how == "alias":
        chosen, expected = shop.select(), 2
    elif how == "event":
        chosen, expected = shop.select({"model": shop.name, "version": 1}, other), 1
    else:
        chosen, expected = shop.select({"model": shop.name, "version": 2}, version="1" if how == "text" else 1), 1
    assert (chosen["name"], chosen["version"], chosen["expected_champion"]) == (shop.name, expected, None)
    assert json.loads(json.dumps(chosen)) == chosen


def test_of_several_models_that_came_the_newest_is_released(shop: Shop) -> None:
    for _ in range(2):
        shop.register(shop.records())
    assert shop.select(*({"model": shop.name, "version": number} for number in (2, 1)))["version"] == 2


def test_promotion_believes_the_registry_and_not_its_memory(shop: Shop) -> None:
    shop.register(shop.records())
    chosen = shop.select()
    done = shop.promote(chosen)
    assert (done["champion"], done["previous"]) == (1, None)
    assert json.loads(json.dumps(done)) == done
    assert shop.promote(chosen) == done
    shop.registry.remove_alias(shop.name, "champion")  # by hand
    assert shop.promote(chosen, try_number=2) == done
    assert shop.registry.get(shop.name, 1).aliases == ("champion",)


def test_a_model_that_the_gate_refused_is_never_registered(shop: Shop) -> None:
    with pytest.raises(AirflowFailException, match="only one that passes is registered"):
        shop.register(shop.records(), ReleasePolicy({"accuracy": 0.99}))
    with pytest.raises(ModelNotFound):
        shop.registry.get(shop.name, 1)


def test_a_training_that_no_task_of_the_run_handed_over_is_not_judged(shop: Shop) -> None:
    records = shop.records()
    only_judged = fakes.handed_over(shop.ledger, *records.values())
    with pytest.raises(AirflowFailException, match=r"NotHandedOver: .*by the ledger"):
        shop.gate(records).execute(context(task=only_judged))


def test_a_registered_model_that_a_stricter_policy_refuses_is_not_released(shop: Shop) -> None:
    shop.register(shop.records())
    with pytest.raises(AirflowFailException, match=r"SpecError: .* version 1 is not to be released by today's policy \(.*accuracy"):
        shop.select(policy=ReleasePolicy({"accuracy": 0.99}))


def test_an_old_model_registered_again_starts_no_release(shop: Shop) -> None:
    old = shop.records()
    shop.register(old)
    shop.register(shop.records())
    with pytest.raises(AirflowSkipException, match="version 1 is not offered"):
        shop.register(old)
    assert shop.registry.get_by_alias(shop.name, "candidate").version == 2


def test_a_model_that_was_compared_with_another_champion_is_not_released(shop: Shop) -> None:
    for _ in range(2):
        shop.register(shop.records())
    shop.promote(shop.select(version=1))
    with pytest.raises(AirflowFailException, match=r"PromotionConflict: .*compared with champion none, but the champion is now 1"):
        shop.select(version=2)
    assert shop.select(version=1)["expected_champion"] == 1  # a release that is cleared after its promotion goes through again


def test_an_earlier_champion_is_not_released_again_and_the_error_names_the_way_back(shop: Shop) -> None:
    shop.register(shop.records())
    shop.promote(shop.select(version=1))
    champions.crown(shop.ledger, Claim("the next release", shop.name, 2, 1))
    with pytest.raises(AirflowFailException, match=rf"PromotionConflict: .* the champion is now 2. It was champion before. .*'{shop.name}_rollback'"):
        shop.select(version=1)


@pytest.mark.parametrize("version", [None, 1])
def test_a_version_that_went_through_no_gate_is_not_released(shop: Shop, version: int | None) -> None:
    with shop.registry.start_run(shop.name, name="by hand", tags={}) as run:
        pass
    shop.registry.register(shop.name, run.run_id, run.artifact_uri)
    shop.registry.set_alias(shop.name, "candidate", 1)
    with pytest.raises(AirflowFailException, match=r"SpecError: .*the ledger knows of no registration"):
        shop.select(version=version)


def test_a_champion_that_changed_between_selection_and_promotion_is_a_conflict(shop: Shop) -> None:
    for _ in range(2):
        shop.register(shop.records())
    late = shop.select(version=2)
    shop.promote(shop.select(version=1), run_id="run 1")
    with pytest.raises(AirflowFailException, match="PromotionConflict"):
        shop.promote(late, run_id="run 2")
    assert "champion" in shop.registry.get(shop.name, 1).aliases


def test_a_release_without_a_candidate_says_so(shop: Shop) -> None:
    with pytest.raises(AirflowFailException, match="ModelNotFound"):
        shop.select()


def test_a_registry_that_is_down_is_worth_a_retry(shop: Shop, connect: Callable[..., None]) -> None:
    records = shop.records()
    connect("mlflow_default", "mlflow", host="http://127.0.0.1:9")
    with pytest.raises(RegistryUnavailable, match="did not answer"):
        shop.select()
    with pytest.raises(RegistryUnavailable):
        shop.register(records)
    with pytest.raises(RegistryUnavailable):
        shop.promote({"name": shop.name, "version": 1, "expected_champion": None, "fencing_token": 0})


@pytest.mark.parametrize(
    ("operator_class", "settings"),
    [
        (GateModelOperator, {"evaluation": 1, "robustness": 2, "policy": ReleasePolicy()}),
        (MlflowSelectCandidateOperator, {"model_name": "m", "policy": ReleasePolicy(), "version": "7", "mlflow_conn_id": "a"}),
        (MlflowPromoteModelOperator, {"model": {"name": "m"}, "mlflow_conn_id": "a", "ledger_conn_id": "b"}),
        (MlflowRegisterModelOperator, {"model_name": "m", "candidate": CANDIDATE, "evaluation": 1, "robustness": 2, "policy": ReleasePolicy()}),
    ],
)
def test_constructors_only_assign(operator_class: type[BaseOperator], settings: dict[str, Any]) -> None:
    operator = operator_class(task_id="t", **settings)
    assert {name: getattr(operator, name) for name in settings} == settings


def test_the_description_of_a_model_is_a_template_in_depth() -> None:
    operator = MlflowPromoteModelOperator(task_id="t", model={"name": "{{ params.model }}", "version": 3})
    operator.render_template_fields({"params": {"model": "digits"}})
    assert operator.model == {"name": "digits", "version": 3}
