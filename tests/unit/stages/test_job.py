"""A distributed training as Kubernetes' objects, and what is made of how they end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.stages.job import JobSpec, Work, environment, too_old, worker_command, workload
from airflow_mlops.stages.job_verdicts import judge, waited_seconds
from airflow_mlops.stages.pod import Outcome, PodSpec

POD = PodSpec("stages:1", "team", num_gpus=1, memory="8Gi")
COMMAND = ["train", "--result", "/w-$(JOB_COMPLETION_INDEX)/result.json"]
WORK = Work("t-1", COMMAND, "sha256:spec")


def objects(spec: JobSpec, work: Work = WORK) -> dict[str, dict[str, Any]]:
    return {body["kind"]: body for _, body in workload(spec, work)}


def tf_config(variables: list[dict[str, Any]], index: int) -> Any:
    """Return what worker `index` reads, once Kubernetes has put its number in."""
    assert [one["name"] for one in variables] == ["JOB_COMPLETION_INDEX", "TF_CONFIG"]  # in this order: a variable may name earlier ones only
    return json.loads(variables[1]["value"].replace("$(JOB_COMPLETION_INDEX)", str(index)))


def ended(kind: str, **words: str) -> dict[str, Any]:
    return {"spec": {}, "status": {"conditions": [{"type": kind, "status": "True", **words}]}}


DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


def failed_pod(code: int = 1, metadata: Any = None, **status: Any) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "message": "no such column"}}
    return {"metadata": metadata or {}, "status": {"phase": "Failed", "containerStatuses": [{"name": "base", "state": state}], **status}}


def test_an_indexed_job_has_all_workers_at_once_and_each_finds_the_others_by_name() -> None:
    made = objects(JobSpec(POD, 3))
    job, service = made["Job"]["spec"], made["Service"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)
    assert "suspend" not in job
    assert (service["clusterIP"], service["publishNotReadyAddresses"], service["selector"]) == ("None", True, {"job-name": "t-1"})
    pod = job["template"]["spec"]
    assert (pod["subdomain"], pod["restartPolicy"]) == ("t-1", "Never")
    config = tf_config(pod["containers"][0]["env"], 2)
    assert config == {"cluster": {"worker": [f"t-1-{index}.t-1:2222" for index in range(3)]}, "task": {"type": "worker", "index": 2}}


def test_a_train_job_names_its_runtime_and_what_each_node_runs() -> None:
    made = objects(JobSpec(POD, 2, "trainjob", "mlops-tensorflow"))
    assert set(made) == {"TrainJob"}  # its JobSet makes the Service
    about = made["TrainJob"]["spec"]
    assert about["runtimeRef"]["name"] == "mlops-tensorflow"
    assert (about["trainer"]["numNodes"], about["trainer"]["image"], about["trainer"]["command"]) == (2, "stages:1", COMMAND)
    assert about["trainer"]["resourcesPerNode"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "1"}
    assert tf_config(about["trainer"]["env"], 1)["cluster"]["worker"][1] == "t-1-node-0-1.t-1:2222"


@pytest.mark.parametrize(("backend", "runtime", "kind"), [("job", "", "Job"), ("trainjob", "tf", "TrainJob")])
def test_a_queue_decides_when_the_workers_begin(backend: str, runtime: str, kind: str) -> None:
    made = objects(JobSpec(POD._replace(queue="gpus"), 2, backend, runtime))[kind]
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert judge(made, [], has_record=False, waited_long=True).outcome is None  # however long it takes


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (JobSpec(POD, 1), "num_workers is 1"),
        (JobSpec(POD, 2, "jop"), "job"),
        (JobSpec(POD, 2, "trainjob"), "runtime"),
        (JobSpec(POD, 2, "job", "tf"), "runtime"),
        (JobSpec(POD._replace(keep_failed_pod=True)), "keep_failed_pod of the pod has no effect"),
        (JobSpec(POD._replace(exchange="s3://bucket"), 2, "trainjob", "tf"), "exchange of the pod has no effect with backend 'trainjob'"),
        (JobSpec(POD._replace(volume_claim="c", mount_path="/m", grace_seconds=9), 2, "trainjob", "tf"), "volume_claim, mount_path, grace_seconds"),
    ],
)
def test_an_impossible_training_is_refused(spec: JobSpec, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        objects(spec)


@pytest.mark.parametrize(
    ("job", "pods", "has_record", "outcome"),
    [
        (ended("Complete"), [], True, Outcome.RECORD),
        (ended("Complete"), [], False, Outcome.FAILED),
        (ended("Failed", message="a pod failed"), [failed_pod()], False, Outcome.FAILED),
        (ended("Failed", message="a pod failed"), [], False, Outcome.FAILED),
        (ended("Failed"), [failed_pod(), failed_pod(reason="Evicted")], False, Outcome.INTERRUPTED),
        (ended("Failed"), [failed_pod(75)], False, Outcome.INTERRUPTED),  # the other is gone without a trace
        (ended("Failed"), [failed_pod(75), failed_pod(reason="Evicted")], False, Outcome.INTERRUPTED),
        (ended("Failed"), [failed_pod(75), failed_pod()], False, Outcome.FAILED),
        (ended("Failed"), [failed_pod(143, DELETED), failed_pod()], False, Outcome.FAILED),  # stopped when the other had failed
        (ended("Failed"), [failed_pod(143)], False, Outcome.INTERRUPTED),
        (None, [], False, Outcome.INTERRUPTED),
        (None, [], True, Outcome.RECORD),
        ({"spec": {}, "status": {"active": 2}}, [], False, None),
        ({"spec": {}, "status": {"active": 2}}, [], True, None),  # the chief is done and the others are not yet
    ],
)
def test_the_record_of_the_chief_counts_and_else_the_worker_that_was_the_reason(
    job: dict[str, Any] | None, pods: list[dict[str, Any]], has_record: bool, outcome: Outcome | None
) -> None:
    assert judge(job, pods, has_record=has_record).outcome == outcome


def test_a_program_that_failed_is_quoted() -> None:
    assert "no such column" in judge(ended("Failed"), [failed_pod()], has_record=False).reason


def test_a_worker_that_no_node_takes_fails_the_training_after_its_time() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient nvidia.com/gpu."}
    pod = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Pending", "conditions": [condition]}}
    job = {"spec": {}, "status": {"active": 2}}
    assert waited_seconds([pod], 1767225600.0 + 90) == 90
    assert waited_seconds([failed_pod()], 0.0) == 0
    assert judge(job, [pod], has_record=False).outcome is None
    verdict = judge(job, [pod], has_record=False, waited_long=True)
    assert verdict.outcome == Outcome.FAILED
    assert "insufficient nvidia.com/gpu" in verdict.reason


def test_an_old_cluster_is_told_which_field_it_dropped_and_what_it_takes() -> None:
    words = too_old(["spec.completionMode", "spec.podFailurePolicy.rules"], "Job")
    assert "spec.completionMode needs Kubernetes 1.24" in words
    assert "spec.podFailurePolicy needs Kubernetes 1.26" in words
    assert "spec.suspend" not in words


@pytest.mark.parametrize("spec", [JobSpec(POD), JobSpec(POD, 2, "trainjob", "tf")])
def test_every_worker_is_started_with_what_makes_it_reproducible(spec: JobSpec) -> None:
    (made,) = [body for kind, body in objects(spec, WORK._replace(variables={"PYTHONHASHSEED": "0"})).items() if kind != "Service"]
    variables = made["spec"]["trainer"]["env"] if spec.runtime else made["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "PYTHONHASHSEED", "value": "0"} in variables


def test_empty_fields_that_went_through_json_are_the_usual_ones() -> None:
    assert "Job" in objects(JobSpec(POD._replace(places=[], memory_ladder=[])))


def test_the_workers_are_as_many_as_asked_for() -> None:
    assert len(tf_config(environment(JobSpec(POD, 5), WORK, lambda name, index: f"{name}{index}"), 0)["cluster"]["worker"]) == 5


def test_with_an_exchange_each_worker_asks_for_the_request_and_says_which_one_it_is() -> None:
    spec = JobSpec(POD._replace(exchange="s3://bucket/runs", exchange_secret="exchange", places=["/data"]))
    command = worker_command("train", "t-1", spec, "/srv/job-1")
    assert command[-2:] == ["--worker", "$(JOB_COMPLETION_INDEX)"]
    assert command[command.index("--exchange") :][:4] == ["--exchange", "s3://bucket/runs", "--request", "t-1"]
    assert command[command.index("--result") + 1] == "/srv/job-1-worker-$(JOB_COMPLETION_INDEX)/result.json"
    assert "--worker" not in worker_command("train", "t-1", JobSpec(POD), "/srv/job-1")
    mounts = objects(spec)["Job"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert [one["mountPath"] for one in mounts] == ["/etc/airflow-mlops/exchange", "/data"]


def test_a_worker_that_is_replaced_when_another_is_done_waits_for_nobody() -> None:
    end = {"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:05:00Z"}}
    done = {"metadata": {"name": "t-1"}, "status": {"phase": "Succeeded", "containerStatuses": [{"name": "base", "state": end}]}}
    first, second = (
        {"metadata": {"name": "t-0", "creationTimestamp": f"2026-01-01T00:0{minute}:00Z"}, "status": {"phase": "Running"}} for minute in (0, 6)
    )
    job = {"spec": {}, "status": {"active": 1}}
    assert judge(job, [first, done], has_record=False).outcome is None
    verdict = judge(job, [second, done], has_record=False)
    assert verdict.outcome == Outcome.INTERRUPTED and "Worker t-0 was replaced" in verdict.reason
    assert judge(job, [second, done], has_record=True).outcome == Outcome.RECORD
