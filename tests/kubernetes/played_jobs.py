"""The Job controller, played by the test for Indexed Jobs, which the tests' own control plane is too old for; its pods really run."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from kubernetes import client

from tests.kubernetes.control_plane import Cluster, free_port

SYNC_SECONDS = 0.1
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


class PlayedJobs:
    """Makes the pods of every Job that is not suspended, one per index, and says how it ended; Jobs are judged as Kubernetes 1.26 does.

    A pod that was evicted is replaced, a program that failed fails the Job, as the Job's podFailurePolicy has it; others are not played.
    No name server is played either: where a worker's variables name a worker and port 2222, they name an address of this machine's here.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self._stopping, self._numbers = cluster, threading.Event(), itertools.count()
        self._addresses: dict[str, dict[str, str]] = {}  # by the job's uid, of each worker's name and port

    def __enter__(self) -> Self:
        self._api = self.cluster.client().__enter__()
        self._core, self._batch = client.CoreV1Api(self._api), client.BatchV1Api(self._api)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._loop = self._pool.submit(self._sync_all)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._loop.result()
        self._pool.shutdown()
        self._api.close()

    def _sync_all(self) -> None:
        while not self._stopping.wait(SYNC_SECONDS):
            for job in self._batch.list_job_for_all_namespaces().items:
                ended = [each.type for each in job.status.conditions or []] if job.status else []
                if not ended and not job.spec.suspend and not job.metadata.deletion_timestamp:
                    self._sync(job)

    def _sync(self, job: Any) -> None:
        pods = self._core.list_namespaced_pod(job.metadata.namespace, label_selector=f"job-name={job.metadata.name}").items
        failed = [pod for pod in pods if pod.status.phase == "Failed" and not _taken(pod)]
        if failed:
            self._say(job, "Failed", f"Container base for pod {failed[0].metadata.name} failed: it matches FailJob rule at index 1")
            for pod in pods:
                if pod.status.phase in ("Pending", "Running"):
                    self._core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
            return
        there = {_index(pod): pod.status.phase for pod in pods if pod.status.phase != "Failed"}
        if [there.get(index) for index in range(job.spec.completions)] == ["Succeeded"] * job.spec.completions:
            self._say(job, "Complete", "")
            return
        for index in range(job.spec.completions):
            if index not in there:
                self._make(job, index)

    def _make(self, job: Any, index: int) -> None:
        made = self._core.create_namespaced_pod(job.metadata.namespace, self._pod(job, index))
        left = self._batch.list_namespaced_job(job.metadata.namespace).items
        if job.metadata.uid not in [each.metadata.uid for each in left]:  # deleted meanwhile: who collects garbage would find this pod, too
            self._core.delete_namespaced_pod(made.metadata.name, made.metadata.namespace)

    def _pod(self, job: Any, index: int) -> dict[str, Any]:
        template = self._api.sanitize_for_serialization(job.spec.template)
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid, "controller": True}
        for one in template["spec"]["containers"]:
            fields = [variable for variable in one.get("env", []) if "valueFrom" in variable]
            assert all(each["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.annotations['{INDEX_ANNOTATION}']" for each in fields)
            for variable in fields:  # no kubelet is played that reads them
                del variable["valueFrom"]
                variable["value"] = str(index)
            for variable in one.get("env", []):
                for name, address in self._network(job).items():
                    variable["value"] = variable["value"].replace(name, address)
        about = {
            "name": f"{job.metadata.name}-{index}-{next(self._numbers)}",
            "labels": {"job-name": job.metadata.name},
            "annotations": {**template["metadata"].get("annotations", {}), INDEX_ANNOTATION: str(index)},
            "ownerReferences": [owner],
        }
        return {"metadata": about, "spec": {**template["spec"], "hostname": f"{job.metadata.name}-{index}"}}

    def _network(self, job: Any) -> dict[str, str]:
        """Return where each worker of the job is found by its name, also when its pod is replaced."""
        name, indices = job.metadata.name, range(job.spec.completions)
        if job.metadata.uid not in self._addresses:
            self._addresses[job.metadata.uid] = {f"{name}-{index}.{name}:2222": f"127.0.0.1:{free_port()}" for index in indices}
        return self._addresses[job.metadata.uid]

    def _say(self, job: Any, kind: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "message": message}
        self._batch.patch_namespaced_job_status(job.metadata.name, job.metadata.namespace, {"status": {"conditions": [condition]}})


def _index(pod: Any) -> int:
    return int(pod.metadata.annotations[INDEX_ANNOTATION])


def _taken(pod: Any) -> bool:
    return pod.status.reason == "Evicted"
