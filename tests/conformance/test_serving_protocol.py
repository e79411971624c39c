"""The suite of TensorFlow Serving's protocol; which server it asks, `conftest` says, and how to ask another one."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest

from airflow_mlops.serving import tensors

from . import serving_lifecycle, serving_protocol, serving_words
from .serving_lifecycle import BOTH, ONE, TWO
from .serving_target import SECONDS, Code, Target, predict, refusal, tensor

TWO_POLLS = 0.6  # seconds in which the embedded server has looked for new versions twice
BIG = 100_000_000  # bytes


class TestRestPaths(serving_protocol.RestPaths):
    pass


class TestRestPredict(serving_protocol.RestPredict):
    pass


class TestRestTypes(serving_protocol.RestTypes):
    pass


class TestRestExamples(serving_protocol.RestExamples):
    pass


class TestRestInformation(serving_protocol.RestInformation):
    pass


class TestGrpcPredict(serving_protocol.GrpcPredict):
    pass


class TestGrpcExamples(serving_protocol.GrpcExamples):
    pass


class TestGrpcInformation(serving_protocol.GrpcInformation):
    pass


class TestRestWords(serving_words.RestWords):
    pass


class TestHttpForms(serving_words.HttpForms):
    pass


class TestGrpcWords(serving_words.GrpcWords):
    pass


class TestMonitoring(serving_protocol.Monitoring):
    pass


class TestReloads(serving_lifecycle.Reloads):
    pass


class TestVersions(serving_lifecycle.Versions):
    pass


class TestLabelRules(serving_lifecycle.LabelRules):
    pass


class TestWarmUp(serving_lifecycle.WarmUp):
    pass


class TestOnPurposeOtherwise:
    """Where the embedded server is kinder than the original: section 2.9 of the contract names the traps."""

    def test_a_refused_reload_changes_nothing_at_all(self, ours: Target, name: str) -> None:
        """T1: the original believes the refused configuration from then on."""
        other = f"{name}other"
        with ours.serving(name, {1: "linear1"}), ours.serving(other, {1: "linear2"}):
            wrong = ours.config(name, policy=BOTH, labels={"stable": 2})
            refused = ours.request(*(config for config in ({**ours.configs, name: wrong}).values() if config.name != other))
            assert refusal(ours.models.HandleReloadConfigRequest, refused)[0] is Code.FAILED_PRECONDITION
            ours.publish(name, {2: "linear2"})
            ours.await_states(name, {1: "END", 2: "AVAILABLE"})  # by the old policy, which is the latest version; the refused one keeps both
            assert ours.answer(other) == TWO and ours.states(other) == {1: "AVAILABLE"}
            ours.reload()

    def test_a_refused_new_model_does_not_poison_later_reloads(self, ours: Target, name: str) -> None:
        """T2: in the original, every reload after that of a model without its platform fails until a restart."""
        ours.publish(name, {1: "linear1"})
        for platform, type_ in (("", 0), ("other", 0), ("tensorflow", 1)):
            config = ours.config(name, platform=platform)
            config.model_type = type_
            code, details = refusal(ours.models.HandleReloadConfigRequest, ours.request(*ours.configs.values(), config))
            assert code is Code.INVALID_ARGUMENT and name in details
            assert ours.states(name) == {}
        ours.reload(ours.config(name))
        ours.await_states(name, {1: "AVAILABLE"})

    def test_a_reload_waits_no_longer_than_its_client_and_delays_no_other(self, ours: Target, name: str) -> None:
        """T3: the original waits without limit, and holds up every later reload."""
        empty, hangs, other = (f"{name}{kind}" for kind in ("empty", "hangs", "other"))
        (ours.home / empty).mkdir()
        ours.publish(hangs, {1: "hang_at_load"})
        ours.publish(other, {1: "linear1"})
        configs = [*ours.configs.values(), *map(ours.config, (empty, hangs))]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ours.models.HandleReloadConfigRequest, ours.request(*configs), timeout=6.0)
            ours.await_states(hangs, {1: "LOADING"})
            ours.models.HandleReloadConfigRequest(ours.request(*configs, ours.config(other)), timeout=SECONDS)
            assert ours.answer(other) == ONE
            assert not waiting.done()
            with pytest.raises(grpc.RpcError) as late:
                waiting.result()
        assert late.value.code() is Code.UNKNOWN and "2 model(s) did not become available" in late.value.details()
        assert f"{{{{name: {hangs} version: 1}} due to error: it is LOADING}}" in late.value.details()
        ours.configs |= {config.name: config for config in (*configs, ours.config(other))}
        ours.forget(empty, hangs, other)

    @pytest.mark.parametrize("timeout", [SECONDS, None], ids=["deadline", "no deadline"])
    def test_a_missing_base_path_is_an_error_at_once_and_the_model_is_found_when_it_comes(self, ours: Target, name: str, timeout: float) -> None:
        ours.configs |= {name: ours.config(name)}
        with pytest.raises(grpc.RpcError) as refused:
            ours.models.HandleReloadConfigRequest(ours.request(*ours.configs.values()), timeout=timeout)
        words = f"Could not find base path {ours.home / name} for servable {name}: it does not exist"
        assert (refused.value.code(), words in refused.value.details()) == (Code.UNKNOWN, True), refused.value.details()
        ours.publish(name, {1: "linear1"})
        ours.await_states(name, {1: "AVAILABLE"})

    def test_an_empty_base_path_is_an_error_at_once_if_the_client_sets_no_deadline(self, ours: Target, name: str) -> None:
        (ours.home / name).mkdir()
        with pytest.raises(grpc.RpcError) as refused:
            ours.models.HandleReloadConfigRequest(ours.request(*ours.configs.values(), ours.config(name)))
        assert refused.value.code() is Code.UNKNOWN and "No versions of servable" in refused.value.details()

    def test_one_model_that_does_not_come_holds_up_no_other_of_its_reload(self, ours: Target, name: str) -> None:
        missing = f"{name}missing"
        ours.publish(name, {1: "linear1"})
        assert missing in ours.configure(ours.config(name), ours.config(missing))
        ours.await_states(name, {1: "AVAILABLE"})
        ours.forget(missing)

    def test_a_missing_base_path_of_one_model_holds_up_no_other(self, ours: Target, name: str) -> None:
        """T4: in the original, no model finds new versions while one base path is missing."""
        missing = f"{name}missing"
        with ours.serving(name, {1: "linear1"}):
            ours.configure(ours.config(missing))
            ours.publish(name, {2: "linear2"})
            ours.await_states(name, {1: "END", 2: "AVAILABLE"})
        ours.forget(missing)

    def test_a_version_that_does_not_load_holds_up_no_other(self, ours: Target, name: str) -> None:
        """T5: in the original, all loads and unloads wait for the retries of a broken version."""
        stuck = f"{name}stuck"
        ours.publish(stuck, {1: "hang_at_load"})
        try:
            ours.configure(ours.config(stuck))
            ours.await_states(stuck, {1: "LOADING"})
            with ours.serving(name, {1: "linear1"}):
                ours.publish(name, {2: "linear2"})
                ours.await_states(name, {1: "END", 2: "AVAILABLE"})
            assert ours.states(stuck) == {1: "LOADING"}
            ours.reload(drop=[stuck])
            ours.await_states(stuck, {1: "END"})
        finally:
            ours.forget(stuck)

    def test_a_reload_does_not_wait_for_a_new_version_of_a_known_model(self, ours: Target, name: str) -> None:
        """T6: neither does the original, which waits for new models alone; GetModelStatus tells."""
        with ours.serving(name, {1: "linear1", 2: "hang_at_load"}, policy="specific { versions: 1 }"):
            ours.reload(ours.config(name, policy=BOTH))
            ours.await_states(name, {1: "AVAILABLE", 2: "LOADING"})
            assert ours.answer(name) == ONE

    def test_an_emptied_or_removed_base_path_leaves_in_service_what_is_loaded(self, ours: Target, name: str) -> None:
        """The original unloads everything when the base path is empty."""
        with ours.serving(name, {1: "linear1"}):
            shutil.rmtree(ours.home / name / "1")
            for _ in range(2):
                time.sleep(TWO_POLLS)
                assert ours.states(name) == {1: "AVAILABLE"} and ours.answer(name) == ONE
                shutil.rmtree(ours.home / name, ignore_errors=True)
            ours.publish(name, {2: "linear2"})
            ours.await_states(name, {1: "END", 2: "AVAILABLE"})

    def test_a_shape_that_the_signature_does_not_name_is_refused_before_the_run(self, ours: Target) -> None:
        """The original leaves it to the graph, which may answer it, refuse it, or end the whole server."""
        words = "has shape [1, 3]; the signature expects [-1, 2]"
        code, details = refusal(ours.prediction.Predict, predict("many", {"x": tensor([1.0, 2.0, 3.0], [1, 3])}, "narrow"))
        assert (code, words in details) == (Code.INVALID_ARGUMENT, True)
        answer = ours.post("many:predict", {"signature_name": "narrow", "inputs": [[1, 2, 3]]})
        assert (answer.status_code, words in answer.text) == (400, True)


class TestLargeBodies:
    """A client that sends 100 MB gets its answer, and meanwhile nobody else waits for theirs."""

    @staticmethod
    def beside(target: Target, ask: Callable[[], float]) -> tuple[float, int]:
        """Return what `ask` answers and how many small requests to another model were answered meanwhile, by gRPC and REST."""
        count = 0
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask)
            while not answer.done():
                assert target.answer("linear") == TWO
                assert target.post("linear:predict", serving_protocol.INSTANCES).json() == {"predictions": [TWO]}
                count += 2
        return answer.result(), count

    def test_by_grpc(self, ours: Target) -> None:
        values = np.ones(BIG // 4, np.float32)
        request = predict("many", {"x": tensors.to_proto(values)}, "scalar")
        answer, count = self.beside(ours, lambda: ours.prediction.Predict(request, timeout=SECONDS).outputs["loss"].float_val[0])
        assert (answer, count > 10) == (BIG // 4, True), count

    def test_by_rest(self, ours: Target) -> None:
        number = b"0.12500000000000000,"
        body = b'{"signature_name": "scalar", "inputs": [' + number * (BIG // len(number)) + b"0]}"
        answer, count = self.beside(ours, lambda: float(ours.rest.post("/v1/models/many:predict", content=body).json()["outputs"]))
        assert (answer, count > 10) == (BIG // len(number) / 8, True), count

    def test_small_requests_during_a_large_one_to_the_same_model_all_succeed(self, ours: Target) -> None:
        """Counted, not timed: four clients ask without pause, by both interfaces, while 100 MB of rows are read, run and answered."""
        row = b"[1.0,2.0,3.0,4.0],"
        count = BIG // len(row)
        body = b'{"instances": [' + row * (count - 1) + row[:-1] + b"]}"
        over = threading.Event()

        def small() -> tuple[int, list[str]]:
            answered, failed = 0, []
            while not over.is_set():
                try:
                    assert ours.answer("linear") == TWO
                    answer = ours.post("linear:predict", serving_protocol.INSTANCES)
                    assert answer.json() == {"predictions": [TWO]}, answer.text
                    answered += 2
                except Exception as error:
                    failed.append(str(error))
            return answered, failed

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(small) for _ in range(4)]
            large = httpx.post(f"{ours.rest_url}/v1/models/linear:predict", content=body, timeout=120, trust_env=False)
            over.set()
            counts = [one.result(120) for one in asking]
        assert [failed for _, failed in counts] == [[]] * 4
        assert sum(answered for answered, _ in counts) > 50
        if large.status_code == 200:
            assert large.content.count(b"[5.0,6.0]") == count
        else:  # on a machine that has no time for it
            assert (large.status_code, "did not answer within" in large.json()["error"]) == (504, True)
        assert ours.states("linear") == {1: "AVAILABLE", 2: "AVAILABLE"}
