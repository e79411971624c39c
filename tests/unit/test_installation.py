"""What is not installed is said before anything begins, in an environment in which it really is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from airflow_mlops.exceptions import SpecError
from airflow_mlops.installation import PROCESSES, missing, require

ROOT = Path(__file__).parents[2]
Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def without(tmp_path: Path) -> Python:
    """Run a Python that has everything but the distributions named."""
    installed = Path(sysconfig.get_paths()["purelib"])

    def run(names: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
        packages = Path(tempfile.mkdtemp(dir=tmp_path))
        for entry in installed.iterdir():
            if not entry.name.lower().startswith(names):
                (packages / entry.name).symlink_to(entry)
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}
        return subprocess.run([sys.executable, "-S", *arguments], env=environment, capture_output=True, text=True, check=False)

    return run


def test_everything_is_there_for_the_tests() -> None:
    assert missing("dev") == []
    require("worker", "triggerer", "webserver", "postgres")


def test_the_doctor_says_for_each_process_what_is_missing_and_how_to_install_it(without: Python) -> None:
    done = without(("cyclonedx", "great_expectations"), "-m", "airflow_mlops", "doctor")
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    assert "scheduler: ready" in said
    assert "triggerer: ready" in said
    assert "worker: cyclonedx-python-lib is not installed; great-expectations is not installed" in said
    assert "  pip install 'airflow-mlops[worker]'" in said
    assert "pod-worker: cyclonedx-python-lib is not installed" in said
    assert without((), "-m", "airflow_mlops", "doctor", "triggerer").returncode == 0


def test_a_version_that_is_too_old_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.0" if name == "mlflow" else found(name))
    with pytest.raises(SpecError, match=r"mlflow is 2\.0, expected >=3\.17.*pip install 'airflow-mlops\[pod-worker\]'") as caught:
        require("pod-worker")
    assert not caught.value.retryable


def test_an_extra_that_does_not_exist_suggests_one_that_does() -> None:
    with pytest.raises(SpecError, match=r"workre.*worker"):
        require("workre")


@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_has_extras_that_the_package_offers(process: str) -> None:
    offered = metadata.metadata("airflow-mlops").get_all("Provides-Extra") or []
    assert set(PROCESSES[process]) <= set(offered)


def test_the_worker_s_extra_holds_whatever_any_room_of_it_needs() -> None:
    requires = [Requirement(text) for text in metadata.requires("airflow-mlops") or []]

    def of(extra: str) -> set[str]:
        here = [one for one in requires if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})]
        inner = {name for one in here if one.name == "airflow-mlops" for nested in one.extras for name in of(nested)}
        return {one.name for one in here if one.name != "airflow-mlops"} | inner

    for room in ("validation", "registry", "training", "serving", "evidence"):
        assert of(room) <= of("worker")
    assert of("pod-worker") <= of("worker")


def test_a_run_ends_at_its_first_task_where_a_later_one_could_not_be_done(without: Python) -> None:
    code = f"""if True:
        from airflow.dag_processing.dagbag import DagBag
        from airflow.sdk.exceptions import AirflowFailException
        dags = DagBag({str(ROOT / "dags")!r}).dags
        for dag_id, task_id in [("digits_on_dataset", "claim"), ("digits_nightly", "claim"), ("digits_release", "select")]:
            try:
                dags[dag_id].get_task(task_id)._pre_execute_hook({{}})
            except AirflowFailException as error:
                print(error)
    """
    done = without(("cyclonedx",), "-c", code)
    assert done.stdout.count("cyclonedx-python-lib is not installed. Run: pip install 'airflow-mlops[") == 3, done.stdout + done.stderr
    assert "is not installed" not in without((), "-c", code).stdout
