"""What imports cost and what they must not bring along, each measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"tensorflow", "keras", "mlflow", "great_expectations", "pandas", "kubernetes"}
CORE = ("exceptions", "artifacts", "results", "records", "gates", "ledger", "data", "training", "evaluation", "robustness", "registry", "serving")
SDK = "import airflow.sdk"
PARSE = f"import runpy, sys; sys.path.insert(0, {str(ROOT / 'dags')!r}); runpy.run_path({str(ROOT / 'dags' / 'digits.py')!r})"
RUNS = 3


def cpu_seconds(code: str) -> float:
    """Return user and system time of a fresh interpreter that runs `code`: unlike wall-clock time nearly the same on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def modules_after(code: str) -> set[str]:
    """Return all modules that a fresh interpreter has after `code`."""
    script = f"{code}\nimport sys, json\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_parsing_a_dag_file_costs_little_more_than_airflow_itself() -> None:
    """The DAG processor parses every file every half minute, in a new process."""
    pairs = [(cpu_seconds(SDK), cpu_seconds(PARSE)) for _ in range(RUNS)]
    sdk, parse = (min(column) for column in zip(*pairs, strict=True))
    assert parse <= 1.2 * sdk, f"parsing takes {parse:.2f} s of CPU time, airflow.sdk alone {sdk:.2f} s; see python -X importtime"


@pytest.mark.parametrize("name", ["digits.py", "digits_gpu.py"])
def test_parsing_a_dag_file_imports_nothing_heavy(name: str) -> None:
    """Not Kubernetes' client either, where no image says that there is a cluster."""
    assert HEAVY & modules_after(PARSE.replace("digits.py", name)) == set()


def test_the_plugin_brings_no_web_framework_into_every_airflow_process() -> None:
    """Workers, scheduler and triggerer load plugins too; only the API server shall pay for pages."""
    ours = modules_after(f"{SDK}\nimport airflow.plugins_manager\nimport airflow_mlops.ui")
    airflows = modules_after(f"{SDK}\nimport airflow.plugins_manager")
    web = {name for name in ours - airflows if name.split(".")[0] in {"fastapi", "starlette", "jinja2", *HEAVY}}
    assert web == set()
    assert "airflow_mlops.ui.app" not in ours


def test_the_core_runs_where_airflow_is_not_imported() -> None:
    paths = [path for name in CORE for path in sorted([*(ROOT / "airflow_mlops" / name).rglob("*.py"), *(ROOT / "airflow_mlops").glob(f"{name}.py")])]
    paths = [path for path in paths if path.parent.name not in ("migrations", "versions") or path.name == "__init__.py"]  # those Alembic runs
    light = [
        path
        for path in paths
        if "embedded" not in path.parts and path.stem not in ("trainer", "export", "features", "validation", "readers", "arrays")
    ]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in light]
    assert len(names) > 30
    found = modules_after("\n".join(f"import {name}" for name in names))
    assert {name for name in found if name.split(".")[0] == "airflow"} == set()


def test_a_stage_starts_without_airflow() -> None:
    found = modules_after("import airflow_mlops.cli, airflow_mlops.stages.runner, airflow_mlops.stages.process")
    assert {name for name in found if name.split(".")[0] in {"airflow", *HEAVY}} == set()
