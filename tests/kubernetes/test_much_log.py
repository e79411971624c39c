"""A stage that writes more than anybody reads: every line is told, and the worker's memory does not grow with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kubernetes.control_plane import eventually
from tests.kubernetes.test_stage_pod import Site, site

__all__ = ["site"]

LENGTH = 10_000  # bytes a line
MEGABYTES = int(os.environ.get("AIRFLOW_MLOPS_LOG_MEGABYTES", "100"))


def test_no_line_is_lost_and_the_memory_does_not_grow_with_them(site: Site) -> None:
    num_lines = MEGABYTES * 1_000_000 // LENGTH
    words = [site.namespace, str(site.kubelet.cluster.kubeconfig), str(num_lines), str(LENGTH)]
    worker = subprocess.run(
        [sys.executable, "-m", "tests.kubernetes.talking_worker", *words],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"grew (\d+) lines (\d+) last (\d+)", worker.stdout)
    if found is None:
        pytest.fail(worker.stdout[-5000:] + worker.stderr[-5000:])
    grown, told, last = map(int, found.groups())
    print(f"{MEGABYTES} MB of log: the worker grew by {grown} MB")
    assert (told, last) == (num_lines, num_lines - 1)
    assert grown < 50
    eventually(lambda: site.pods() == [])
