"""The control plane and the fake of its API server give the same answers to the same questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.control_plane import Cluster, eventually
from tests.kubernetes.fake_api import FakeApi
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.pods import gone, manifest, phase, printed, state


class Site:
    """A namespace on either of them."""

    def __init__(self, cluster: Cluster, core: client.CoreV1Api, namespace: str) -> None:
        self.cluster, self.core, self.namespace = cluster, core, namespace

    def create(self, name: str, *command: str, **labels: str) -> Any:
        body = manifest(name, *command)
        body["metadata"]["labels"] = labels
        return self.core.create_namespaced_pod(self.namespace, body)

    def names(self, **selectors: str) -> set[str]:
        return {pod.metadata.name for pod in self.core.list_namespaced_pod(self.namespace, **selectors).items}


@pytest.fixture(params=["fake", pytest.param("control_plane", marks=pytest.mark.kubernetes)])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    fake = FakeApi(tmp_path) if request.param == "fake" else None
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with fake or nullcontext():
        cluster = fake or request.getfixturevalue("control_plane")
        with cluster.client() as api, cluster.namespace() as namespace:
            yield Site(cluster, client.CoreV1Api(api), namespace)


@pytest.fixture
def kubelet(site: Site) -> Iterator[Kubelet]:
    with Kubelet(site.cluster) as kubelet:
        yield kubelet


def refused(call: Any, *arguments: Any, **named: Any) -> tuple[int, str]:
    with pytest.raises(ApiException) as error:
        call(*arguments, **named)
    return int(error.value.status), str(json.loads(error.value.body)["reason"])


def test_a_name_is_given_once_and_what_is_not_there_is_not_found(site: Site) -> None:
    made = site.create("one", "true")
    assert (made.status.phase, made.metadata.namespace, made.spec.termination_grace_period_seconds) == ("Pending", site.namespace, 1)
    assert made.metadata.uid and made.metadata.resource_version and made.metadata.creation_timestamp
    assert refused(site.create, "one", "true") == (409, "AlreadyExists")
    assert refused(site.core.read_namespaced_pod, "two", site.namespace) == (404, "NotFound")
    assert refused(site.core.delete_namespaced_pod, "two", site.namespace) == (404, "NotFound")


def test_what_asks_for_more_than_it_may_have_is_invalid(site: Site) -> None:
    bad = manifest("bad", "true", resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})
    assert refused(site.core.create_namespaced_pod, site.namespace, bad) == (422, "Invalid")


def test_a_pod_lives_and_its_log_can_be_read_when_it_ended(site: Site, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    site.create("good", "sh", "-c", "echo first; echo second")
    site.create("bad", "sh", "-c", "exit 3")
    assert phase(site.core, site.namespace, "good", "Succeeded").spec.node_name == "node"
    assert printed(site.core, "good", site.namespace) == "first\nsecond\n"
    stamped = printed(site.core, "good", site.namespace, timestamps=True, tail_lines=1)
    assert stamped.endswith("Z second\n") and stamped.count("\n") == 1
    assert state(phase(site.core, site.namespace, "bad", "Failed")).terminated.exit_code == 3


def test_a_log_is_followed_until_the_container_ends(site: Site, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    site.create("pod", "sh", "-c", "echo first; sleep 1; echo second")
    phase(site.core, site.namespace, "pod", "Running")
    assert printed(site.core, "pod", site.namespace, follow=True) == "first\nsecond\n"


def test_a_pod_that_no_node_has_goes_at_once_and_one_that_runs_is_stopped_first(site: Site, kubelet: Kubelet) -> None:
    site.create("waiting", "true")
    site.core.delete_namespaced_pod("waiting", site.namespace)
    assert gone(site.core, site.namespace, "waiting")
    kubelet.add_node("node")
    site.create("running", "sleep", "100")
    phase(site.core, site.namespace, "running", "Running")
    site.core.delete_namespaced_pod("running", site.namespace)
    assert site.core.read_namespaced_pod("running", site.namespace).metadata.deletion_grace_period_seconds == 1
    eventually(lambda: gone(site.core, site.namespace, "running"))


def test_a_pod_with_a_finalizer_is_there_until_somebody_takes_it_off(site: Site) -> None:
    body = manifest("held", "true")
    body["metadata"]["finalizers"] = ["tests.example.org/held"]
    site.core.create_namespaced_pod(site.namespace, body)
    site.core.delete_namespaced_pod("held", site.namespace)
    assert site.core.read_namespaced_pod("held", site.namespace).metadata.deletion_timestamp
    site.core.patch_namespaced_pod("held", site.namespace, {"metadata": {"finalizers": None}})
    assert gone(site.core, site.namespace, "held")


def test_another_pod_of_the_same_name_is_not_deleted_by_mistake(site: Site) -> None:
    site.create("pod", "true")
    body = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    assert refused(site.core.delete_namespaced_pod, "pod", site.namespace, body=body) == (409, "Conflict")
    assert site.names() == {"pod"}


def test_patches_change_what_they_name_and_a_status_has_an_address_of_its_own(site: Site) -> None:
    before = site.create("pod", "true", kept="yes", gone="yes")
    after = site.core.patch_namespaced_pod(
        "pod", site.namespace, {"metadata": {"labels": {"gone": None, "new": "yes"}}, "status": {"phase": "Failed"}}
    )
    assert after.metadata.labels == {"kept": "yes", "new": "yes"}
    assert after.status.phase == "Pending"
    assert after.metadata.resource_version != before.metadata.resource_version
    site.core.patch_namespaced_pod_status("pod", site.namespace, {"status": {"conditions": [{"type": "A", "status": "True"}]}})
    told = site.core.patch_namespaced_pod_status(
        "pod", site.namespace, {"status": {"phase": "Failed", "conditions": [{"type": "B", "status": "True"}]}}
    )
    assert told.status.phase == "Failed" and {"A", "B"} <= {one.type for one in told.status.conditions}
    assert (
        refused(site.core.patch_namespaced_pod, "pod", site.namespace, {"spec": {"containers": [{"name": "main", "command": ["false"]}]}})[0] == 422
    )


def test_who_writes_over_a_newer_version_is_refused(site: Site) -> None:
    first = site.core.create_namespaced_config_map(site.namespace, {"metadata": {"name": "settings"}, "data": {"a": "1"}})
    site.core.patch_namespaced_config_map("settings", site.namespace, {"data": {"a": "2"}})
    first.data = {"a": "3"}
    assert refused(site.core.replace_namespaced_config_map, "settings", site.namespace, first) == (409, "Conflict")


def test_selectors_choose_by_labels_and_fields(site: Site) -> None:
    site.create("a", "true", app="x", tier="1")
    site.create("b", "true", app="y")
    chosen = {
        "app=x": {"a"},
        "app!=x": {"b"},
        "tier": {"a"},
        "!tier": {"b"},
        "app in (x,y)": {"a", "b"},
        "app notin (x)": {"b"},
        "app=x,tier=2": set(),
    }
    assert {selector: site.names(label_selector=selector) for selector in chosen} == chosen
    assert site.names(field_selector="metadata.name=b,status.phase=Pending") == {"b"}


def test_a_watch_tells_every_change_once_and_in_order(site: Site) -> None:
    since = site.core.list_namespaced_pod(site.namespace).metadata.resource_version
    site.create("pod", "true")
    site.core.patch_namespaced_pod("pod", site.namespace, {"metadata": {"labels": {"new": "yes"}}})
    site.core.delete_namespaced_pod("pod", site.namespace)
    looking, seen = watch.Watch(), []
    for event in looking.stream(site.core.list_namespaced_pod, site.namespace, resource_version=since, timeout_seconds=60):
        seen.append((int(event["object"].metadata.resource_version), event["type"], (event["object"].metadata.labels or {}).get("new")))
        if event["type"] == "DELETED":
            looking.stop()
    versions = [version for version, *_ in seen]
    assert versions == sorted(set(versions))
    told = [(kind, label) for _, kind, label in seen]  # the scheduler's changes are among them, and that the pod is to go
    assert list(dict.fromkeys(one for one in told if one != ("MODIFIED", None))) == [("ADDED", None), ("MODIFIED", "yes"), ("DELETED", "yes")]


def test_what_an_object_owns_goes_with_it(site: Site) -> None:
    owner = site.core.create_namespaced_config_map(site.namespace, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}
    site.core.create_namespaced_config_map(site.namespace, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    site.core.delete_namespaced_config_map("owner", site.namespace)
    eventually(lambda: "owned" not in {one.metadata.name for one in site.core.list_namespaced_config_map(site.namespace).items})


def test_more_than_any_node_has_waits_with_the_scheduler_s_reason(site: Site, kubelet: Kubelet) -> None:
    kubelet.add_node("node")
    site.core.create_namespaced_pod(site.namespace, manifest("gpu", "true", resources={"limits": {"nvidia.com/gpu": 1}}))

    def condition() -> Any:
        return next((one for one in site.core.read_namespaced_pod("gpu", site.namespace).status.conditions or [] if one.status == "False"), None)

    told = eventually(condition)
    assert (told.type, told.reason) == ("PodScheduled", "Unschedulable") and "Insufficient nvidia.com/gpu" in told.message
