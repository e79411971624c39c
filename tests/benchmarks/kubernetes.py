"""What a stage costs beside its program: as a pod beside the bare pod, as a process beside the shell, its checkpoints and its operator's import."""

from __future__ import annotations

import asyncio
import importlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.benchmarks.row import Row, seconds

ROOT = Path(__file__).parents[2]
POLL_SECONDS, POD_SECONDS, LOCAL_SECONDS, IMPORT_SECONDS = 1.0, 1.0, 1.3, 0.1  # what is promised; the operators ask every second
ROUNDS = 5
WIDTH = 4048  # eight layers as wide are 524 MB
IMPORTS = """
import time
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
bare = time.process_time()
import airflow_mlops.operators.pod
print(time.process_time(), bare)
"""


def rows() -> Iterator[Row]:
    """Yield the rows of stages as pods and as processes."""
    yield _import()
    with tempfile.TemporaryDirectory() as name:
        scripted = _settle(Path(name))
        yield _local(scripted)
        yield from _pods(scripted)
    yield _checkpoint()


def _import() -> Row:
    """Importing our operators against importing the one that they extend: CPU seconds of one process, for two differ by more than ours costs."""
    command = [sys.executable, "-c", IMPORTS]
    told = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1] for _ in range(ROUNDS)]
    ours, bare = (median(map(float, column)) for column in zip(*map(str.split, told), strict=True))
    return Row("import the pod operators (CPU)", ours, f"KubernetesPodOperator, {bare:.2f} s, and {IMPORT_SECONDS} s", bare + IMPORT_SECONDS, 1.0)


def _settle(home: Path) -> ModuleType:
    """Give Airflow a home below `home`, and every process of a stage the stage that the tests have; return that."""
    ledger = f'{{"conn_type": "mlops_ledger", "schema": "{home}/ledger.db", "extra": {{"driver": "sqlite"}}}}'
    here = ROOT / "tests" / "scripted"
    os.environ.update(
        {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "AIRFLOW__MLOPS__WORKSPACE": str(home / "workspace"),
            "AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT": ledger,
            "AIRFLOW_CONN_MLFLOW_DEFAULT": '{"conn_type": "mlflow", "host": "http://127.0.0.1:1"}',
            "PYTHONPATH": f"{here}{os.pathsep}{ROOT}",
        }
    )
    sys.path.insert(0, str(here))
    from airflow_mlops.stages import STAGES

    module = importlib.import_module("scripted_stage")
    STAGES["scripted"] = module  # type: ignore[assignment]
    return module


def _context(run: int) -> Any:
    from tests.fakes import FakeTaskInstance, context

    ti = FakeTaskInstance(task_id="t", run_id=f"run-{run}")
    return context(ti, run_id=ti.run_id, dag=SimpleNamespace(parent_dag=None), task_state_store=None)


def _command(home: Path, scripted: ModuleType) -> list[str]:
    """Return the words by which a stage is run, with its request in an empty directory."""
    from airflow_mlops.artifacts import canonical_json, write_atomically
    from airflow_mlops.stages.runner import spec_data

    write_atomically(home / "spec.json", canonical_json(spec_data(scripted.Spec("leave_file"))))
    return ["python", "-m", "airflow_mlops", "stage", "scripted", "--spec", str(home / "spec.json"), "--result", str(home / "result.json")]


def _pairs(ours: Callable[[int], object], bare: Callable[[int], object]) -> tuple[float, float]:
    """Return the median seconds of both, done in turn, after one of each that nobody counts."""
    ours(0)
    bare(0)
    timed = [(seconds(partial(ours, number)), seconds(partial(bare, number))) for number in range(1, ROUNDS + 1)]
    first, second = (median(column) for column in zip(*timed, strict=True))
    return first, second


def _local(scripted: ModuleType) -> Row:
    from airflow_mlops.operators.stage import RunStageOperator

    with tempfile.TemporaryDirectory() as name:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        line = shlex.join(_command(Path(name), scripted))

        def ours(run: int) -> object:
            return RunStageOperator(task_id="t", stage="scripted", spec=scripted.Spec("leave_file")).execute(_context(run))

        def bare(run: int) -> object:
            return subprocess.run(["sh", "-c", line], check=True, capture_output=True, env={**os.environ, "PATH": path})

        mine, shell = _pairs(ours, bare)
    return Row(
        "a stage as a process of the worker", mine, f"its command in a shell, {shell:.2f} s, and {LOCAL_SECONDS} s", shell + LOCAL_SECONDS, 1.0
    )


