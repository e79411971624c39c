"""The control plane of the tests answers as a cluster does, and the played kubelet runs what is bound to its nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.build import build, home, with_sources
from tests.kubernetes.control_plane import Cluster, ControlPlane, eventually
from tests.kubernetes.kubelet import Image, Kubelet

IMAGE = os.environ.get("KUBERNETES_TEST_IMAGE", "busybox")  # on a played node no image is looked at


def manifest(name: str, *command: str, kind: str = "Never", **container: Any) -> dict[str, Any]:
    one = {"name": "main", "image": IMAGE, "command": list(command), **container}
    spec = {"restartPolicy": kind, "terminationGracePeriodSeconds": 1, "containers": [one]}
    return {"metadata": {"name": name}, "spec": spec}


def gpu(name: str) -> dict[str, Any]:
    return manifest(name, "true", resources={"limits": {"nvidia.com/gpu": 1}})


def phase(core: client.CoreV1Api, namespace: str, name: str, *wanted: str) -> Any:
    """Return the pod once its phase is one of those wanted."""

    def look() -> Any:
        pod = core.read_namespaced_pod(name, namespace)
        return pod if pod.status.phase in wanted else None

    return eventually(look)


def gone(core: client.CoreV1Api, namespace: str, name: str) -> bool:
    return name not in [pod.metadata.name for pod in core.list_namespaced_pod(namespace).items]


def printed(core: client.CoreV1Api, name: str, namespace: str, **asked: Any) -> str:
    """Return what a pod wrote; Kubernetes' client itself would return the text of a bytes literal."""
    return str(core.read_namespaced_pod_log(name, namespace, _preload_content=False, **asked).data.decode())


def state(pod: Any) -> Any:
    return pod.status.container_statuses[0].state


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


