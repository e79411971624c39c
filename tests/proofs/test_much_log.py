"""A stage in a pod that writes 1 GB of log: every line is told, and the worker's memory does not grow with them. ``-s`` shows by how much it did."""

from __future__ import annotations

from tests.kubernetes.conftest import api, cluster, control_plane, core, kubelet, namespace
from tests.kubernetes.test_much_log import tell_all
from tests.kubernetes.test_stage_pod import Site, site

__all__ = ["api", "cluster", "control_plane", "core", "kubelet", "namespace", "site"]


def test_a_gigabyte_of_log_is_told_line_by_line(site: Site) -> None:
    tell_all(site, 1000)
