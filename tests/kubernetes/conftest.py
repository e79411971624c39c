"""One cluster for all tests of this process: the one that ``KUBECONFIG`` names, or else a control plane of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.kubernetes.control_plane import Cluster, ControlPlane
from tests.kubernetes.kubelet import Kubelet

EXPENSIVE = {"cluster", "environment", "installed", "root"}  # fixtures: a control plane to be built, packages of an image to be installed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs the cluster, or what an image holds; files that only take long mark themselves."""
    for item in items:
        if Path(__file__).parent in item.path.parents and EXPENSIVE & {*getattr(item, "fixturenames", ())}:
            item.add_marker("kubernetes")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster in which the tests may do everything."""
    if os.environ.get("KUBECONFIG"):
        yield Cluster(Path(os.environ["KUBECONFIG"]), tmp_path_factory.mktemp("kubeconfigs"))
        return
    with pytest.MonkeyPatch.context() as patch, ControlPlane() as control_plane:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")  # Kubernetes' client asks the machine's proxy otherwise
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        yield control_plane


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """An empty namespace in which pods can be made."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def api(cluster: Cluster) -> Iterator[client.ApiClient]:
    """The administrator's client."""
    with cluster.client() as api:
        yield api


@pytest.fixture
def core(api: client.ApiClient) -> client.CoreV1Api:
    """The part of the API about pods, nodes and what they need."""
    return client.CoreV1Api(api)


@pytest.fixture
def control_plane(cluster: Cluster) -> ControlPlane:
    """The tests' own control plane, on which nodes can be played."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("KUBECONFIG names a cluster with nodes of its own: only on the tests' own control plane are nodes played")
    return cluster


@pytest.fixture
def kubelet(control_plane: ControlPlane, namespace: str) -> Iterator[Kubelet]:
    """A played kubelet without a node yet; it ends before the namespace, whose pods it holds."""
    with Kubelet(control_plane) as kubelet:
        yield kubelet
