"""The kubelet, played by the test: its nodes are this machine, its pods are local processes whose logs the API server can fetch."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.containers import Guard, Log
from tests.kubernetes.control_plane import Cluster
from tests.kubernetes.node_endpoint import node_endpoint
from tests.kubernetes.played_pod import Image, PlayedPod

SYNC_SECONDS = 0.1
PATH = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])


class Kubelet:
    """Nodes that really run what is bound to them; they and their pods are gone when the block ends.

    A container's command runs here with its arguments, environment and exit code. A volume is a directory: as root it is mounted, in a namespace
    of the container's own, where this machine has such a directory; else paths below its mount are replaced in the command and the environment.
    Directories in `hidden`, which only root can hide, are empty for the pods that start from then on. An image is not looked at, except in
    `images`; limits and probes are not either. Logs can be followed; exec, attach and port-forward are not played.

    :param images: what each image is; others bring nothing but Python and the system's programs.
    :param env: variables that every image brings.
    """

    def __init__(self, cluster: Cluster, images: Mapping[str, Image] | None = None, env: Mapping[str, str] | None = None) -> None:
        self.cluster, self.images, self.hidden = cluster, dict(images or {}), list[Path]()
        self._env = {"PATH": PATH, **(env or {})}
        self._nodes: dict[str, bool] = {}  # and whether it is there
        self._pods: dict[str, tuple[PlayedPod, Future[None]]] = {}  # by uid
        self._lock, self._stopping, self._numbers = threading.RLock(), threading.Event(), itertools.count()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-mlops-kubelet-")))
            self._core = client.CoreV1Api(stack.enter_context(self.cluster.client()))
            self._guard = stack.enter_context(Guard())
            self._port = stack.enter_context(node_endpoint(self._log))
            self._pool = stack.enter_context(ThreadPoolExecutor(128, thread_name_prefix="kubelet"))
            self._sync_loop = self._pool.submit(self._sync_all)
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_node(self, name: str, *, cpu: str = "4", memory: str = "8Gi", gpus: int = 0, labels: Mapping[str, str] | None = None) -> None:
        """Register a node that is ready at once; cpu and memory are Kubernetes' quantities, nothing holds pods to them."""
        self._core.create_node({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}})
        size = {"cpu": cpu, "memory": memory, "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        place = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}}}
        self._core.patch_node_status(
            name, {"status": {"capacity": size, "allocatable": size, **place, "conditions": [_ready("True", "KubeletReady")]}}
        )
        self._core.patch_node(name, {"spec": {"taints": None}})  # every new node is not ready, by the API server's own taint
        self._nodes[name] = True

    def lose_node(self, name: str) -> None:
        """Let a node vanish: its processes are gone, its pods stay as they were last seen, and nobody answers when they are deleted."""
        with self._lock:
            self._nodes[name] = False
            for played in [played for played in self._played() if played.pod.spec.node_name == name]:
                played.silent = True
                played.stop(0)
        self._core.patch_node_status(name, {"status": {"conditions": [_ready("Unknown", "NodeStatusUnknown")]}})
        self._core.patch_node(name, {"spec": {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]}})

    def pod(self, namespace: str, name: str) -> PlayedPod:
        """Return the running pod of a name, to evict it or to end its containers."""
        found = [played for played in self._played() if (played.pod.metadata.namespace, played.pod.metadata.name) == (namespace, name)]
        assert found, f"no pod {namespace}/{name} was started here"
        return found[-1]

    def _played(self) -> list[PlayedPod]:
        with self._lock:
            return [played for played, _ in self._pods.values()]

    def _log(self, namespace: str, name: str, container: str, previous: bool) -> Log | None:
        for played in self._played():
            about = played.pod.metadata
            if (about.namespace, about.name) == (namespace, name) and self._nodes[played.pod.spec.node_name]:
                return played.log(container, previous)
        return None

    def _sync_all(self) -> None:
        while not self._stopping.wait(SYNC_SECONDS):
            pods = self._core.list_pod_for_all_namespaces(resource_version="0").items
            with self._lock:
                bound = {pod.metadata.uid: pod for pod in pods if self._nodes.get(pod.spec.node_name)}
                for pod in bound.values():
                    self._sync(pod)
                for uid in [uid for uid, (played, _) in self._pods.items() if uid not in bound and self._nodes[played.pod.spec.node_name]]:
                    self._pods.pop(uid)[0].stop(0)  # it is gone, or somebody deleted it without waiting

    def _sync(self, pod: Any) -> None:
        """Start a pod that is new, stop one that is to go, and say that it is gone once it is."""
        uid, about = pod.metadata.uid, pod.metadata
        if uid not in self._pods and about.deletion_timestamp is None and pod.status.phase == "Pending":
            home = self._home / str(next(self._numbers))
            home.mkdir()
            images = {**{one.image: Image() for one in pod.spec.containers + (pod.spec.init_containers or [])}, **self.images}
            images = {name: Image(image.entrypoint, {**self._env, **image.env}, image.pull_error, image.failure) for name, image in images.items()}
            played = PlayedPod(pod, self._core, images, home, self._guard, [*self.hidden])
            self._pods[uid] = played, self._pool.submit(played.run)
        if about.deletion_timestamp is not None:
            if uid in self._pods and not self._pods[uid][1].done():
                self._pods[uid][0].stop(about.deletion_grace_period_seconds)
            else:
                self._delete(pod)

    def _delete(self, pod: Any) -> None:
        about = pod.metadata
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": about.uid}}
        _ignoring_gone(self._core.delete_namespaced_pod, about.name, about.namespace, body=body)

    def _end(self) -> None:
        """Stop everything, clean up, and raise what went wrong in a thread."""
        self._stopping.set()
        started = list(self._pods.values())
        for played, _ in started:
            played.silent = True
            played.stop(0)
        for pod in self._core.list_pod_for_all_namespaces().items:
            if pod.spec.node_name in self._nodes:
                self._delete(pod)
        for name in self._nodes:
            _ignoring_gone(self._core.delete_node, name)
        for future in (self._sync_loop, *(future for _, future in started)):
            future.result()


def _ready(status: str, reason: str) -> dict[str, str]:
    return {"type": "Ready", "status": status, "reason": reason}


def _ignoring_gone(call: Any, *arguments: Any, **named: Any) -> None:
    try:
        call(*arguments, **named)
    except ApiException as error:
        if error.status not in (404, 409):
            raise