def _pods(scripted: ModuleType) -> Iterator[Row]:
    """A stage as a pod, waited for by its worker or by the triggerer, against the same container in a pod that only a client waits for."""
    from kubernetes import client

    from tests.kubernetes.control_plane import ControlPlane
    from tests.kubernetes.kubelet import Kubelet

    with ExitStack() as stack:
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
        cluster = stack.enter_context(ControlPlane())
        namespace = stack.enter_context(cluster.namespace())
        kubelet = stack.enter_context(Kubelet(cluster, env={"PYTHONPATH": os.environ["PYTHONPATH"]}))
        kubelet.add_node("node")
        core = client.CoreV1Api(stack.enter_context(cluster.client()))
        command = _command(Path(stack.enter_context(tempfile.TemporaryDirectory())), scripted)
        runs = count()
        for how in (False, True):

            def ours(_: int, deferrable: bool = how) -> object:
                return _followed(lambda: _operator(cluster, namespace, scripted, deferrable), _context(next(runs)))

            mine, bare = _pairs(ours, lambda number: _bare_pod(core, namespace, f"bare-{next(runs)}", command))
            what = f"a stage as a pod, {'deferred' if how else 'waited for'}"
            told = f"the bare pod, {bare:.2f} s, and {POD_SECONDS:.0f} s and a poll of {POLL_SECONDS:.0f} s"
            yield Row(what, mine, told, bare + POD_SECONDS + POLL_SECONDS, 1.0)


def _checkpoint() -> Row:
    """A checkpoint of 500 MB against writing and fsyncing as many bytes, in turn and each of them first as often: a disk is slower when it has just
    written much, and it is shared."""
    import keras

    from airflow_mlops.training.checkpoints import CheckpointManager

    layers = [keras.layers.Dense(WIDTH, use_bias=False) for _ in range(8)]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers])
    data = os.urandom(sum(variable.value.numpy().nbytes for variable in model.variables))
    timed: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(2 * ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            manager, path = CheckpointManager(Path(name) / "checkpoints", "bench"), Path(name) / "bare"
            tasks = {"ours": partial(manager.save, model, number), "bare": partial(_written, path, data)}
            for which in reversed(tasks) if number % 2 else tasks:
                timed[which].append(seconds(tasks[which]))
        os.sync()  # what a round wrote is gone and flushed before the next
    ours, bare = median(timed["ours"]), median(timed["bare"])
    return Row(f"a checkpoint of {len(data) / 1e6:.0f} MB", ours, "write and fsync of as many bytes", bare, 1.5)


def _written(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as stream:
        stream.write(data)
        os.fsync(stream.fileno())


def _operator(cluster: Any, namespace: str, scripted: ModuleType, deferrable: bool) -> Any:
    from airflow_mlops.operators.pod import StagePodOperator
    from airflow_mlops.stages.pod import PodSpec

    return StagePodOperator(
        task_id="t",
        stage="scripted",
        spec=scripted.Spec("leave_file"),
        pod_spec=PodSpec("stages", namespace, cpu="100m", memory="64Mi"),
        config_file=str(cluster.kubeconfig),
        kubernetes_conn_id=None,
        in_cluster=False,
        deferrable=deferrable,
        poll_interval=POLL_SECONDS,
        startup_check_interval_seconds=POLL_SECONDS,
    )


def _followed(make: Callable[[], Any], context: Any) -> object:
    """Run a task to its end, the part of the triggerer too."""
    from airflow.sdk.exceptions import TaskDeferred

    try:
        return make().execute(context)
    except TaskDeferred as deferred:
        trigger: Any = deferred.trigger

    async def event() -> Any:
        return (await anext(trigger.run())).payload

    return make().trigger_reentry(context, asyncio.run(event()))


def _bare_pod(core: Any, namespace: str, name: str, command: list[str]) -> None:
    """Run a command in a pod, see by the API's own watch that it is done, and delete it, as ``kubectl run --rm`` does."""
    from kubernetes import watch

    container = {"name": "main", "image": "stages", "command": command, "resources": {"requests": {"cpu": "100m"}}}
    core.create_namespaced_pod(namespace, {"metadata": {"name": name}, "spec": {"restartPolicy": "Never", "containers": [container]}})
    looking = watch.Watch()
    for seen in looking.stream(core.list_namespaced_pod, namespace, field_selector=f"metadata.name={name}", timeout_seconds=120):
        phase = seen["object"].status.phase
        if phase in ("Succeeded", "Failed"):
            looking.stop()
    assert phase == "Succeeded", f"the bare pod ended as {phase}"
    core.delete_namespaced_pod(name, namespace)
