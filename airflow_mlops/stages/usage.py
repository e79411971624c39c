"""Measure what the process of a stage has used; only Linux tells all of it."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

from airflow_mlops.usage import Usage

_START_FIELD = 19  # of /proc/PID/stat after the command's name; proc(5) calls it the 22nd


def measure(seconds_before: float = 0.0) -> Usage:
    """Return what this process has used since it started, with the processes that it started and waited for.

    GPUs are those that TensorFlow sees; a process that did not import it holds none.

    :param seconds_before: for how long the attempts before this one had worked, on as many GPUs, when they left what this one went on from.
    """
    wall = _wall_seconds()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    peak = max(_own_peak(), used[1].ru_maxrss * 1024)  # Linux counts in KiB
    num_gpus, gpu_bytes = _gpus()
    return Usage(round(wall, 3), round(cpu, 3), peak, num_gpus, round(wall * num_gpus, 3), gpu_bytes, round(seconds_before * num_gpus, 3))


def _own_peak() -> int:
    """Return the most memory in bytes that this process has held; getrusage's figure begins with that of the process it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024


def _wall_seconds() -> float:
    """Return how long this process runs, its imports too: from its first moment on nobody else can use what it holds."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[_START_FIELD]) / os.sysconf("SC_CLK_TCK")


def _gpus() -> tuple[int, int]:
    """Return how many GPUs TensorFlow sees and how many bytes of them it has had at most."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return 0, 0
    config = tensorflow.config
    gpus = config.list_logical_devices("GPU") if config.list_physical_devices("GPU") else []
    return len(gpus), sum(int(config.experimental.get_memory_info(gpu.name.removeprefix("/device:"))["peak"]) for gpu in gpus)
