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


def tell_all(site: Site, megabytes: int) -> None:
    """Run a stage with so much log, and find every line told by a worker that has not grown by 50 MB."""
    num_lines = megabytes * 1_000_000 // LENGTH
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
    print(f"{megabytes} MB of log: the worker grew by {grown} MB")
    assert (told, last) == (num_lines, num_lines - 1)
    assert grown < 50
    eventually(lambda: site.pods() == [])


def test_no_line_is_lost_and_the_memory_does_not_grow_with_them(site: Site) -> None:
    tell_all(site, 100)
