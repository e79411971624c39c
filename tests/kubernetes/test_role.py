"""The Role that is shipped is enough for the operator, and nothing in it can be left out but what says so."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException
from kubernetes import client

from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.stages.pod import PodSpec
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.test_stage_pod import followed

ROLE = yaml.safe_load((Path(__file__).parents[2] / "docker" / "kubernetes" / "stage-runner.yaml").read_text())


def run_as(
    kubelet: Kubelet,
    api: client.ApiClient,
    namespace: str,
    scripted: ModuleType,
    rules: list[dict[str, Any]],
    *,
    deferrable: bool = False,
    **pod: Any,
) -> dict[str, Any]:
    """Run a stage as a service account that has `rules`; further fields are those of its `PodSpec`."""
    account = kubelet.cluster.service_account(namespace, "airflow")
    rbac = client.RbacAuthorizationV1Api(api)
    rbac.create_namespaced_role(namespace, {**ROLE, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "airflow", "namespace": namespace}
    reference = {"kind": "Role", "name": ROLE["metadata"]["name"], "apiGroup": "rbac.authorization.k8s.io"}
    rbac.create_namespaced_role_binding(namespace, {"metadata": {"name": "airflow"}, "subjects": [subject], "roleRef": reference})
    kubelet._env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    kubelet.add_node("node")
    operator = StagePodOperator(
        task_id="t",
        stage="scripted",
        spec=scripted.Spec("leave_file"),
        pod_spec=PodSpec("stages", namespace, cpu="100m", memory="64Mi", **pod),
        config_file=str(account),
        kubernetes_conn_id=None,
        in_cluster=False,
        startup_check_interval_seconds=1,
        deferrable=deferrable,
    )
    return followed(operator)


def without(resource: str, verb: str) -> list[dict[str, Any]]:
    rules = [
        {**rule, "verbs": [one for one in rule["verbs"] if (one, resource) not in [(verb, each) for each in rule["resources"]]]}
        for rule in ROLE["rules"]
    ]
    return [rule for rule in rules if rule["verbs"]]


@pytest.mark.parametrize("deferrable", [False, True])
def test_it_is_enough(
    kubelet: Kubelet, api: client.ApiClient, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store, deferrable: bool
) -> None:
    assert run_as(kubelet, api, namespace, scripted, ROLE["rules"], deferrable=deferrable)["stage"] == "scripted"


OPTIONAL = [("events", "list")]
NEEDED = [(resource, verb) for rule in ROLE["rules"] for resource in rule["resources"] for verb in rule["verbs"] if (resource, verb) not in OPTIONAL]


def test_only_events_may_be_left_out() -> None:
    assert NEEDED == [("pods", "create"), ("pods", "get"), ("pods", "delete"), ("pods/log", "get")]


def test_without_what_may_be_left_out_it_is_enough_and_says_less_of_a_pod_that_cannot_start(
    kubelet: Kubelet, api: client.ApiClient, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store
) -> None:
    exchange = {"exchange": f"file://{workspace.parent}/exchange", "exchange_secret": "nothing", "start_seconds": 3, "max_interruptions": 0}
    with pytest.raises(AirflowFailException, match=r"not made in time; see that there is secret 'nothing'.*taken away 1 times"):
        run_as(kubelet, api, namespace, scripted, without(*OPTIONAL[0]), **exchange)


def test_with_it_a_secret_that_is_missing_is_named(
    kubelet: Kubelet, api: client.ApiClient, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store
) -> None:
    exchange = {"exchange": f"file://{workspace.parent}/exchange", "exchange_secret": "nothing", "start_seconds": 3}
    with pytest.raises(AirflowFailException, match=r'cannot be made: .*secret "nothing" not found\. Create it, or correct its name'):
        run_as(kubelet, api, namespace, scripted, ROLE["rules"], **exchange)


@pytest.mark.parametrize(("resource", "verb"), NEEDED)
def test_without_one_verb_the_task_fails_and_says_which(
    kubelet: Kubelet, api: client.ApiClient, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store, resource: str, verb: str
) -> None:
    with pytest.raises(AirflowFailException, match=rf"Kubernetes refused: 403 .*cannot {verb} resource ..{resource}"):
        run_as(kubelet, api, namespace, scripted, without(resource, verb))
