"""The Role for distributed trainings is enough for them, and nothing in it can be left out: without one verb they fail, or say what they lack.

The tests' own control plane keeps no Indexed Job: there, a training by a Job ends with the sentence that says so, after all that a Job takes was
asked for and taken away again. A TrainJob is kept, by a definition without a Trainer behind it; the test says how it ended.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException
from kubernetes import client

from airflow_mlops.ledger.store import Store
from airflow_mlops.stages.chief import INDEX_ANNOTATION
from airflow_mlops.stages.job import BACKENDS, JobSpec
from airflow_mlops.stages.pod import PodSpec
from tests.kubernetes.control_plane import ControlPlane, eventually
from tests.kubernetes.test_job import Scripted, context
from tests.kubernetes.test_job_log import Heard, heard

__all__ = ["heard"]
ROLE = yaml.safe_load((Path(__file__).parents[2] / "docker" / "kubernetes" / "job-runner.yaml").read_text())
TRAIN_JOBS = BACKENDS["trainjob"].place
NAMES = {"plural": "trainjobs", "singular": "trainjob", "kind": "TrainJob"}
SCHEMA = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
DEFINITION = {
    "metadata": {"name": f"{TRAIN_JOBS.plural}.{TRAIN_JOBS.group}"},
    "spec": {
        "group": TRAIN_JOBS.group,
        "names": NAMES,
        "scope": "Namespaced",
        "versions": [{"name": TRAIN_JOBS.version, "served": True, "storage": True, "schema": SCHEMA}],
    },
}
LOG = ("pods/log", "get")
EVENTS = ("events", "list")  # for which test_role.py is enough: both Roles are asked in the same way
EVERY = [(resource, verb) for rule in ROLE["rules"] for resource, verb in itertools.product(rule["resources"], rule["verbs"])]


@pytest.fixture
def train_jobs(api: client.ApiClient, namespace: str) -> Any:
    """Kubernetes' interface to the namespace's TrainJobs, which it keeps as they are."""
    definitions, objects = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api)
    if DEFINITION["metadata"]["name"] not in [each.metadata.name for each in definitions.list_custom_resource_definition().items]:
        definitions.create_custom_resource_definition(DEFINITION)
    eventually(lambda: _served(definitions))
    return objects


def _served(definitions: client.ApiextensionsV1Api) -> bool:
    about = definitions.read_custom_resource_definition(DEFINITION["metadata"]["name"]).status
    return ("Established", "True") in [(each.type, each.status) for each in (about.conditions if about else None) or ()]


def train_as(
    cluster: ControlPlane, api: client.ApiClient, spec: JobSpec, scripted: ModuleType, rules: list[dict[str, Any]], train_jobs: Any = None
) -> None:
    """Run a training as a service account that has `rules`; a TrainJob that it makes ends as complete and without a record."""
    namespace = spec.pod.namespace
    account, rbac = cluster.service_account(namespace, "airflow"), client.RbacAuthorizationV1Api(api)
    rbac.create_namespaced_role(namespace, {**ROLE, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "airflow", "namespace": namespace}
    reference = {"kind": "Role", "name": ROLE["metadata"]["name"], "apiGroup": "rbac.authorization.k8s.io"}
    rbac.create_namespaced_role_binding(namespace, {"metadata": {"name": "airflow"}, "subjects": [subject], "roleRef": reference})
    connection = {"config_file": str(account), "kubernetes_conn_id": None, "in_cluster": False}
    task = Scripted(task_id="t", spec=scripted.Spec("leave_file"), job_spec=spec, poll_seconds=0.2, **connection)
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(task.execute, context())
        if train_jobs is not None:
            name = eventually(lambda: done.done() or [one["metadata"]["name"] for one in listed(train_jobs, namespace)])
            if name is not True:
                client.CoreV1Api(api).create_namespaced_pod(namespace, worker_0(name[0]))
                status = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
                train_jobs.patch_namespaced_custom_object(*TRAIN_JOBS[:2], namespace, TRAIN_JOBS.plural, name[0], status)
        done.result()


def worker_0(train_job: str) -> dict[str, Any]:
    """Return the pod that a Trainer would make; it has no node here, and its log is empty."""
    labels = {"jobset.sigs.k8s.io/jobset-name": train_job, "jobset.sigs.k8s.io/replicatedjob-name": "node"}
    about = {"name": f"{train_job}-node-0-0", "labels": labels, "annotations": {INDEX_ANNOTATION: "0"}}
    return {"metadata": about, "spec": {"containers": [{"name": "node", "image": "stages"}]}}


def listed(train_jobs: Any, namespace: str) -> list[Any]:
    return list(train_jobs.list_namespaced_custom_object(*TRAIN_JOBS[:2], namespace, TRAIN_JOBS.plural)["items"])


def without(resource: str, verb: str) -> list[dict[str, Any]]:
    """Return the Role's rules without one verb; each of them is about one resource."""
    rules = [{**rule, "verbs": [one for one in rule["verbs"] if (rule["resources"], one) != ([resource], verb)]} for rule in ROLE["rules"]]
    return [rule for rule in rules if rule["verbs"]]