def test_the_kubelet_runs_a_command_and_its_lines_come_through_the_api_while_it_runs(
    core: client.CoreV1Api, namespace: str, kubelet: Kubelet, tmp_path: Path
) -> None:
    kubelet.add_node("node")
    script = 'echo "hello $WHO from $(NAME)"; while ! test -e "$1"; do sleep 0.05; done; echo bye'
    env = [{"name": "WHO", "value": "you"}, {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    core.create_namespaced_pod(namespace, manifest("talks", "sh", "-c", script, args=["sh", str(tmp_path / "go")], env=env))
    phase(core, namespace, "talks", "Running")
    lines = watch.Watch().stream(core.read_namespaced_pod_log, "talks", namespace)
    assert next(lines) == "hello you from talks"
    (tmp_path / "go").touch()  # only now may it end: the line before was told while it ran
    assert list(lines) == ["bye"]
    phase(core, namespace, "talks", "Succeeded")
    stamped = printed(core, "talks", namespace, timestamps=True, tail_lines=1)
    assert stamped.endswith("Z bye\n")
    assert printed(core, "talks", namespace, since_seconds=3600) == "hello you from talks\nbye\n"


def test_a_command_that_fails_fails_its_pod_with_its_exit_code(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    core.create_namespaced_pod(namespace, manifest("fails", "sh", "-c", "exit 3"))
    core.create_namespaced_pod(namespace, manifest("missing", "no-such-program"))
    ended = state(phase(core, namespace, "fails", "Failed")).terminated
    assert (ended.exit_code, ended.reason) == (3, "Error")
    ended = state(phase(core, namespace, "missing", "Failed")).terminated
    assert (ended.exit_code, ended.reason) == (128, "StartError")


def test_a_container_may_be_out_of_memory(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.images["greedy"] = Image(failure="OOMKilled")
    kubelet.add_node("node")
    core.create_namespaced_pod(namespace, manifest("greedy", "sh", "-c", "kill -KILL $$", image="greedy"))
    core.create_namespaced_pod(namespace, manifest("sleeps", "sleep", "600"))
    ended = state(phase(core, namespace, "greedy", "Failed")).terminated
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    phase(core, namespace, "sleeps", "Running")
    kubelet.pod(namespace, "sleeps").end("main", 137, "OOMKilled")
    ended = state(phase(core, namespace, "sleeps", "Failed")).terminated
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")


def test_a_pod_may_be_evicted(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    core.create_namespaced_pod(namespace, manifest("large", "sleep", "600"))
    phase(core, namespace, "large", "Running")
    kubelet.pod(namespace, "large").evict("Evicted", "The node was low on resource: memory.")
    status = phase(core, namespace, "large", "Failed").status
    assert (status.reason, status.message) == ("Evicted", "The node was low on resource: memory.")
    assert eventually(lambda: [event for event in core.list_namespaced_event(namespace).items if event.reason == "Evicted"])


def test_an_image_may_be_missing(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.images["nowhere/none"] = Image(pull_error="ImagePullBackOff")
    kubelet.add_node("node")
    core.create_namespaced_pod(namespace, manifest("waits", "true", image="nowhere/none"))
    waiting = eventually(lambda: (core.read_namespaced_pod("waits", namespace).status.container_statuses or [None])[0]).state.waiting
    assert waiting.reason == "ImagePullBackOff"
    core.delete_namespaced_pod("waits", namespace)
    eventually(lambda: gone(core, namespace, "waits"))


def test_a_pod_that_is_deleted_may_end_gently_within_its_grace(core: client.CoreV1Api, namespace: str, kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.add_node("node")
    gentle = f"trap 'touch {tmp_path}/gentle; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    deaf = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    for name, script in (("gentle", gentle), ("deaf", deaf)):
        core.create_namespaced_pod(namespace, manifest(name, "sh", "-c", script))
    logs = {name: eventually(lambda name=name: log(core, namespace, name)) for name in ("gentle", "deaf")}  # type: ignore[misc]
    for name in logs:
        core.delete_namespaced_pod(name, namespace)
        assert core.read_namespaced_pod(name, namespace).metadata.deletion_timestamp is not None
        eventually(lambda name=name: gone(core, namespace, name))  # type: ignore[misc]
    assert (tmp_path / "gentle").exists()
    assert not psutil.pid_exists(int(logs["deaf"]))


def log(core: client.CoreV1Api, namespace: str, name: str) -> str:
    """Return the log of a pod as soon as it runs."""
    phase(core, namespace, name, "Running")
    return printed(core, name, namespace)


def test_a_lost_node_says_nothing_more(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    core.create_namespaced_pod(namespace, manifest("lost", "sh", "-c", "echo $$; exec sleep 600"))
    pid = int(eventually(lambda: log(core, namespace, "lost")))
    kubelet.lose_node("node")
    eventually(lambda: not psutil.pid_exists(pid))
    core.delete_namespaced_pod("lost", namespace)
    time.sleep(2)  # longer than its grace and many looks of the kubelet
    pod = core.read_namespaced_pod("lost", namespace)
    assert (pod.status.phase, pod.metadata.deletion_timestamp is None) == ("Running", False)
    (ready,) = [one for one in core.read_node("node").status.conditions if one.type == "Ready"]
    assert ready.status == "Unknown"
    with pytest.raises(ApiException):
        printed(core, "lost", namespace)


def test_containers_that_may_are_started_again(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    volume = {"volumes": [{"name": "scratch", "emptyDir": {}}]}
    script = "test -e /scratch/seen && exit 0; touch /scratch/seen; echo first; exit 1"
    pod = manifest("again", "sh", "-c", script, kind="OnFailure", volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}])
    pod["spec"] |= volume
    core.create_namespaced_pod(namespace, pod)
    status = phase(core, namespace, "again", "Succeeded").status.container_statuses[0]
    assert (status.restart_count, status.last_state.terminated.exit_code) == (1, 1)
    assert printed(core, "again", namespace, previous=True) == "first\n"
    assert not Path("/scratch").exists()


def test_what_a_pod_reads_comes_from_the_cluster(core: client.CoreV1Api, namespace: str, kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.images["ours"] = Image(entrypoint=("sh", "-c"), env={"BROUGHT": "by the image"})
    kubelet.add_node("node")
    core.create_namespaced_secret(namespace, {"metadata": {"name": "secret"}, "stringData": {"TOKEN": "hush"}})
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "settings"}, "data": {"file.txt": "told\n"}})
    pod = manifest("reads", image="ours", args=['echo "$BROUGHT $TOKEN"; cat /etc/settings/file.txt; echo kept > /kept/here'])
    pod["spec"]["initContainers"] = [{"name": "first", "image": "ours", "args": ["echo made > /kept/before"]}]
    for one in pod["spec"]["initContainers"] + pod["spec"]["containers"]:
        one["volumeMounts"] = [{"name": "settings", "mountPath": "/etc/settings"}, {"name": "kept", "mountPath": "/kept"}]
        one["envFrom"] = [{"secretRef": {"name": "secret"}}]
    pod["spec"]["volumes"] = [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "kept", "hostPath": {"path": str(tmp_path)}}]
    core.create_namespaced_pod(namespace, pod)
    phase(core, namespace, "reads", "Succeeded")
    assert printed(core, "reads", namespace) == "by the image hush\ntold\n"
    assert [(tmp_path / name).read_text() for name in ("before", "here")] == ["made\n", "kept\n"]


def test_two_control_planes_do_not_disturb_each_other(control_plane: ControlPlane, core: client.CoreV1Api, namespace: str) -> None:
    with ControlPlane() as other, other.client() as api, other.namespace() as elsewhere:
        names = {one.metadata.name for one in client.CoreV1Api(api).list_namespace().items}
        assert elsewhere in names
        assert namespace not in names
        assert elsewhere not in {one.metadata.name for one in core.list_namespace().items}
        with pytest.raises(ApiException, match="401"):  # nor is whom one knows known to the other
            settings = client.Configuration()
            settings.host, settings.verify_ssl = other.server, False
            settings.api_key = {"authorization": next(iter(control_plane.client().configuration.api_key.values()))}
            client.CoreV1Api(client.ApiClient(settings)).list_namespace()


KILLED = """
import time
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.test_control_plane import client, manifest, log

with ControlPlane() as plane, plane.namespace() as namespace, plane.client() as api, Kubelet(plane) as kubelet:
    core = client.CoreV1Api(api)
    kubelet.add_node("node")
    core.create_namespaced_pod(namespace, manifest("pod", "sh", "-c", "echo $$; sleep 601 & sleep 602"))
    while not (told := log(core, namespace, "pod")):
        time.sleep(0.1)
    print(told, flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_when_the_tests_are_killed(control_plane: ControlPlane) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as tests:
        assert tests.stdout is not None
        pod = int(tests.stdout.readline())
        everything = psutil.Process(tests.pid).children(recursive=True)
        names = {process.name() for process in everything}
        assert {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "sh", "sleep"} <= names | {
            "kube-controller",
            "kube-controller-manager",
        }
        assert pod in [process.pid for process in everything]
        tests.send_signal(signal.SIGKILL)
    eventually(lambda: not [process for process in everything if process.is_running() and process.status() != psutil.STATUS_ZOMBIE])


def test_what_was_built_is_not_built_again(control_plane: ControlPlane) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in home().iterdir()}
    assert build() == home()
    assert {path.name: path.stat().st_mtime_ns for path in home().iterdir()} == before


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("Types: deb\nURIs: http://a/debian\n", "Types: deb deb-src\nURIs: http://a/debian\n"),
        ("deb [trusted=yes] http://a/debian b main\n", "deb [trusted=yes] http://a/debian b main\ndeb-src [trusted=yes] http://a/debian b main\n"),
    ],
)
def test_sources_are_found_where_packages_are(entries: str, expected: str) -> None:
    assert with_sources(entries) == expected
