"""Loading one model version in its process, at low priority, up to and including its own warm-up requests."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import grpc

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.serving import manifest, warmup
from airflow_mlops.serving.directory_store import DirectoryStore
from airflow_mlops.serving.embedded.engine import Servable
from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.orders import Order
from airflow_mlops.serving.embedded.refusal import CODES, Refusal
from airflow_mlops.serving.embedded.requests import Model
from airflow_mlops.serving.embedded.runner import METHODS
from airflow_mlops.serving.embedded.tensorflow_c import TensorFlowError, load_library, start_threads

_LOGGED = {
    "predict_log": Kind.PREDICT,
    "classify_log": Kind.CLASSIFY,
    "regress_log": Kind.REGRESS,
    "multi_inference_log": Kind.MULTI_INFERENCE,
}


def step_back(thread: int = 0) -> None:
    """Let a thread of this process (0: this one), and those it starts, run only when no core has better to do: nobody waits for it."""
    with contextlib.suppress(OSError):  # the thread is gone, or a sandbox does not know this policy
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def load(order: Order) -> Model:
    """Return the model, ready to answer; raise `Refusal` with TensorFlow's code and words if it cannot be loaded or warmed up.

    TensorFlow's threads are started first and keep their priority, for they will serve; what loads beside them must not slow others down.
    """
    result: list[Model | Exception] = []

    def slowly() -> None:
        step_back()
        try:
            _check_published(Path(order.path), order.version)
            model = Model(order.name, order.version, Servable(Path(order.path), order.tags, order.config), order.as_content)
            if order.warm_up:
                _warm_up(model, Path(order.path) / warmup.WARM_UP)
            result.append(model)
        except Exception as error:
            result.append(error)

    try:
        for library in order.libraries:
            load_library(library)
        start_threads(order.config)
        thread = threading.Thread(target=slowly, name="load")
        thread.start()
        thread.join()
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]
    except Refusal:
        raise
    except TensorFlowError as error:
        raise Refusal(CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message or "TensorFlow gave no reason") from error
    except Exception as error:  # whatever a SavedModel can do to its loader is that version's end, and nobody else's
        words = str(error) if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
        raise Refusal(grpc.StatusCode.UNKNOWN, words) from error


def _check_published(path: Path, version: int) -> None:
    """Raise `Refusal` if a version that was published is no longer what its manifest says; of any other nothing is known."""
    store = DirectoryStore(path.parent)
    found = manifest.read(store, version) if path.name == str(version) else None
    if found is not None and not store.intact(version, found.files):
        words = f"{path} is no longer what was published, {found.digest}: its files differ from its manifest. Publish under a new version number"
        raise Refusal(grpc.StatusCode.DATA_LOSS, words)


def _warm_up(model: Model, path: Path) -> None:
    """Answer the version's own warm-up requests; one that fails raises `Refusal`, and the version is not served."""
    for number, record in enumerate(warmup.read(path) if path.exists() else ()):
        kind = record.WhichOneof("log_type")
        if kind not in _LOGGED:
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Warm-up request {number} is a {kind}; expected one of {', '.join(_LOGGED)}")
        try:
            prepared = METHODS[_LOGGED[kind]](model, getattr(record, kind).request.SerializeToString())
            prepared.answer([model.servable.run(*run) for run in prepared.runs])
        except Refusal as error:
            raise Refusal(error.code, f"Warm-up request {number} failed: {error}") from error
