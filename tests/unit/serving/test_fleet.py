"""Several replicas as one: what is said of the fleet must hold on each, and one that fails is named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airflow_mlops.exceptions import RolloutFailed, ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving import config, rollout, tensors
from airflow_mlops.serving.availability import VersionStatus
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.fleet import ServingFleet
from tests.bare_saved_models import signature, tensor
from tests.replicas import AVAILABLE, LOADING, REFUSED, UNAVAILABLE, Replica, nobody, replica, seconds
from tests.rollouts import roll_out

CONFIG = ServerConfig((ModelConfig("m", "/models/m", (2,)),))
BROKEN = VersionStatus("END", "no graph")


PLAN = rollout.Plan("m", 2, None, "/models/m", "/models.config", deadline=0.0)


def golden(path: Path, inputs: Any, outputs: Any) -> Path:
    path.write_text(json.dumps({"inputs": inputs, "outputs": outputs}))
    return path


@pytest.fixture
def served() -> Iterator[list[Replica]]:
    with replica(versions={2: AVAILABLE}) as first, replica(versions={2: AVAILABLE}) as second:
        yield [first, second]


@contextlib.contextmanager
def fleet(*replicas: Replica, deadline_seconds: float | None = None) -> Iterator[ServingFleet]:
    with ServingFleet(replica.client(deadline_seconds) for replica in replicas) as fleet:
        yield fleet


def test_a_version_is_available_only_where_every_replica_says_so(served: list[Replica]) -> None:
    with fleet(*served) as both:
        assert both.status("m") == {2: AVAILABLE}
        served[1].versions = {1: AVAILABLE, 2: LOADING}
        assert both.status("m") == {1: VersionStatus("START"), 2: LOADING}
        served[0].versions = {2: BROKEN}
        assert both.status("m")[2] == VersionStatus("END", f"replica {served[0].grpc_address}: no graph")
        assert both.statuses("m") == {served[0].grpc_address: {2: BROKEN}, served[1].grpc_address: {1: AVAILABLE, 2: LOADING}}
        assert both.status("nobody") == {}


def test_a_replica_that_is_down_is_seen_and_named(served: list[Replica]) -> None:
    down = nobody()
    with fleet(served[0], down) as both:
        assert both.statuses("m") == {served[0].grpc_address: {2: AVAILABLE}, down.grpc_address: None}
        with pytest.raises(ServingUnavailable, match=f"at {down.grpc_address} did not answer"):
            both.status("m")
        assert not both.ready()
    with fleet(*served) as both:
        assert both.ready()


def test_a_replica_that_refuses_to_say_what_it_serves_is_an_error(served: list[Replica]) -> None:
    served[1].failures["GetModelStatus"] = [REFUSED]
    with fleet(*served) as both, pytest.raises(ServingError, match=f"at {served[1].grpc_address} refused the status") as caught:
        both.statuses("m")
    assert not caught.value.retryable


def test_slow_replicas_cost_one_deadline_and_not_one_each(served: list[Replica]) -> None:
    with replica() as third:
        for slow in (*served, third):
            slow.delay_seconds = 30.0
        with fleet(*served, third, deadline_seconds=1.0) as all_three, seconds() as taken:
            assert set(all_three.statuses("m").values()) == {None}
    assert 0.8 < taken[0] < 1.2


def test_a_configuration_reaches_every_replica_once(served: list[Replica]) -> None:
    with fleet(*served) as both:
        both.reload(CONFIG)
    assert [replica.configs[0].get("m") for replica in served] == [CONFIG.get("m")] * 2
    assert [replica.calls["HandleReloadConfigRequest"] for replica in served] == [1, 1]


@pytest.mark.parametrize(("code", "retryable"), [(REFUSED, False), (UNAVAILABLE, True)])
def test_a_reload_says_who_took_it_and_who_did_not(served: list[Replica], code: object, retryable: bool) -> None:
    served[1].failures["HandleReloadConfigRequest"] = [code]
    taken = rf"1 of 2 replicas took a new configuration \({served[0].grpc_address}\)"
    words = rf"{taken}\. The model server at {served[1].grpc_address} .*send this one again, or the previous one"
    with fleet(*served) as both:
        with pytest.raises(ServingError, match=words) as caught:
            both.reload(CONFIG)
        assert caught.value.retryable == retryable
        assert [len(replica.configs) for replica in served] == [1, 0]
        both.reload(CONFIG)
    assert [replica.calls["HandleReloadConfigRequest"] for replica in served] == [2, 2]


def test_a_refusal_outweighs_silence_because_no_retry_helps_it(served: list[Replica]) -> None:
    served[0].failures["HandleReloadConfigRequest"] = [REFUSED]
    with fleet(*served, nobody()) as three, pytest.raises(ServingError, match=r"1 of 3 replicas took.*refused.*did not answer") as caught:
        three.reload(CONFIG)
    assert not caught.value.retryable


def test_a_single_replica_answers_in_its_own_words(served: list[Replica]) -> None:
    served[0].failures["HandleReloadConfigRequest"] = [REFUSED]
    with fleet(served[0]) as one, pytest.raises(ServingError, match=r"^The model server at .* refused a new configuration"):
        one.reload(CONFIG)


def test_questions_go_to_the_first_replica_that_answers(served: list[Replica]) -> None:
    with fleet(nobody(), served[1]) as half:
        assert half.predict("m", [[1], [2]], label="stable") == [[1.0], [1.0]]
        assert half.predict_tensors("m", {"x": np.ones(2)}, label="stable")[0] == 7
        assert half.signatures("m") == {"serving_default": served[1].signature}
    with fleet(nobody(), nobody()) as none, pytest.raises(ServingUnavailable, match="did not answer"):
        none.predict("m", [[1]])


def test_a_refusal_is_not_taken_to_another_replica(served: list[Replica]) -> None:
    served[0].failures["predict"] = [404]
    with fleet(*served) as both, pytest.raises(ServingError, match=f"at {served[0].rest_url} refused"):
        both.predict("m", [[1]])
    assert not served[1].calls


def test_all_answers_can_be_had_by_the_replica_s_address(served: list[Replica]) -> None:
    served[1].outputs = [[2.0]]
    with fleet(*served) as both:
        assert both.ask_all(lambda replica: replica.predict("m", [[1]])) == {served[0].grpc_address: [[1.0]], served[1].grpc_address: [[2.0]]}


@pytest.mark.parametrize("ports", [[], [8500, 8500]])
def test_a_fleet_has_at_least_one_replica_and_none_twice(ports: list[int]) -> None:
    with pytest.raises(SpecError, match="at least one, each address once"):
        ServingFleet(Replica(grpc_port=port, rest_port=1).client() for port in ports)


def test_an_answer_must_be_right_on_every_replica(served: list[Replica], tmp_path: Path) -> None:
    answers = golden(tmp_path / "golden.json", [[1.0], [2.0]], [[1.0], [2.0]])
    with fleet(*served) as both:
        rollout.verify(both, PLAN, answers)
        served[1].tensors["x"] = tensors.to_proto(np.array([[1.0], [2.1]]))
        with pytest.raises(
            RolloutFailed, match=rf"Version 2 of 'm' at {served[1].grpc_address} answers the golden inputs differently.*by up to 0\.1"
        ):
            rollout.verify(both, PLAN, answers)


def test_golden_answers_need_no_rest(served: list[Replica], tmp_path: Path) -> None:
    answers = golden(tmp_path / "golden.json", [[1.0], [2.0]], [[1.0], [2.0]])
    with ServingFleet(ServingClient(replica.grpc_address) for replica in served) as both:
        rollout.verify(both, PLAN, answers)
    assert [replica.calls for replica in served] == [{"GetModelMetadata": 1, "Predict": 2}] * 2  # each is asked twice


def test_rows_of_several_inputs_texts_and_bytes_are_asked_by_grpc_as_they_were_by_rest(served: list[Replica], tmp_path: Path) -> None:
    text = tensor("DT_STRING", (-1,))
    served[0].signature = signature({"number": tensor("DT_HALF", (-1, 1)), "text": text, "raw_bytes": text})
    rows = [{"number": [1.5], "text": "grün", "raw_bytes": {"b64": "/w=="}}, {"number": [2.0], "text": "", "raw_bytes": {"b64": ""}}]
    with fleet(served[0]) as one:
        rollout.verify(one, PLAN, golden(tmp_path / "golden.json", rows, rows))
        with pytest.raises(RolloutFailed, match="in another shape or with other texts"):
            rollout.verify(one, PLAN, golden(tmp_path / "golden.json", rows, [rows[0], {**rows[1], "text": "blau"}]))


def test_outputs_that_are_no_rows_prove_nothing(served: list[Replica], tmp_path: Path) -> None:
    served[0].tensors["y"] = tensors.to_proto(np.array([1.0, 2.0, 3.0]))
    with fleet(served[0]) as one, pytest.raises(RolloutFailed, match="in another shape"):
        rollout.verify(one, PLAN, golden(tmp_path / "golden.json", [[1.0]], [[1.0]]))


@pytest.mark.parametrize(
    ("taken", "words"),
    [({"x": tensor("DT_INT32", (-1, 1))}, "its rows give no DT_INT32 for input 'x'"), ({"x": tensor()}, r"its rows have shape \[1\]")],
)
def test_golden_rows_that_the_served_version_does_not_take_are_a_reason(served: list[Replica], tmp_path: Path, taken: Any, words: str) -> None:
    served[1].signature = signature(taken)
    reason = rf"at {served[1].grpc_address} cannot be asked the golden inputs .* by its signature 'serving_default': {words}"
    with fleet(*served) as both, pytest.raises(RolloutFailed, match=reason):
        rollout.verify(both, PLAN, golden(tmp_path / "golden.json", [[1.5]], [[1.5]]))


def test_a_version_without_a_default_signature_cannot_be_proven(served: list[Replica], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServingClient, "signatures", lambda *_, **__: {"classify": signature()})
    with fleet(*served) as both, pytest.raises(RolloutFailed, match="'serving_default': it has no such signature"):
        rollout.verify(both, PLAN, golden(tmp_path / "golden.json", [[1.5]], [[1.5]]))


def test_a_label_that_leads_to_another_version_proves_nothing_even_if_it_answers_the_same(served: list[Replica], tmp_path: Path) -> None:
    answers = golden(tmp_path / "golden.json", [[1.0]], [[1.0]])
    with fleet(*served) as both:
        rollout.verify(both, PLAN._replace(version=7), answers, label="stable")  # 7 is what these answer for a label
        with pytest.raises(RolloutFailed, match=rf"Version 7 of 'm' answered at {served[0].grpc_address}, not version 2"):
            rollout.verify(both, PLAN, answers, label="stable")


def test_a_rollout_that_one_replica_refuses_takes_the_configuration_from_the_others_again(served: list[Replica], tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    before = ServerConfig((ModelConfig("m", "/models/m", (1,), {"stable": 1}),))
    config.write(file, before)
    golden(tmp_path / "golden.json", [[1.0]], [[1.0]])
    plan = rollout.Plan("m", 2, 1, "/models/m", str(file), deadline=1000.0)
    served[1].failures["HandleReloadConfigRequest"] = [None, REFUSED]  # it takes the version and refuses the label
    words = rf"1 of 2 replicas took a new configuration \({served[0].grpc_address}\).*Version 1 serves 'stable' now"
    with fleet(*served) as both, pytest.raises(RolloutFailed, match=words):
        roll_out(both, plan, tmp_path / "golden.json", lambda: 0.0, lambda _: None)
    labels = [[taken.model("m").labels["stable"] for taken in replica.configs] for replica in served]
    assert labels == [[1, 2, 1], [1, 1]]
    assert config.read(file).get("m") == before.get("m")
    assert [replica.configs[-1].get("m") for replica in served] == [before.get("m")] * 2