def specs(namespace: str) -> dict[str, JobSpec]:
    pod = PodSpec("stages", namespace)
    return {"job": JobSpec(pod), "trainjob": JobSpec(pod, 2, "trainjob", "tensorflow")}


def test_it_is_enough_for_a_job(
    control_plane: ControlPlane, api: client.ApiClient, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store
) -> None:
    with pytest.raises(AirflowFailException, match=r"drops spec.completionMode"):
        train_as(control_plane, api, specs(namespace)["job"], scripted, ROLE["rules"])
    eventually(lambda: not client.BatchV1Api(api).list_namespaced_job(namespace).items)
    assert client.CoreV1Api(api).list_namespaced_service(namespace).items == []


def test_it_is_enough_for_a_train_job(
    control_plane: ControlPlane,
    api: client.ApiClient,
    namespace: str,
    scripted: ModuleType,
    workspace: Path,
    ledger: Store,
    train_jobs: Any,
    heard: Heard,
) -> None:
    with pytest.raises(AirflowFailException, match="complete and left no result record"):
        train_as(control_plane, api, specs(namespace)["trainjob"], scripted, ROLE["rules"], train_jobs)
    eventually(lambda: not listed(train_jobs, namespace))
    assert heard.told("The log of worker 0 is not told") == []


def test_without_the_right_to_read_logs_the_training_goes_on_and_says_so_once(
    control_plane: ControlPlane,
    api: client.ApiClient,
    namespace: str,
    scripted: ModuleType,
    workspace: Path,
    ledger: Store,
    train_jobs: Any,
    heard: Heard,
) -> None:
    with pytest.raises(AirflowFailException, match="complete and left no result record"):
        train_as(control_plane, api, specs(namespace)["trainjob"], scripted, without(*LOG), train_jobs)
    (warning,) = heard.told("The log of worker 0 is not told, the training goes on all the same")
    assert 'cannot get resource \\"pods/log\\"' in warning


@pytest.mark.parametrize(("resource", "verb"), [each for each in EVERY if each not in (LOG, EVENTS)])
def test_without_one_verb_the_training_fails_and_says_which(
    control_plane: ControlPlane,
    api: client.ApiClient,
    namespace: str,
    scripted: ModuleType,
    workspace: Path,
    ledger: Store,
    train_jobs: Any,
    resource: str,
    verb: str,
) -> None:
    spec = specs(namespace)["job" if resource in ("jobs", "services") else "trainjob"]
    with pytest.raises(AirflowFailException, match=rf"Kubernetes refused: 403 .*cannot {verb} resource ..{resource}"):
        train_as(control_plane, api, spec, scripted, without(resource, verb), train_jobs if spec.runtime else None)
