"""The operator that runs a stage: its process is real, only Airflow around it is not."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import DatasetNotFound, RegistryUnavailable, StageKilled, StageStopped
from airflow_mlops.ledger.store import Store
from airflow_mlops.local.digits import publish_digits
from airflow_mlops.operators.stage import RunStageOperator
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import from_data, to_data
from airflow_mlops.stages import train
from tests import fakes
from tests.fakes import FakeTaskInstance, context

LAYOUT = ArrayLayout((8, 8, 1), 10, scale=1 / 16)
USER_CODE = """
import os, signal
def exits(context):
    os._exit(0)
def kills_itself(context):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def mlflow(connect: Callable[..., None]) -> None:
    connect("mlflow_default", "mlflow", host="http://127.0.0.1:9", password="s3cret-token")


@pytest.fixture
def operator(scripted: ModuleType, workspace: Path, mlflow: None, ledger: Store) -> Callable[..., RunStageOperator]:
    """Make an operator for an action of the scripted stage."""

    def make(action: str, **fields: Any) -> RunStageOperator:
        return RunStageOperator(task_id="t", stage="scripted", spec=scripted.Spec(action, **fields))

    return make


def test_the_constructor_only_assigns(scripted: ModuleType) -> None:
    spec = scripted.Spec("{{ params.action }}")
    operator = RunStageOperator(task_id="t", stage="scripted", spec=spec, mlflow_conn_id="other")
    assert (operator.stage, operator.spec, operator.mlflow_conn_id) == ("scripted", spec, "other")


def test_every_field_of_a_typed_spec_is_a_template() -> None:
    spec = train.Spec(
        "{{ ti.xcom_pull('validate') }}",  # type: ignore[arg-type]
        LAYOUT,
        "m:train",
        "/dags",
        "{{ params.model }}",
        "{{ conn.mlflow_default.host }}",
        {"epochs": "{{ params.epochs }}"},
        seed="{{ params.seed }}",  # type: ignore[arg-type]
    )
    operator = RunStageOperator(task_id="t", stage="train", spec=spec)
    params = {"model": "digits", "epochs": 3, "seed": 7}
    connections = {"mlflow_default": {"host": "http://mlflow:5000"}}
    operator.render_template_fields({"params": params, "conn": connections, "ti": _Pulling()})
    assert isinstance(operator.spec, train.Spec)
    assert operator.spec.layout == LAYOUT
    assert (operator.spec.model_name, operator.spec.seed, operator.spec.params) == ("digits", "7", {"epochs": "3"})
    assert (operator.spec.validation, operator.spec.tracking_uri) == ("reference", "http://mlflow:5000")


class _Pulling:
    def xcom_pull(self, task_id: str) -> str:
        return {"validate": "reference"}[task_id]


def test_what_it_returns_is_a_reference_that_can_be_loaded_and_fits_json(
    operator: Callable[..., RunStageOperator], scripted: ModuleType, workspace: Path
) -> None:
    answer = operator("leave_file").execute(context(FakeTaskInstance(try_number=3)))
    assert json.loads(json.dumps(answer)) == answer
    ref = from_data(ResultRef, answer)
    assert load(ref, scripted.Result).file.path.read_text() == "weights"
    assert Path(ref.uri).is_relative_to(workspace)
    assert "try-3" in ref.uri


def test_progress_is_a_page_that_the_task_links_to(operator: Callable[..., RunStageOperator], workspace: Path) -> None:
    running = context()
    operator("tell_progress").execute(running)
    (page,) = workspace.rglob("progress.html")
    assert running["ti"].pushed["report_url"].endswith("/train/try-1/progress.html")
    assert "From 0.3333 to 1." in page.read_text()


