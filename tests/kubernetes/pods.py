"""Small pods for tests, and what became of them."""

from __future__ import annotations

import os
from typing import Any

from kubernetes import client

from tests.kubernetes.control_plane import eventually

IMAGE = os.environ.get("KUBERNETES_TEST_IMAGE", "busybox")  # on a played node no image is looked at


def manifest(name: str, *command: str, kind: str = "Never", **container: Any) -> dict[str, Any]:
    """Return a pod of one container, `main`, that is started again as `kind` says; further fields are the container's."""
    one = {"name": "main", "image": IMAGE, "command": list(command), **container}
    spec = {"restartPolicy": kind, "terminationGracePeriodSeconds": 1, "containers": [one]}
    return {"metadata": {"name": name}, "spec": spec}


def phase(core: client.CoreV1Api, namespace: str, name: str, *wanted: str) -> Any:
    """Return the pod once its phase is one of those wanted."""

    def look() -> Any:
        pod = core.read_namespaced_pod(name, namespace)
        return pod if pod.status.phase in wanted else None

    return eventually(look)


def gone(core: client.CoreV1Api, namespace: str, name: str) -> bool:
    """Return whether there is no such pod any more."""
    return name not in [pod.metadata.name for pod in core.list_namespaced_pod(namespace).items]


def printed(core: client.CoreV1Api, name: str, namespace: str, **asked: Any) -> str:
    """Return what a pod wrote; Kubernetes' client itself would return the text of a bytes literal."""
    return str(core.read_namespaced_pod_log(name, namespace, _preload_content=False, **asked).data.decode())


def state(pod: Any) -> Any:
    """Return the state of a pod's only container."""
    return pod.status.container_statuses[0].state


def log(core: client.CoreV1Api, namespace: str, name: str) -> str:
    """Return the log of a pod as soon as it runs."""
    phase(core, namespace, name, "Running")
    return printed(core, name, namespace)
