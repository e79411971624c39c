"""Several replicas as one: what is said of the fleet must hold on each, and one that fails is named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from airflow_mlops.exceptions import RolloutFailed, ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving import config, rollout
from airflow_mlops.serving.availability import VersionStatus
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.fleet import ServingFleet
from tests.replicas import AVAILABLE, LOADING, REFUSED, UNAVAILABLE, Replica, nobody, replica, seconds

CONFIG = ServerConfig((ModelConfig("m", "/models/m", (2,)),))
BROKEN = VersionStatus("END", "no graph")


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
        assert half.metadata("m") == {"model_spec": {"name": "m"}}
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
    (tmp_path / "golden.json").write_text(json.dumps({"inputs": [[0], [0]], "outputs": [[1.0], [1.0]]}))
    plan = rollout.Plan("m", 2, None, "/models/m", str(tmp_path / "models.config"), deadline=0.0)
    with fleet(*served) as both:
        rollout.verify(both, plan, tmp_path / "golden.json")
        served[1].outputs = [[1.1]]
        with pytest.raises(
            RolloutFailed, match=rf"Version 2 of 'm' at {served[1].grpc_address} answers the golden inputs differently.*by up to 0\.1"
        ):
            rollout.verify(both, plan, tmp_path / "golden.json")


def test_a_rollout_that_one_replica_refuses_takes_the_configuration_from_the_others_again(served: list[Replica], tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    before = ServerConfig((ModelConfig("m", "/models/m", (1,), {"stable": 1}),))
    config.write(file, before)
    (tmp_path / "golden.json").write_text(json.dumps({"inputs": [[0]], "outputs": [[1.0]]}))
    plan = rollout.Plan("m", 2, 1, "/models/m", str(file), deadline=1000.0)
    served[1].failures["HandleReloadConfigRequest"] = [None, REFUSED]  # it takes the version and refuses the label
    words = rf"1 of 2 replicas took a new configuration \({served[0].grpc_address}\).*Version 1 serves 'stable' now"
    with fleet(*served) as both, pytest.raises(RolloutFailed, match=words):
        rollout.roll_out(both, plan, tmp_path / "golden.json", lambda: 0.0, lambda _: None)
    labels = [[taken.model("m").labels["stable"] for taken in replica.configs] for replica in served]
    assert labels == [[1, 2, 1], [1, 1]]
    assert config.read(file).get("m") == before.get("m")
    assert [replica.configs[-1].get("m") for replica in served] == [before.get("m")] * 2
