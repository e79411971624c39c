"""What cannot run says why and what to do, and leaves nothing that holds a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout
from kubernetes import client

from airflow_mlops.exceptions import ClusterUnavailable
from airflow_mlops.operators.pod import StagePodOperator
from tests.kubernetes import mounts
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.fake_api import FakeApi, Fault, Request
from tests.kubernetes.played_pod import Image
from tests.kubernetes.test_live_log import site as either
from tests.kubernetes.test_stage_pod import Site, context, followed, site

__all__ = ["either", "site"]
pytestmark = pytest.mark.kubernetes  # for the time that they take


def nothing_left(site: Site) -> bool:
    """Return whether every process that the stage noted is gone."""
    (noted,) = site.workspace.rglob("pids.json")
    return not any(Path(f"/proc/{pid}").exists() for pid in json.loads(noted.read_text()))


def test_a_gpu_resource_that_no_node_has_fails_with_the_scheduler_s_reason(site: Site) -> None:
    with pytest.raises(AirflowFailException, match=r"No node takes the pod: .*Insufficient example.org/none.*Ask for less, or add such a node"):
        site.operator("leave_file", num_gpus=1, gpu_resource="example.org/none", start_seconds=3).execute(context())
    eventually(lambda: site.pods() == [])


def test_an_image_s_name_that_is_none_fails_without_waiting(site: Site) -> None:
    site.kubelet.images["stages"] = Image(pull_error="InvalidImageName")
    with pytest.raises(AirflowFailException, match=r"cannot be made: InvalidImageName.*Correct the image"):
        site.operator("leave_file", num_gpus=0, start_seconds=600).execute(context())
    eventually(lambda: site.pods() == [])


def test_an_image_that_cannot_be_pulled_is_the_infrastructure_s_matter_for_a_stated_time(site: Site) -> None:
    site.kubelet.images["stages"] = Image(pull_error="ErrImagePull")
    with pytest.raises(AirflowFailException, match=r"The image cannot be pulled.*taken away 1 times"):
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
    eventually(lambda: nothing_left(site))


@pytest.mark.parametrize(
    ("source", "what"),
    [(client.V1EnvFromSource(secret_ref={"name": "nothing"}), "secret"), (client.V1EnvFromSource(config_map_ref={"name": "nothing"}), "configmap")],
)
def test_a_secret_or_config_map_of_the_environment_that_is_missing_is_named(site: Site, source: client.V1EnvFromSource, what: str) -> None:
    operator = site.operator("leave_file", start_seconds=3)
    operator.env_from = [source]
    with pytest.raises(
        AirflowFailException, match=rf'cannot be made: CreateContainerConfigError: {what} "nothing" not found. Correct the image, secrets'
    ):
        operator.execute(context())
    eventually(lambda: site.pods() == [])


def mounting(site: Site, kind: str, *, deferrable: bool = False, **pod: Any) -> StagePodOperator:
    """Return an operator whose pod mounts something that is not there."""
    operator = site.operator("leave_file", start_seconds=3, deferrable=deferrable, **pod)
    sources = {"secret": {"secret": {"secretName": "nothing"}}, "configmap": {"configMap": {"name": "nothing"}}}
    sources["persistentvolumeclaim"] = {"persistentVolumeClaim": {"claimName": "nothing"}}
    operator.full_pod_spec = client.V1Pod(spec=client.V1PodSpec(containers=[], volumes=[{"name": "own", **sources[kind]}]))
    return operator


@pytest.mark.parametrize(("kind", "deferrable"), [("secret", False), ("secret", True), ("configmap", False)])
def test_what_is_to_be_mounted_and_is_missing_fails_with_kubernetes_words(either: Site, kind: str, deferrable: bool) -> None:
    with pytest.raises(AirflowFailException, match=rf'cannot be made: MountVolume.SetUp failed: {kind} "nothing" not found. Create it, or correct'):
        followed(mounting(either, kind, deferrable=deferrable))
    eventually(lambda: either.pods() == [])


def test_a_claim_that_is_gone_when_its_pod_has_a_node_fails_too(either: Site) -> None:
    if not isinstance(either.kubelet.cluster, FakeApi):
        pytest.skip("Kubernetes' own scheduler looks at claims, and says so on the pod")
    with pytest.raises(AirflowFailException, match=r'persistentvolumeclaim "nothing" not found. Create it, or correct its name'):
        followed(mounting(either, "persistentvolumeclaim"))


def test_where_events_may_not_be_read_the_error_names_what_the_pod_mounts(either: Site, caplog: pytest.LogCaptureFixture) -> None:
    if not isinstance(either.kubelet.cluster, FakeApi):
        pytest.skip("test_role.py asks the real one")
    asked = []

    def refuse(request: Request) -> Fault | None:
        """Refuse what asks for the events of one pod by its uid, as only we do."""
        ours = request.kind.plural == "events" and "involvedObject.uid" in request.query.get("fieldSelector", "")
        asked.extend([request] * ours)
        return Fault(403) if ours else None

    either.kubelet.cluster.before = refuse
    with pytest.raises(AirflowFailException, match=r"not made in time; see that there is secret 'nothing'.*; `kubectl describe` shows .* 1 times"):
        followed(mounting(either, "secret", max_interruptions=0))
    assert len(asked) == 1
    eventually(lambda: either.pods() == [])


def test_a_secret_that_somebody_makes_in_time_is_none_that_is_missing(either: Site) -> None:
    either.core.create_namespaced_secret(either.namespace, {"metadata": {"name": "nothing"}, "data": {}})
    assert followed(mounting(either, "secret"))["stage"] == "scripted"


def test_a_claim_that_is_missing_is_named(site: Site) -> None:
    with pytest.raises(AirflowFailException, match=r'persistentvolumeclaim "nothing" not found.* Make that claim, or correct volume_claim'):
        site.operator("leave_file", start_seconds=3, volume_claim="nothing", mount_path="/srv/nothing").execute(context())
    eventually(lambda: site.pods() == [])


def over_the_workspace(site: Site, *arguments: Any, volume: dict[str, Any], below: str = "", **mount: Any) -> Any:
    """Return an operator whose pod has a volume of its own at a directory of the stage."""
    if not mounts.possible():
        pytest.skip("only root may give a pod of this machine mounts of its own")
    operator = site.operator(*arguments)
    operator._prepare(context())
    place = operator._directory / below
    place.mkdir(exist_ok=True)
    operator.volumes = [client.V1Volume(name="own", **volume)]
    operator.volume_mounts = [client.V1VolumeMount(name="own", mount_path=str(place), **mount)]
    return operator


def test_a_stage_on_a_full_volume_says_so_in_its_record(site: Site) -> None:
    memory = {"empty_dir": client.V1EmptyDirVolumeSource(medium="Memory", size_limit="64Ki")}
    with pytest.raises(AirflowFailException, match=r"No space left on device"):
        over_the_workspace(site, "fill", "small", 1 << 20, volume=memory, below="small").execute(context())
    eventually(lambda: site.pods() == [])


def test_a_stage_whose_volume_can_only_be_read_ends_with_why_its_record_is_missing(site: Site) -> None:
    operator = over_the_workspace(site, "talk", volume={"empty_dir": {}}, read_only=True)
    operator.volumes = [client.V1Volume(name="own", host_path={"path": str(operator._directory)})]
    with pytest.raises(AirflowFailException, match=r"(?s)exit code 1 and left no result.*cannot be written to .*Read-only file system.*make room"):
        operator.execute(context())
    eventually(lambda: site.pods() == [])


def test_a_stage_that_hangs_is_ended_with_the_task_s_time(site: Site) -> None:
    operator = site.operator("start_child_and_wait")
    with pytest.raises(AirflowTaskTimeout), timeout(8):
        operator.execute(context())
    operator.on_kill()  # as Airflow does then
    eventually(lambda: site.pods() == [])
    eventually(lambda: nothing_left(site))


def test_a_function_that_hangs_after_its_own_time_fails_with_the_place(site: Site) -> None:
    with pytest.raises(AirflowFailException, match=r"TrainingTimeout: .*scripted_stage.py:\d+ in hang. Look at context.should_stop"):
        site.operator("hang", number=0.5).execute(context())
    eventually(lambda: site.pods() == [])


def test_a_program_that_crashes_names_the_signal(site: Site) -> None:
    with pytest.raises(AirflowFailException, match=r"exit code 139, by signal SIGSEGV, and left no result record"):
        site.operator("crash").execute(context())
    eventually(lambda: site.pods() == [])
