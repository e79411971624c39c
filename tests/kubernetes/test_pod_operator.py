"""Airflow's own pod operator on the played nodes: what our operators build upon works here as on a cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import AirflowException
from airflow.providers.cncf.kubernetes.callbacks import KubernetesPodOperatorCallback
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes import client

from tests.fakes import context
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.pods import IMAGE


def operator(kubelet: Kubelet, namespace: str, script: str, **settings: Any) -> KubernetesPodOperator:
    return KubernetesPodOperator(
        task_id="t",
        name="pod",
        namespace=namespace,
        image=IMAGE,
        cmds=["sh", "-c", script],
        config_file=str(kubelet.cluster.kubeconfig),
        kubernetes_conn_id=None,
        in_cluster=False,
        startup_check_interval_seconds=1,
        **settings,
    )


def run_context() -> Any:
    return context(run_id="r1", dag=None)


class Heard(KubernetesPodOperatorCallback):
    """Keeps the lines that the operator read from the pod's log."""

    lines: list[str] = []

    @staticmethod
    def progress_callback(*, line: str, **_: Any) -> None:
        Heard.lines.append(line.rstrip())  # the last one alone keeps its end


def test_the_log_of_a_pod_is_followed_line_by_line_while_it_runs(
    kubelet: Kubelet, core: client.CoreV1Api, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heard, "lines", [])
    kubelet.add_node("node")
    script = f"echo one; echo two; while ! test -e {tmp_path}/go; do sleep 0.05; done; echo three"
    with ThreadPoolExecutor() as beside:
        done = beside.submit(operator(kubelet, namespace, script, callbacks=Heard).execute, run_context())
        try:
            eventually(lambda: Heard.lines or done.done())
            assert (Heard.lines, done.done()) == (["one"], False)  # the last line is told when it is sure that it does not go on
        finally:
            (tmp_path / "go").touch()
        done.result()
    assert Heard.lines == ["one", "two", "three"]
    eventually(lambda: core.list_namespaced_pod(namespace).items == [])


def test_a_pod_that_fails_fails_its_task(kubelet: Kubelet, namespace: str) -> None:
    kubelet.add_node("node")
    with pytest.raises(AirflowException, match=r"(?s)returned a failure.*exit_code.{1,3}3"):
        operator(kubelet, namespace, "exit 3").execute(run_context())
