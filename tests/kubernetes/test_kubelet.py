"""The played kubelet runs what is bound to its nodes, and the API tells it as of any other node."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from tests.kubernetes import mounts
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.played_pod import Image
from tests.kubernetes.pods import gone, log, manifest, phase, printed, state


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


@pytest.fixture
def root() -> None:
    if not mounts.possible():
        pytest.skip("only root may make mount namespaces; without, paths are replaced in commands")


@pytest.mark.usefixtures("root")
def test_a_volume_is_mounted_where_this_machine_has_a_directory_and_what_is_hidden_is_empty(
    core: client.CoreV1Api, namespace: str, kubelet: Kubelet, tmp_path: Path
) -> None:
    (tmp_path / "site" / "claim").mkdir(parents=True)
    (tmp_path / "site" / "workers").write_text("file")
    (tmp_path / "site" / "claim" / "kept").write_text("claimed")
    kubelet.hidden.append(tmp_path / "site")
    kubelet.add_node("node")
    core.create_namespaced_secret(namespace, {"metadata": {"name": "secret"}, "stringData": {"token": "hush"}})
    script = """
        cd "$1"; ls | sort | tr '\\n' ' '; cat claim/kept secret/token; echo
        touch secret/new || echo secrets are read-only; touch claim/new || echo so is the claim
        head -c 2097152 /dev/zero > own/large 2>/dev/null || echo memory has its limit
    """
    pod = manifest("mounts", "sh", "-c", script, args=["sh", str(tmp_path / "site")])
    pod["spec"]["containers"][0]["volumeMounts"] = [
        {"name": "secret", "mountPath": f"{tmp_path}/site/secret"},
        {"name": "claim", "mountPath": f"{tmp_path}/site/claim", "readOnly": True},
        {"name": "own", "mountPath": f"{tmp_path}/site/own"},
    ]
    pod["spec"]["volumes"] = [
        {"name": "secret", "secret": {"secretName": "secret"}},
        {"name": "claim", "hostPath": {"path": f"{tmp_path}/site/claim"}},
        {"name": "own", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]
    core.create_namespaced_pod(namespace, pod)
    phase(core, namespace, "mounts", "Succeeded", "Failed")
    wrote = [line for line in printed(core, "mounts", namespace).splitlines() if not line.startswith("touch:")]
    assert wrote == ["claim own secret claimedhush", "secrets are read-only", "so is the claim", "memory has its limit"]
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == ["claim", "workers"]


def test_the_end_of_the_log_says_why_a_container_failed_where_it_is_asked_for(core: client.CoreV1Api, namespace: str, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    script = "seq 1 100; exit 4"
    for name, policy in (("told", "FallbackToLogsOnError"), ("silent", "File")):
        core.create_namespaced_pod(namespace, manifest(name, "sh", "-c", script, terminationMessagePolicy=policy))
    assert (state(phase(core, namespace, "told", "Failed")).terminated.message or "").splitlines() == [str(number) for number in range(21, 101)]
    assert not state(phase(core, namespace, "silent", "Failed")).terminated.message
