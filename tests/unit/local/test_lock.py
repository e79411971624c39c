"""Two processes that start one deployment: the second says what runs and where."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.local import demo, supervisor
from airflow_mlops.local.deployment import LocalDeployment
from airflow_mlops.local.lock import only_one
from airflow_mlops.local.services import Settings

HOLD = """
import sys
from pathlib import Path
from airflow_mlops.local.lock import only_one
with only_one(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(home: Path, what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(home), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_by_one_and_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    with hold(tmp_path / "home", "demo") as holder:
        with pytest.raises(MlopsError, match=rf"Process {holder.pid} does the demo of {tmp_path}/home"), only_one(tmp_path / "home", "demo"):
            pass
        with only_one(tmp_path / "home", "start"):
            holder.kill()
    for _ in range(2):
        with only_one(tmp_path / "home", "demo"):
            pass
    assert stat.S_IMODE((tmp_path / "home" / "demo.lock").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_second_demo_says_which_process_runs_the_first_and_where_its_pages_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "Demo", None)  # would be called
    settings = Settings.of(tmp_path).store(tmp_path)
    with hold(tmp_path, "demo") as holder:
        with pytest.raises(MlopsError, match=rf"Process {holder.pid} does the demo .*{settings.url('airflow')}.*make stop"):
            demo.run_demo(tmp_path)
        holder.kill()


def test_a_deployment_that_another_process_starts_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDeployment, "_prepare", None)
    with hold(tmp_path, "start") as holder:
        with pytest.raises(MlopsError, match=rf"Process {holder.pid} does the start of"):
            LocalDeployment(tmp_path, tmp_path / "dags").start(print)
        holder.kill()
    assert not (tmp_path / "settings.json").exists()


def test_there_is_one_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "services.json").write_text("{}")
    monkeypatch.setattr(supervisor, "_supervise", None)
    with hold(tmp_path, "supervisor") as holder:
        with pytest.raises(MlopsError, match=rf"Process {holder.pid} does the supervisor of"):
            supervisor.supervise(tmp_path)
        holder.kill()


def test_who_starts_later_takes_the_settings_that_the_first_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_prepare", "_supervise", "_wait_until_healthy"):
        monkeypatch.setattr(LocalDeployment, name, lambda *_: None)
    first, second = (LocalDeployment(tmp_path, tmp_path / "dags") for _ in range(2))
    assert first.settings.password != second.settings.password
    for deployment in (first, second):
        deployment.start(print)
    assert first.settings.password == second.settings.password
