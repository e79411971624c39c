"""What can not run says why and what to do, and leaves nothing that holds a GPU."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException
from kubernetes import client

from airflow_mlops.exceptions import ClusterUnavailable
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.played_pod import Image
from tests.kubernetes.test_stage_pod import Site, context, site

__all__ = ["site"]


def test_a_gpu_resource_that_no_node_has_fails_with_the_scheduler_s_reason(site: Site) -> None:
    with pytest.raises(AirflowFailException, match=r"No node takes the pod: .*Insufficient example.org/none.*Ask for less, or add such a node"):
        site.operator("leave_file", num_gpus=1, gpu_resource="example.org/none", start_seconds=3).execute(context())
    eventually(lambda: site.pods() == [])


def test_an_image_s_name_that_is_none_fails_without_waiting(site: Site) -> None:
    site.kubelet.images["stages"] = Image(pull_error="InvalidImageName")
    with pytest.raises(AirflowFailException, match=r"can not be made: InvalidImageName.*Correct the image"):
        site.operator("leave_file", num_gpus=0, start_seconds=600).execute(context())
    eventually(lambda: site.pods() == [])


def test_an_image_that_can_not_be_pulled_is_the_infrastructure_s_matter_for_a_stated_time(site: Site) -> None:
    site.kubelet.images["stages"] = Image(pull_error="ErrImagePull")
    with pytest.raises(AirflowFailException, match=r"The image can not be pulled.*taken away 1 times"):
        site.operator("leave_file", start_seconds=3, max_interruptions=0).execute(context())
    eventually(lambda: site.pods() == [])


def test_a_quota_that_is_used_up_is_worth_a_retry_and_says_so(site: Site) -> None:
    name = "nothing-left"
    site.core.create_namespaced_resource_quota(site.namespace, {"metadata": {"name": name}, "spec": {"hard": {"pods": "0"}}})
    eventually(lambda: site.core.read_namespaced_resource_quota(name, site.namespace).status.hard)
    with pytest.raises(ClusterUnavailable, match=r"(?s)quota has no room for this pod.*exceeded quota: nothing-left.*raise the quota, or retry"):
        site.operator("leave_file").execute(context())


@pytest.mark.parametrize(("field", "words"), [("service_account", "nobody"), ("priority_class", "no PriorityClass with name nobody")])
def test_what_the_pod_names_and_the_cluster_lacks_is_told_at_once(site: Site, field: str, words: str) -> None:
    with pytest.raises(AirflowFailException, match=rf"(?s)Kubernetes refused: 403.*{words}"):
        site.operator("leave_file", **{field: "nobody"}).execute(context())
    assert site.pods() == []


def test_a_field_that_the_api_server_is_too_old_for_is_named_and_no_pod_stays(site: Site) -> None:
    version = client.VersionApi(site.core.api_client).get_code()
    if int(version.minor.rstrip("+")) >= 25:
        pytest.skip("this API server knows spec.os")
    operator = site.operator("leave_file")
    operator.full_pod_spec = client.V1Pod(spec=client.V1PodSpec(containers=[], os=client.V1PodOS(name="linux")))
    with pytest.raises(AirflowFailException, match=r"Kubernetes drops spec\.os of pod mlops-scripted-.*Leave it out"):
        operator.execute(context())
    eventually(lambda: site.pods() == [])


@pytest.mark.parametrize(("kept", "num_pods"), [(True, 1), (False, 0)])
def test_a_pod_whose_program_failed_is_kept_as_asked_and_has_ended(site: Site, kept: bool, num_pods: int) -> None:
    with pytest.raises(AirflowFailException, match="ended with exit code 3"):
        site.operator("leave_silently", number=3, keep_failed_pod=kept).execute(context())
    eventually(lambda: [pod.status.phase for pod in site.pods()] == ["Failed"] * num_pods)


def test_a_stage_that_leaves_children_ends_with_its_result(site: Site) -> None:
    assert site.operator("start_child").execute(context())["stage"] == "scripted"
    eventually(lambda: site.pods() == [])
