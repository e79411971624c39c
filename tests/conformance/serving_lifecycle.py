"""What any server behind `ServingClient` does with models over time: the TensorFlow Serving contract's reloads, versions, labels and warm-up.

See `serving_protocol` for the requests. Every model here is one of its test's own; the fixture `name` ends it with the test.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_mlops.serving import protos
from tests.serving_models import ROW

from .serving_target import SECONDS, Code, Target, refusal, row, until

BOTH = "specific { versions: 1 versions: 2 }"
ONE, TWO = [4.0, 5.0], [5.0, 6.0]
ERROR_CODES = protos.get_model_status_pb2.ModelVersionStatus().status.DESCRIPTOR.fields_by_name["error_code"].enum_type.values_by_number
LINEAR: dict[int | str, str] = {1: "linear1", 2: "linear2"}


def merged(**fields: Any) -> Callable[[list[Any]], None]:
    """Return what sets fields of the first configuration."""
    return lambda configs: configs[0].MergeFrom(type(configs[0])(**fields))


class Asking:
    """Asks a model without pause, by gRPC and REST in turn, until the block ends; `answers` in their order, refusals among them as texts."""

    def __init__(self, target: Target, name: str, **asked: Any) -> None:
        self.target, self.name, self.asked = target, name, asked
        self.answers: list[Any] = []
        self.slowest = 0.0  # seconds that a pair of requests took
        self.over = threading.Event()

    def __enter__(self) -> Asking:
        self.pool = ThreadPoolExecutor(1)
        self.done = self.pool.submit(self.run)
        until(lambda: len(self.answers) > 1, "a first answer")
        return self

    def __exit__(self, *error: object) -> None:
        seen = len(self.answers)
        until(lambda: len(self.answers) > seen + 1 or self.done.done(), "an answer after the change")
        self.over.set()
        self.done.result(SECONDS)
        self.pool.shutdown()

    def run(self) -> None:
        path = f"{self.name}/labels/{self.asked['label']}" if "label" in self.asked else self.name
        while not self.over.is_set():
            started = time.monotonic()
            try:
                self.answers.append(self.target.answer(self.name, **self.asked))
            except Exception as error:  # what it is will be compared with what was expected
                self.answers.append(str(error))
            answer = self.target.post(f"{path}:predict", {"instances": [ROW]})
            self.answers.append(answer.json()["predictions"][0] if answer.status_code == 200 else answer.text)
            self.slowest = max(self.slowest, time.monotonic() - started)


class Reloads:
    """HandleReloadConfigRequest: what is accepted, and what a refusal leaves as it was."""

    def test_an_accepted_reload_says_so(self, served: Target) -> None:
        answer = served.models.HandleReloadConfigRequest(served.request(*served.configs.values()), timeout=SECONDS)
        assert (answer.status.error_code, answer.status.error_message) == (0, "")

    def test_anything_but_a_list_of_models_is_refused(self, served: Target) -> None:
        custom = protos.model_management_pb2.ReloadConfigRequest()
        custom.config.custom_model_config.SetInParent()
        for request in (protos.model_management_pb2.ReloadConfigRequest(), custom):
            code, details = refusal(served.models.HandleReloadConfigRequest, request)
            assert code is Code.INVALID_ARGUMENT and details
        assert served.answer(label="stable") == ONE

    @pytest.mark.parametrize(
        "change",
        [  # of linear, which is the first
            lambda configs: configs.append(configs[0]),
            merged(base_path="somewhere"),
            lambda configs: configs[0].ClearField("base_path"),
            merged(model_platform="other"),
            lambda configs: configs[0].ClearField("model_platform"),
            merged(model_type=1),
        ],
        ids=["twice", "relative", "nowhere", "other platform", "no platform", "platform twice"],
    )
    def test_a_wrong_configuration_is_refused_and_changes_nothing(self, served: Target, change: Callable[[list[Any]], None]) -> None:
        configs = [type(config)() for config in served.configs.values()]
        for copy, config in zip(configs, served.configs.values(), strict=True):
            copy.CopyFrom(config)
        assert configs[0].name == "linear"
        change(configs)
        code, details = refusal(served.models.HandleReloadConfigRequest, served.request(*configs))
        assert (code, "linear" in details) == (Code.INVALID_ARGUMENT, True), (code, details)
        assert served.answer(label="stable") == ONE
        served.reload()

    def test_the_deprecated_type_means_the_same_as_the_platform(self, served: Target, name: str) -> None:
        served.publish(name, LINEAR)
        config = served.config(name, platform="")
        config.model_type = protos.model_server_config_pb2.TENSORFLOW
        served.reload(config)
        served.await_states(name, {2: "AVAILABLE"})
        served.reload(served.config(name))
        assert served.answer(name) == TWO

    @pytest.mark.parametrize("versions", [{1: "linear1"}, LINEAR], ids=["one", "two"])
    def test_when_a_reload_is_answered_its_new_models_can_be_asked(self, served: Target, name: str, versions: dict[int | str, str]) -> None:
        names = [name, f"{name}b", f"{name}c"]
        try:
            for one in names:
                served.publish(one, versions)
            served.reload(*map(served.config, names))
            assert [served.answer(one) for one in names] == [TWO if len(versions) > 1 else ONE] * 3
            assert served.post(f"{name}:predict", {"instances": [ROW]}).status_code == 200
            served.reload(drop=names)
            served.reload(served.config(name))  # new again
            assert served.answer(name) in (ONE, TWO)
        finally:
            served.forget(*names)

    def test_a_reload_whose_new_model_cannot_be_loaded_says_which_and_why(self, served: Target, name: str) -> None:
        served.publish(name, {3: "no_pb"})
        code, details = refusal(served.models.HandleReloadConfigRequest, served.request(*served.configs.values(), served.config(name)))
        assert code is Code.UNKNOWN
        assert details.startswith(f"1 model(s) did not become available: {{{{{{name: {name} version: 3}} due to error: "), details
        assert "Could not find SavedModel .pb" in details
        assert served.status(name)[3][0] == "END"  # it is configured all the same
        assert served.answer(label="stable") == ONE

    def test_a_reload_waits_for_a_version_that_is_brought_meanwhile(self, served: Target, name: str) -> None:
        (served.home / name).mkdir()
        with ThreadPoolExecutor(1) as pool:
            reloading = pool.submit(served.reload, served.config(name))
            time.sleep(0.5)
            assert not reloading.done()
            served.publish(name, {1: "linear1"})
            reloading.result(SECONDS)
        assert served.answer(name) == ONE

    def test_a_model_that_is_no_longer_named_is_unloaded_and_stays_listed_as_ended(self, served: Target, name: str) -> None:
        with served.serving(name, LINEAR, policy=BOTH):
            served.reload(drop=[name])
            served.await_states(name, {1: "END", 2: "END"})
            assert {(code, text) for _, code, text in served.status(name).values()} == {(0, "")}
            assert refusal(served.prediction.Predict, row(name)) == (Code.NOT_FOUND, f"Servable not found for request: Latest({name})")
            assert served.post(f"{name}:predict", {"instances": [ROW]}).status_code == 404
            served.reload(served.config(name))
            served.await_states(name, {2: "AVAILABLE"})
            assert served.answer(name) == TWO


class Versions:
    """Which versions are loaded, and how one takes the place of another."""

    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            ("", {10: "AVAILABLE"}),
            ("latest {}", {10: "AVAILABLE"}),
            ("latest { num_versions: 2 }", {9: "AVAILABLE", 10: "AVAILABLE"}),
            ("all {}", {1: "AVAILABLE", 9: "AVAILABLE", 10: "AVAILABLE"}),
            ("specific { versions: 9 versions: 1 }", {1: "AVAILABLE", 9: "AVAILABLE"}),
            ("specific { versions: 9 versions: 77 }", {9: "AVAILABLE"}),  # what is not there is no error
        ],
    )
    def test_the_policy_says_which_versions_are_loaded(self, served: Target, name: str, policy: str, expected: dict[int, str]) -> None:
        served.publish(name, {1: "linear1", 9: "linear2", 10: "linear1"})
        served.reload(served.config(name, policy=policy))
        served.await_states(name, expected)
        assert served.states(name) == expected
        assert served.answer(name) == (ONE if 10 in expected else TWO)

    def test_what_is_no_number_is_no_version_and_zeros_in_front_mean_nothing(self, served: Target, name: str) -> None:
        served.publish(name, {"00000123": "linear1", "7x": "linear2", "v8": "linear2", "tmp": "linear2", str(2**63): "linear2"})
        (served.home / name / "notes.txt").write_text("not a version either")
        served.reload(served.config(name, policy="all {}"))
        served.await_states(name, {123: "AVAILABLE"})
        assert served.states(name) == {123: "AVAILABLE"}
        assert served.answer(name, version=123) == ONE
        assert served.post(f"{name}/versions/00123:predict", {"instances": [ROW]}).json() == {"predictions": [ONE]}

    def test_zeros_in_front_are_found_by_a_specific_version_too(self, served: Target, name: str) -> None:
        served.publish(name, {"0042": "linear1", "43": "linear2"})
        served.reload(served.config(name, policy="specific { versions: 42 }"))
        served.await_states(name, {42: "AVAILABLE"})
        assert served.answer(name) == ONE

    def test_a_file_named_like_a_version_is_one_that_cannot_be_loaded(self, served: Target, name: str) -> None:
        served.publish(name, {4: "linear1"})
        (served.home / name / "5").write_text("not a directory")
        served.reload(served.config(name, policy="all {}"))
        served.await_states(name, {4: "AVAILABLE", 5: "END"})
        assert served.answer(name) == ONE

    def test_a_new_version_takes_over_without_a_request_failing(self, served: Target, name: str) -> None:
        with served.serving(name, {1: "linear1"}), Asking(served, name) as asking:
            served.publish(name, {2: "linear2"})
            served.await_states(name, {1: "END", 2: "AVAILABLE"})
        assert asking.answers == sorted(asking.answers) and (asking.answers[0], asking.answers[-1]) == (ONE, TWO), asking.answers
        assert all(answer in (ONE, TWO) for answer in asking.answers)
        assert served.status(name)[1][1:] == (0, "")

    def test_a_reload_changes_the_versions_of_a_known_model(self, served: Target, name: str) -> None:
        with served.serving(name, LINEAR, policy="specific { versions: 1 }"):
            served.reload(served.config(name, policy=BOTH))
            served.await_states(name, {1: "AVAILABLE", 2: "AVAILABLE"})
            served.reload(served.config(name, policy="specific { versions: 2 }"))
            served.await_states(name, {1: "END", 2: "AVAILABLE"})
            assert refusal(served.prediction.Predict, row(name, version=1)) == (
                Code.NOT_FOUND,
                f"Servable not found for request: Specific({name}, 1)",
            )

    def test_versions_that_cannot_be_loaded_end_with_their_reasons(self, served: Target, name: str) -> None:
        broken = ("no_pb", "broken_pb", "cut_pb", "cut_variables", "missing_op", "train_only", "empty")
        served.publish(name, {1: "linear1"} | dict(enumerate(broken, 2)))
        served.reload(served.config(name, policy="all {}"))
        served.await_states(name, {1: "AVAILABLE"} | {number: "END" for number, _ in enumerate(broken, 2)})
        assert served.answer(name) == ONE
        listed = served.rest.get(f"/v1/models/{name}").json()["model_version_status"]
        assert [entry["version"] for entry in listed] == [str(number) for number in range(len(broken) + 1, 0, -1)]
        reasons = {model: served.status(name)[number][1:] for number, model in enumerate(broken, 2)}
        for entry, model in zip(reversed(listed[:-1]), broken, strict=True):
            code, text = reasons[model]
            assert code != 0 and text, (model, code, text)
            assert (entry["state"], entry["status"]["error_message"]) == ("END", text)
            assert ERROR_CODES[code].name == entry["status"]["error_code"]
        assert "Could not find SavedModel .pb" in reasons["no_pb"][1] and "Could not find SavedModel .pb" in reasons["empty"][1]
        assert "OpOfANewerTensorFlow" in reasons["missing_op"][1] and "serve" in reasons["train_only"][1]

    def test_a_version_that_ended_is_only_tried_again_when_it_is_asked_for_anew(self, served: Target, name: str) -> None:
        with served.serving(name, {1: "linear1", 2: "cut_pb"}, policy="specific { versions: 1 }"):
            served.reload(served.config(name, policy=BOTH))
            served.await_states(name, {1: "AVAILABLE", 2: "END"})
            shutil.rmtree(served.home / name / "2")
            served.publish(name, {2: "linear2"})
            time.sleep(1.0)
            assert served.states(name) == {1: "AVAILABLE", 2: "END"}
            served.reload(served.config(name, policy="specific { versions: 1 }"))
            time.sleep(1.0)
            served.reload(served.config(name, policy=BOTH))
            served.await_states(name, {1: "AVAILABLE", 2: "AVAILABLE"})
            assert served.answer(name) == TWO

    def test_a_base_path_may_be_a_uri(self, served: Target, name: str) -> None:
        served.publish(name, LINEAR)
        config = served.config(name)
        config.base_path = f"file://{config.base_path}"
        served.reload(config)
        served.await_states(name, {2: "AVAILABLE"})
        assert served.answer(name) == TWO

    def test_a_new_version_that_cannot_be_loaded_leaves_the_old_one_in_service(self, served: Target, name: str) -> None:
        with served.serving(name, {1: "linear1"}), Asking(served, name) as asking:
            served.publish(name, {2: "cut_variables"})
            served.await_states(name, {1: "AVAILABLE", 2: "END"})
        assert set(map(str, asking.answers)) == {str(ONE)}


class LabelRules:
    """Which labels are accepted, and what they mean while they move."""

    def test_a_label_moves_between_requests_and_none_of_them_fails(self, served: Target, name: str) -> None:
        with served.serving(name, LINEAR, policy=BOTH, labels={"stable": 1}), Asking(served, name, label="stable") as asking:
            served.reload(served.config(name, policy=BOTH, labels={"stable": 2}))
            assert served.answer(name, label="stable") == TWO
        assert asking.answers == sorted(asking.answers) and (asking.answers[0], asking.answers[-1]) == (ONE, TWO), asking.answers
        assert all(answer in (ONE, TWO) for answer in asking.answers)

    @pytest.mark.parametrize("version", [2, 3])
    def test_a_label_for_a_version_that_is_not_available_is_refused_and_the_old_one_works_on(self, served: Target, name: str, version: int) -> None:
        only = "specific { versions: 1 }"
        with served.serving(name, LINEAR, policy=only, labels={"stable": 1, "canary": 1}):
            wrong = served.config(name, policy=BOTH, labels={"stable": 1, "canary": version})  # also in the reload that would load it
            code, details = refusal(served.models.HandleReloadConfigRequest, served.request(*(served.configs | {name: wrong}).values()))
            assert code is Code.FAILED_PRECONDITION
            assert details == f"Request to assign label to version {version} of model {name}, which is not currently available for inference"
            assert served.answer(name, label="canary") == served.answer(name, label="stable") == ONE
            served.reload()

    def test_a_label_that_is_no_longer_given_is_unknown(self, served: Target, name: str) -> None:
        with served.serving(name, LINEAR, policy=BOTH, labels={"stable": 1, "canary": 2}):
            served.reload(served.config(name, policy=BOTH, labels={"stable": 1}))
            assert served.answer(name, label="stable") == ONE
            assert refusal(served.prediction.Predict, row(name, label="canary")) == (
                Code.INVALID_ARGUMENT,
                "Unrecognized servable version label: canary",
            )

    def test_a_label_may_move_in_the_reload_that_drops_the_version_it_leaves(self, served: Target, name: str) -> None:
        with served.serving(name, LINEAR, policy=BOTH, labels={"stable": 1}), Asking(served, name, label="stable") as asking:
            served.reload(served.config(name, policy="specific { versions: 2 }", labels={"stable": 2}))
            served.await_states(name, {1: "END", 2: "AVAILABLE"})
        assert asking.answers == sorted(asking.answers) and all(answer in (ONE, TWO) for answer in asking.answers), asking.answers

    def test_a_label_may_outlive_its_version(self, served: Target, name: str) -> None:
        with served.serving(name, LINEAR, policy=BOTH, labels={"stable": 1}):
            served.reload(served.config(name, policy="specific { versions: 2 }", labels={"stable": 1}))
            served.await_states(name, {1: "END", 2: "AVAILABLE"})
            assert refusal(served.prediction.Predict, row(name, label="stable")) == (
                Code.NOT_FOUND,
                f"Servable not found for request: Specific({name}, 1)",
            )


class WarmUp:
    """Requests that come with a version are answered before it is available; one that fails fails the load."""

    def test_the_requests_have_been_answered_when_the_version_is_available(self, served: Target, name: str) -> None:
        with served.serving(name, {1: "warmed"}):
            answer = served.prediction.Predict(row(name, [1.0], "count"), timeout=SECONDS)
            assert list(answer.outputs["calls"].int64_val) == [4]

    def test_requests_of_every_kind_are_answered(self, served: Target, name: str) -> None:
        with served.serving(name, {1: "warmed_examples"}):
            assert served.post(f"{name}:regress", {"signature_name": "regress", "examples": [{"x": 0.5}]}).json() == {"results": [1.0]}

    def test_a_request_that_fails_ends_the_version_with_its_reason(self, served: Target, name: str) -> None:
        served.publish(name, {1: "linear1", 2: "cold", 3: "warm_garbage", 4: "warm_too_much"})
        served.reload(served.config(name, policy="all {}"))
        served.await_states(name, {1: "AVAILABLE", 2: "END", 3: "END", 4: "END"})
        assert served.answer(name) == ONE
        reasons = {version: text for version, (_, code, text) in served.status(name).items() if code}
        assert sorted(reasons) == [2, 3, 4] and all(reasons.values())
        assert "1000" in reasons[4]
