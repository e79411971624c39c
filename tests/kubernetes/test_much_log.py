"""A stage that writes more than anybody reads: every line is told, and the worker's memory does not grow with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kubernetes.control_plane import eventually
from tests.kubernetes.test_live_log import site
from tests.kubernetes.test_stage_pod import Site

__all__ = ["site"]

pytestmark = pytest.mark.kubernetes  # for the time that it takes
LENGTH = 10_000  # bytes a line


def tell_all(site: Site, megabytes: int, *, deferrable: bool = False) -> None:
    """Run a stage with so much log, and find every line told once by a worker, or a triggerer and a worker, that have not grown by 50 MB."""
    num_lines = megabytes * 1_000_000 // LENGTH
    words = [site.namespace, str(site.kubelet.cluster.kubeconfig), str(num_lines), str(LENGTH), str(deferrable)]
    worker = subprocess.run(
        [sys.executable, "-m", "tests.kubernetes.talking_worker", *words],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"grew (\d+) lines (\d+) last (\d+) live (\d+)", worker.stdout)
    if found is None:
        pytest.fail(worker.stdout[-5000:] + worker.stderr[-5000:])
    grown, told, last, live = map(int, found.groups())
    print(f"{megabytes} MB of log: the worker grew by {grown} MB")
    assert (told, last, live > 0) == (num_lines, num_lines - 1, deferrable)
    assert grown < 50
    eventually(lambda: site.pods() == [])


@pytest.mark.parametrize("deferrable", [False, True])
def test_no_line_is_lost_and_the_memory_does_not_grow_with_them(site: Site, deferrable: bool) -> None:
    tell_all(site, 60, deferrable=deferrable)
