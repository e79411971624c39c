"""The control plane of the tests answers as a cluster does: it validates, schedules, knows who may do what and collects what nobody owns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.control_plane import Cluster, ControlPlane, eventually
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.pods import manifest, phase


def gpu(name: str) -> dict[str, Any]:
    return manifest(name, "true", resources={"limits": {"nvidia.com/gpu": 1}})


def status_of(error: pytest.ExceptionInfo[ApiException]) -> tuple[int, str]:
    return error.value.status, json.loads(error.value.body)["message"]


def test_what_is_not_valid_is_answered_422_with_the_field(core: client.CoreV1Api, namespace: str) -> None:
    with pytest.raises(ApiException) as error:
        core.create_namespaced_pod(namespace, manifest("bad", "true", resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}))
    code, message = status_of(error)
    assert code == 422
    assert "spec.containers[0].resources.requests" in message


def test_who_writes_over_a_newer_version_is_answered_409(core: client.CoreV1Api, namespace: str) -> None:
    first = core.create_namespaced_config_map(namespace, {"metadata": {"name": "settings"}, "data": {"a": "1"}})
    core.patch_namespaced_config_map("settings", namespace, {"data": {"a": "2"}})
    first.data = {"a": "3"}
    with pytest.raises(ApiException) as error:
        core.replace_namespaced_config_map("settings", namespace, first)
    assert status_of(error)[0] == 409
    assert core.read_namespaced_config_map("settings", namespace).data == {"a": "2"}


def test_a_pod_that_asks_for_a_gpu_is_put_on_the_node_that_has_one(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("without", cpu="64")
    kubelet.add_node("with", gpus=1)
    core.create_namespaced_pod(namespace, gpu("train"))
    assert phase(core, namespace, "train", "Succeeded").spec.node_name == "with"


def test_without_a_gpu_it_waits_and_the_scheduler_says_why(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("without", cpu="64")
    core.create_namespaced_pod(namespace, gpu("train"))

    def refused() -> Any:
        return [one for one in core.read_namespaced_pod("train", namespace).status.conditions or [] if one.status == "False"]

    condition = eventually(refused)[0]
    assert (condition.type, condition.reason) == ("PodScheduled", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in condition.message
    kubelet.add_node("with", gpus=1)  # and as soon as there is one, it runs
    phase(core, namespace, "train", "Succeeded")


def test_a_job_makes_its_pod_and_sees_it_succeed(api: client.ApiClient, core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    batch = client.BatchV1Api(api)
    batch.create_namespaced_job(namespace, {"metadata": {"name": "job"}, "spec": {"template": {"spec": manifest("", "true")["spec"]}}})
    eventually(lambda: batch.read_namespaced_job("job", namespace).status.succeeded == 1)
    (pod,) = core.list_namespaced_pod(namespace, label_selector="job-name=job").items
    assert pod.metadata.owner_references[0].kind == "Job"


def test_what_an_object_owns_goes_with_it(core: client.CoreV1Api, namespace: str) -> None:
    owner = core.create_namespaced_config_map(namespace, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "free"}})
    core.delete_namespaced_config_map("owner", namespace)

    def names() -> set[str]:
        return {one.metadata.name for one in core.list_namespaced_config_map(namespace).items}

    eventually(lambda: "owned" not in names())
    assert "free" in names()


def test_a_service_account_may_do_what_its_role_says_and_nothing_else(cluster: Cluster, api: client.ApiClient, namespace: str) -> None:
    rbac = client.RbacAuthorizationV1Api(api)
    with cluster.client(cluster.service_account(namespace, "robot")) as robot:
        pods = client.CoreV1Api(robot)
        with pytest.raises(ApiException) as error:
            pods.list_namespaced_pod(namespace)
        code, message = status_of(error)
        assert code == 403
        assert f"system:serviceaccount:{namespace}:robot" in message
        rbac.create_namespaced_role(
            namespace, {"metadata": {"name": "look"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]}
        )
        binding = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "look"}}
        binding["subjects"] = [{"kind": "ServiceAccount", "name": "robot", "namespace": namespace}]  # type: ignore[assignment]
        rbac.create_namespaced_role_binding(namespace, {"metadata": {"name": "robot"}, **binding})
        assert eventually(lambda: allowed(pods, namespace))
        with pytest.raises(ApiException, match="403"):
            pods.create_namespaced_pod(namespace, manifest("pod", "true"))


def allowed(core: client.CoreV1Api, namespace: str) -> bool:
    try:
        core.list_namespaced_pod(namespace)
    except ApiException as error:
        assert error.status == 403
        return False
    return True


def test_people_are_known_by_their_certificates(control_plane: ControlPlane, namespace: str) -> None:
    with control_plane.client(control_plane.user("alice")) as api, pytest.raises(ApiException) as error:
        client.CoreV1Api(api).list_namespaced_secret(namespace)
    assert status_of(error)[0] == 403
    assert 'User "alice"' in status_of(error)[1]


NEIGHBOUR = """
import json, time
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.pods import client, eventually, log, manifest

with ControlPlane() as plane, plane.namespace() as namespace, plane.client() as api, Kubelet(plane) as kubelet:
    core = client.CoreV1Api(api)
    kubelet.add_node("node")
    core.create_namespaced_pod(namespace, manifest("pod", "sh", "-c", "echo $$; sleep 601 & sleep 602"))
    print(json.dumps([str(plane.home), namespace, eventually(lambda: log(core, namespace, "pod"))]), flush=True)
    time.sleep(600)
"""


def test_two_control_planes_do_not_disturb_each_other_and_one_that_is_killed_leaves_no_process(
    control_plane: ControlPlane, core: client.CoreV1Api, namespace: str, tmp_path: Path
) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # what the killed leave behind goes with this test's directory
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdout=subprocess.PIPE, env=env, cwd=Path(__file__).parents[2]) as tests:
        try:
            assert tests.stdout is not None
            home, elsewhere, pod = json.loads(tests.stdout.readline())
            other = Cluster(Path(home, "admin.json"), tmp_path)
            with other.client() as api:
                names = {one.metadata.name for one in client.CoreV1Api(api).list_namespace().items}
            assert elsewhere in names and namespace not in names
            assert elsewhere not in {one.metadata.name for one in core.list_namespace().items}
            with control_plane.client(stranger(control_plane, other, tmp_path)) as api, pytest.raises(ApiException) as error:
                client.CoreV1Api(api).list_namespace()
            assert error.value.status == 401
            everything = psutil.Process(tests.pid).children(recursive=True)
            assert {int(pod)} < {process.pid for process in everything}
            assert {"etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager"} < {Path(process.exe()).name for process in everything}
        finally:
            tests.send_signal(signal.SIGKILL)
    eventually(lambda: not [process for process in everything if process.is_running() and process.status() != psutil.STATUS_ZOMBIE])
    core.list_namespace()  # this one goes on


def stranger(here: Cluster, there: Cluster, directory: Path) -> Path:
    """Return a kubeconfig that shows the credentials of one cluster to another."""
    mine, theirs = (json.loads(one.kubeconfig.read_text()) for one in (here, there))
    (directory / "stranger.json").write_text(json.dumps({**mine, "users": theirs["users"]}))
    return directory / "stranger.json"
