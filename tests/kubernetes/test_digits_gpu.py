"""``dags/digits_gpu.py`` as it is, under the real scheduler and triggerer: every stage a pod of the image's own packages, without Airflow."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from airflow_mlops.local.digits import publish_digits
from airflow_mlops.records import ResultRef, load
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.results import from_data
from airflow_mlops.stages import stage
from tests.deployments import ROOT, Story, deployed, wait
from tests.kubernetes.kubelet import PATH, Kubelet
from tests.kubernetes.played_pod import Image
from tests.kubernetes.stage_root import stage_root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DAG = "digits_gpu_on_dataset"
STAGES = ("validate", "train", "evaluate", "robustness")


@pytest.fixture
def home(core: client.CoreV1Api, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """The directory that workers and pods share: the volume of the claim ``mlops``."""
    size = {"storage": "1Gi"}
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    core.create_persistent_volume(
        {"metadata": {"name": namespace}, "spec": {**spec, "capacity": size, "hostPath": {"path": str(tmp_path)}}},
    )
    claim = {"metadata": {"name": "mlops"}, "spec": {**spec, "volumeName": namespace, "resources": {"requests": size}}}
    core.create_namespaced_persistent_volume_claim(namespace, claim)
    yield tmp_path
    core.delete_persistent_volume(namespace)


@pytest.fixture
def story(kubelet: Kubelet, namespace: str, home: Path) -> Iterator[Story]:
    """The deployment, whose pods run on one node with two GPUs."""
    shutil.copytree(ROOT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    options = {
        "STAGE_IMAGE": "stages:cpu",
        "STAGE_IMAGE_CUDA": "stages:cuda",
        "NAMESPACE": namespace,
        "VOLUME_CLAIM": "mlops",
        "MOUNT_PATH": str(home),
    }
    cluster = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubelet.cluster.kubeconfig), "in_cluster": False}}
    variables = {f"AIRFLOW__MLOPS__{name}": value for name, value in options.items()}
    with stage_root() as root:
        image = Image(env={"PATH": f"{root}/bin:{PATH}", "TF_CPP_MIN_LOG_LEVEL": "2"})
        kubelet.images |= {"stages:cpu": image, "stages:cuda": image}
        kubelet.add_node("node", gpus=2)
        with deployed(home, home / "dags", {**variables, "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(cluster)}, [DAG]) as story:
            yield story


def test_a_dataset_becomes_a_candidate_and_every_stage_was_a_pod(story: Story, core: client.CoreV1Api, namespace: str) -> None:
    publish_digits(story.deployment.inbox, "v1", num_rows=400, seed=1)
    run_id = wait("a run starts", lambda: story.api.runs(DAG))[0]["dag_run_id"]
    gpus: dict[str, str] = {}

    def ended() -> str | None:
        for pod in core.list_namespaced_pod(namespace).items:
            gpus[stage_of(pod.metadata.name)] = pod.spec.containers[0].resources.limits.get("nvidia.com/gpu", "0")
        state = story.api.run_state(DAG, run_id)
        return state if state in ("success", "failed") else None

    state = wait("the run ends", ended, seconds=600.0)
    assert state == "success", {name: task["state"] for name, task in story.api.tasks(DAG, run_id).items()}

    for name in STAGES:  # whoever reads a record so reads one that is whole, and so are the files it names
        load(from_data(ResultRef, story.api.xcom(DAG, run_id, name)), stage(name).Result)
    assert MlflowRegistry(story.settings.url("mlflow")).get_by_alias("digits_gpu", "candidate").version == 1

    started = [event.involved_object.name for event in core.list_namespaced_event(namespace).items if event.reason == "Scheduled"]
    assert Counter(map(stage_of, started)) == {"validate": 1, "train": 1, "evaluate": 1, "robustness-shard": 3, "robustness": 1}
    assert gpus == {**dict.fromkeys(map(stage_of, started), "0"), "train": "1"}
    wait("no pod is left", lambda: core.list_namespaced_pod(namespace).items == [])


def stage_of(pod: str) -> str:
    return pod.removeprefix("mlops-").rpartition("-")[0]