def test_the_log_says_what_the_stage_used_and_cost(
    operator: Callable[..., RunStageOperator], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__MLOPS__PRICE_MEMORY_GIB_HOUR", "3600")
    monkeypatch.setenv("AIRFLOW__MLOPS__CURRENCY", "EUR")
    monkeypatch.setattr(RunStageOperator, "log", logging.getLogger("stage"))
    with caplog.at_level("INFO"):
        operator("leave_file").execute(context())
    assert re.search(r"Stage scripted took \d+\.\d s, \d+\.\d CPU seconds, 0\.\d\d GiB of memory, \d+\.\d{4} EUR", caplog.text)


@pytest.mark.parametrize(
    ("action", "error_class", "message"), [("fail_for_now", DatasetNotFound, "not there yet"), ("kill_itself", StageKilled, "SIGKILL")]
)
def test_an_error_worth_a_retry_passes_as_it_is(
    operator: Callable[..., RunStageOperator], action: str, error_class: type[Exception], message: str
) -> None:
    with pytest.raises(error_class, match=message):
        operator(action).execute(context())


@pytest.mark.parametrize(
    ("action", "message"),
    [("raise_something", "StageError: KeyError"), ("spoil_file", "ResultInvalid: .*changed after it was recorded"), ("answer_nan", "ResultInvalid")],
)
def test_an_error_that_no_retry_mends_fails_the_task_at_once(operator: Callable[..., RunStageOperator], action: str, message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        operator(action).execute(context())


@pytest.mark.parametrize(
    ("spec", "message"),
    [({"acton": "talk"}, "acton"), ({"action": "talk", "number": "many"}, "number"), ("text", "top")],
    ids=["name", "type", "text"],
)
def test_a_spec_that_does_not_fit_fails_before_anything_is_started(
    operator: Callable[..., RunStageOperator], workspace: Path, spec: Any, message: str
) -> None:
    with pytest.raises(AirflowFailException, match=f"SpecError: .*{message}"):
        RunStageOperator(task_id="t", stage="scripted", spec=spec).execute(context())
    assert not workspace.exists()


def test_an_unknown_stage_is_refused(operator: Callable[..., RunStageOperator]) -> None:
    with pytest.raises(AirflowFailException, match="Did you mean 'train'"):
        RunStageOperator(task_id="t", stage="trian", spec={}).execute(context())


def test_the_stage_sees_mlflows_token_and_nothing_of_airflow(operator: Callable[..., RunStageOperator], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_AIRFLOW__SECRET", "x")
    monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "x")
    ref = operator("show_environment").execute(context())
    seen = json.loads(Path(ref["uri"]).with_name("environment.json").read_bytes())
    assert [name for name in seen if "AIRFLOW" in name] == []
    assert seen["MLFLOW_TRACKING_TOKEN"] == "s3cret-token"
    assert seen["PATH"]
    assert "s3cret-token" not in Path(ref["uri"]).with_name("spec.json").read_text()


def test_killing_the_task_kills_the_stage(operator: Callable[..., RunStageOperator], workspace: Path) -> None:
    running = operator("start_child_and_wait")
    running.on_kill()  # before it started there is nothing to kill
    ended: list[BaseException] = []

    def execute() -> None:
        try:
            running.execute(context())
        except StageStopped as error:
            ended.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    while not list(workspace.rglob("pids.json")):
        thread.join(0.02)
        assert thread.is_alive()
    running.on_kill()
    thread.join(5)
    assert len(ended) == 1


@pytest.fixture(scope="module")
def bad_trainings(tmp_path_factory: pytest.TempPathFactory, database: Path) -> tuple[Path, dict[str, BaseException]]:
    """The MLflow database, and how the real train stage ended with every train function that breaks its process, at the same time."""
    home = tmp_path_factory.mktemp("training")
    (home / "code").mkdir()
    (home / "code" / "bad_code.py").write_text(USER_CODE)
    version = publish_digits(home / "inbox", "v1", num_rows=100, seed=1)
    validation = fakes.leave_record(home, "validate", fakes.validation(home, dataset=version))

    def run(function: str) -> BaseException:
        spec = train.Spec(validation, LAYOUT, f"bad_code:{function}", str(home / "code"), "digits", f"sqlite:///{database}", {})
        ti = FakeTaskInstance(task_id=function)
        try:
            RunStageOperator(task_id=function, stage="train", spec=spec).execute(context(ti, task=before))
        except Exception as error:
            return error
        raise AssertionError(f"{function} ended well")

    store = Store(f"sqlite:///{home}/ledger.db")
    before = fakes.handed_over(store, to_data(validation))
    store.close()
    functions = ("exits", "kills_itself")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(functions)) as pool:
        patch.setenv("AIRFLOW__MLOPS__WORKSPACE", str(home / "workspace"))
        patch.setenv("AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT", json.dumps({"conn_type": "mlops_ledger", "schema": f"{home}/ledger.db"}))
        patch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": "http://127.0.0.1:9"}))
        return database, dict(zip(functions, pool.map(run, functions), strict=True))


def test_a_train_function_that_leaves_the_process_is_no_success_though_the_exit_code_is_0(
    bad_trainings: tuple[Path, dict[str, BaseException]],
) -> None:
    error = bad_trainings[1]["exits"]
    assert type(error) is StageKilled, StageStopped
    assert "ended with exit code 0 and left no result record" in str(error)


def test_a_train_function_whose_process_is_killed_may_be_retried(bad_trainings: tuple[Path, dict[str, BaseException]]) -> None:
    error = bad_trainings[1]["kills_itself"]
    assert type(error) is StageKilled, StageStopped
    assert error.retryable
    assert "give it less data at a time, or more memory" in str(error)


def test_no_bad_training_registers_anything(bad_trainings: tuple[Path, dict[str, BaseException]]) -> None:
    with sqlite3.connect(bad_trainings[0]) as connection:
        assert connection.execute("SELECT count(*) FROM model_versions").fetchone() == (0,)


def test_errors_of_the_registry_are_worth_a_retry() -> None:
    from airflow_mlops.hooks.errors import airflow_errors

    with pytest.raises(RegistryUnavailable), airflow_errors():
        raise RegistryUnavailable("no answer")
