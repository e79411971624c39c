"""What README promises on a fresh machine: clone, `make demo`, look, `make demo` again, `make stop`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_mlops.local.deployment import end_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("clone") / "airflow_mlops"
    subprocess.run(["git", "clone", "--quiet", ROOT, target], check=True)
    return target


def make(clone: Path, *arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "VIRTUAL_ENV", "MLFLOW"))}
    run = subprocess.run(["make", *arguments], cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return run.stdout


def test_the_demo_serves_two_models_refuses_broken_data_and_can_be_repeated(clone: Path) -> None:
    try:
        first = make(clone, "demo")
        print(first)
        (seconds,) = re.findall(r"served (\d+) s after the dataset arrived", first)
        assert int(seconds) <= 240
        assert first.count("is the champion") >= 2 and "DatasetRejected: digits v3" in first
        again = make(clone, "demo")
        assert "Dataset version v4 arrives" in again and "DatasetRejected: digits v6" in again
        assert "Nothing of" in make(clone, "stop")
    finally:
        assert end_processes(clone / ".demo") == []


def test_a_worker_that_only_starts_pods_needs_neither_tensorflow_nor_great_expectations(clone: Path, tmp_path: Path) -> None:
    uv, python = Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin" / "python"
    pins = tmp_path / "pins.txt"
    pins.write_text(re.sub(r" *\\?\n +--hash=\S+", "", (ROOT / "requirements.lock").read_text()))
    subprocess.run([uv, "venv", "--quiet", tmp_path / "venv", "--python", sys.executable], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "--constraint", pins, clone], check=True)
    installed = subprocess.run([uv, "pip", "list", "--python", python], check=True, capture_output=True, text=True).stdout
    assert not re.search(r"^(tensorflow|great-expectations|mlflow|keras) ", installed, re.MULTILINE)
    settings = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__MLOPS__INBOX": str(tmp_path), "AIRFLOW__MLOPS__WORKSPACE": str(tmp_path)}
    code = "import digits, airflow_mlops.operators.stage, airflow_mlops.sensors.dataset, airflow_mlops.ui"
    subprocess.run([python, "-c", code], cwd=clone / "dags", env={**os.environ, **settings}, check=True)
