"""TensorFlow's own lines: those of every start go, those about a machine in trouble stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_mlops.stages.noise import NO_DRIVER, readable
from airflow_mlops.stages.progress_page import ProgressLog

# As TensorFlow 2.21 wrote them on a machine with a GPU in trouble, or as its issues quote them.
REAL = (
    "E0000 00:00:1733000000.123456 77 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: UNKNOWN ERROR (999)",
    "E0000 00:00:1733000000.123456 77 cuda_executor.cc:1228] failed to allocate 79.1GiB: RESOURCE_EXHAUSTED: CUDA_ERROR_OUT_OF_MEMORY",
    "W0000 00:00:1733000000.123456 77 gpu_device.cc:2342] Cannot dlopen some GPU libraries.",
    "F0000 00:00:1733000000.123456 77 cuda_dnn.cc:107] Check failed",
    "2026-01-01 00:00:00.000000: W tensorflow/core/framework/op_kernel.cc:1857] OP_REQUIRES failed at matmul_op.cc:10 : INVALID_ARGUMENT",
    "epoch 1: loss 0.5",
    "I0 my own line",
    "",
)


@pytest.mark.parametrize("line", REAL)
def test_what_tells_of_trouble_or_is_a_person_s_own_stays(line: str) -> None:
    assert readable(line) == line


def test_a_stage_that_uses_tensorflow_on_a_machine_without_a_gpu_says_that_in_one_sentence() -> None:
    code = "import tensorflow as tf; tf.config.list_physical_devices('GPU'); tf.constant(1) + 1; print('own')"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "oneDNN" in said.stderr  # else this test shows nothing
    told: list[str] = []
    log = ProgressLog("t", None, told.append)
    for line in (said.stderr + said.stdout).splitlines():
        log.line(line)
    without_driver = [] if Path("/proc/driver/nvidia").exists() else [NO_DRIVER]
    assert told == [*without_driver, "own"]
