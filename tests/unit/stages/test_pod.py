"""What is made of a pod: never a success without a record, another pod only for what was nobody's fault, and more memory one step at a time."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.stages.pod import Outcome, PodSpec, command, dropped, manifest, pod_name
from airflow_mlops.stages.verdicts import explained, judge

SPEC = PodSpec("example.org/stages:1")


def pod(phase: str, *, container: dict[str, Any] | None = None, deleted: bool = False, **status: Any) -> dict[str, Any]:
    states = [{"name": "base", "state": container}] if container is not None else None
    metadata = {"name": "p", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {})}
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": states, **status}}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_record_counts_however_the_pod_ended(phase: str) -> None:
    assert judge(pod(phase, container=ended(1)), has_record=True).outcome == Outcome.RECORD
    assert judge(None, has_record=True).outcome == Outcome.RECORD


def test_success_without_a_record_is_a_failure_that_says_so() -> None:
    verdict = judge(pod("Succeeded", container=ended(0, "Completed")), has_record=False)
    assert verdict.outcome == Outcome.FAILED and "left no result record" in verdict.reason


def test_a_running_pod_goes_on_also_when_its_record_is_there_already() -> None:
    for has_record in (False, True):
        assert judge(pod("Running", container={"running": {}}), has_record=has_record, waited_long=True).outcome is None


@pytest.mark.parametrize(
    "taken",
    [
        None,
        pod("Unknown"),
        pod("Failed", reason="Evicted", message="The node was low on resource: memory."),
        pod("Failed", reason="NodeLost"),
        pod("Failed", container=ended(143), deleted=True),
        pod("Failed", container=ended(143), conditions=[{"type": "DisruptionTarget", "status": "True", "message": "preempted"}]),
    ],
)
def test_what_the_infrastructure_took_is_tried_again(taken: dict[str, Any] | None) -> None:
    assert judge(taken, has_record=False).outcome == Outcome.INTERRUPTED


def test_too_little_memory_is_known_by_its_reason_also_while_the_pod_is_deleted() -> None:
    for deleted in (False, True):
        assert judge(pod("Failed", container=ended(137, "OOMKilled"), deleted=deleted), has_record=False).outcome == Outcome.OUT_OF_MEMORY


def test_a_program_that_fails_is_not_tried_again_and_is_quoted() -> None:
    verdict = judge(pod("Failed", container=ended(3, message="ValueError: no such column\n")), has_record=False)
    assert verdict.outcome == Outcome.FAILED and verdict.reason.endswith(
        "exit code 3 and left no result record. Its last words:\nValueError: no such column\n"
    )
    assert "Something killed it" in judge(pod("Failed", container=ended(137)), has_record=False).reason


@pytest.mark.parametrize(
    ("waiting", "outcome", "words"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient nvidia.com/gpu."}]},
            Outcome.FAILED,
            "Insufficient",
        ),
        ({"container": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}}}, Outcome.INTERRUPTED, "cannot be pulled"),
        (
            {"container": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}},
            Outcome.FAILED,
            'secret "s" not found',
        ),
        ({"container": {"waiting": {"reason": "ContainerCreating"}}}, Outcome.INTERRUPTED, "was not made in time"),
    ],
)
def test_a_pod_that_does_not_start_is_waited_for_and_then_told_why(waiting: dict[str, Any], outcome: Outcome, words: str) -> None:
    assert judge(pod("Pending", **waiting), has_record=False).outcome is None
    verdict = judge(pod("Pending", **waiting), has_record=False, waited_long=True)
    assert verdict.outcome == outcome and words in verdict.reason


MOUNTS = {
    "volumes": [
        {"name": "exchange", "secret": {"secretName": "keys"}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "shared", "persistentVolumeClaim": {"claimName": "mlops"}},
        {"name": "token", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
    ]
}


def event(message: str, reason: str = "FailedMount") -> dict[str, Any]:
    return {"reason": reason, "message": message, "involvedObject": {"kind": "Pod", "uid": "1"}}


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", ""])
@pytest.mark.parametrize(
    "words",
    [
        'MountVolume.SetUp failed for volume "exchange" : secret "keys" not found',
        'MountVolume.SetUp failed for volume "settings" : configmap "settings" not found',
        'AttachVolume.Attach failed for volume "shared": persistentvolumeclaim "mlops" not found',
    ],
)
def test_what_a_pod_mounts_and_is_not_there_fails_with_the_event_s_words(reason: str, words: str) -> None:
    waits = pod("Pending", container={"waiting": {"reason": reason}} if reason else None) | {"spec": MOUNTS}
    verdict = judge(waits, has_record=False, waited_long=True)
    assert verdict.outcome == Outcome.INTERRUPTED and not verdict.is_explained
    events = [
        event("Successfully assigned default/p to node", "Scheduled"),
        event(words, "FailedAttachVolume" if words.startswith("Attach") else "FailedMount"),
    ]
    failed = explained(verdict, waits, events)
    assert (failed.outcome, failed.reason) == (Outcome.FAILED, f"The pod's container cannot be made: {words}. Create it, or correct its name.")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [event('MountVolume.SetUp failed for volume "exchange" : failed to sync secret cache: timed out waiting for the condition')],
        [event('MountVolume.SetUp failed for volume "token" : configmap "kube-root-ca.crt" not found')],
        [event('secret "keys" not found', "FailedToRetrieveImagePullSecret")],
        [event('secret "keys" not found'), event('Pulling image "stages"', "Pulling")],
    ],
    ids=["none", "slow", "not of the pod's own", "not a mount", "made meanwhile"],
)
def test_no_other_event_makes_a_failure_of_a_pod_that_waits(events: list[dict[str, Any]]) -> None:
    waits = pod("Pending", container={"waiting": {"reason": "ContainerCreating"}}) | {"spec": MOUNTS}
    verdict = judge(waits, has_record=False, waited_long=True)
    assert explained(verdict, waits, events) is verdict
    assert "see that there is secret 'keys' and config map 'settings' and claim 'mlops'" in verdict.reason


def test_what_a_pod_itself_says_needs_no_events() -> None:
    said = [{"waiting": {"reason": "ErrImagePull"}}, {"waiting": {"reason": "CreateContainerConfigError"}}]
    assert all(judge(pod("Pending", container=one), has_record=False, waited_long=True).is_explained for one in said)


def test_an_image_that_does_not_exist_and_a_queue_s_turn_are_no_slow_starts() -> None:
    missing = {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown: no tag 2"}}
    assert judge(pod("Pending", container=missing), has_record=False, waited_long=True).outcome == Outcome.FAILED
    invalid = pod("Pending", container={"waiting": {"reason": "InvalidImageName", "message": "Stages:1"}})
    assert judge(invalid, has_record=False).outcome == Outcome.FAILED
    gated = pod("Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}])
    assert judge(gated, has_record=False, waited_long=True).outcome is None


def test_a_name_is_the_same_for_the_same_attempt_and_no_other() -> None:
    names = {pod_name("robustness_shard", "dag", "task", "run", "-1", number) for number in "12"} | {
        pod_name("train", "dagtask", "", "run", "-1", "1")
    }
    assert len(names) == 3 and pod_name("train", "a", "b") == pod_name("train", "a", "b")
    assert all(len(name) <= 63 and name.replace("-", "").isalnum() and name.islower() for name in names)


def test_the_manifest_asks_for_what_the_spec_says() -> None:
    spec = SPEC._replace(num_gpus=2, memory_ladder=("8Gi",), shm_size="2Gi", queue="gpus", priority_class="high", service_account="trainer")
    spec = spec._replace(
        node_selector={"gpu": "a100"}, tolerations=[{"key": "gpu", "operator": "Exists"}], volume_claim="mlops", mount_path="/srv/mlops"
    )
    made = manifest(spec, "n", ["run"], "sha256:d", step=1)
    (container,) = made["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": "8Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/dev/shm", "/srv/mlops"]
    assert made["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"} and made["metadata"]["annotations"] == {
        "airflow-mlops/spec-digest": "sha256:d"
    }
    about = made["spec"]
    assert (about["restartPolicy"], about["priorityClassName"], about["serviceAccountName"]) == ("Never", "high", "trainer")
    assert (about["nodeSelector"], about["tolerations"]) == ({"gpu": "a100"}, [{"key": "gpu", "operator": "Exists"}])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_gpus": -1}, "num_gpus is -1"),
        ({"num_gpus": 0.5}, "num_gpus is 0.5; give a whole number"),
        ({"start_seconds": -1}, "start_seconds is -1"),
        ({"max_interruptions": "5"}, "max_interruptions is '5'"),
        ({"memory_ladder": "32Gi"}, "memory_ladder is '32Gi'; expected a list"),
        ({"num_gpus": 1, "gpu_resource": "gpu"}, "expected a name such as"),
        ({"volume_claim": "c"}, "belong together"),
        ({"places": ["/srv/inbox"]}, "for pods with an exchange"),
    ],
)
def test_what_no_cluster_can_run_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        manifest(SPEC._replace(**wrong), "n", [], "d", 0)


def test_what_an_api_server_drops_is_named_by_its_path_and_what_it_writes_in_its_own_way_is_not() -> None:
    sent = {"a": {"b": "1", "new": "x"}, "containers": [{"name": "base", "cpu": "0.5", "newer": [1]}], "list": ["x", "y"], "empty": [], "off": False}
    got = {"a": {"b": "1"}, "containers": [{"name": "sidecar"}, {"name": "base", "cpu": "500m", "default": 1}], "list": ["x"]}
    assert dropped(sent, got) == ["a.new", "containers[0].newer", "list[1]"]
    assert dropped(got, got) == []


def test_with_an_exchange_a_pod_has_empty_directories_and_the_secret_in_the_place_of_a_volume() -> None:
    spec = SPEC._replace(exchange="s3://bucket/x", exchange_secret="s3", places=["/srv/mlops", "/srv/inbox"])
    (container,) = manifest(spec, "n", [], "d", 0)["spec"]["containers"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/etc/airflow-mlops/exchange", "/srv/mlops", "/srv/inbox"]
    words = " ".join(command("train", "n", spec, "/w/spec.json", "/w/result.json"))
    options = "--exchange s3://bucket/x --request n --exchange-options /etc/airflow-mlops/exchange/options.json"
    assert words == f"python -m airflow_mlops stage train {options} --result /w/result.json --image example.org/stages:1"
    assert command("train", "n", spec._replace(num_gpus=2), "/w/spec.json", "/w/result.json")[-6:-4] == ["--gpus", "2"]


def test_a_stage_that_was_told_to_stop_without_another_trace_is_tried_again() -> None:
    assert judge(pod("Failed", container=ended(143)), has_record=False).outcome == Outcome.INTERRUPTED
