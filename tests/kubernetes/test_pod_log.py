"""The log of a pod whose connection breaks again and again: every line once, in its order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from urllib3.exceptions import ProtocolError

from airflow_mlops.hooks import kubernetes
from airflow_mlops.hooks.container_log import ContainerLog
from tests.kubernetes.test_live_log import Heard, heard, site
from tests.kubernetes.test_stage_pod import Site, followed

__all__ = ["heard", "site"]

NUM_LINES = 3000


@pytest.mark.parametrize("deferrable", [False, True])
def test_nothing_is_lost_or_doubled(site: Site, deferrable: bool, monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    whole, num_broken = ContainerLog._chunks, 0

    def breaking(log: ContainerLog, *, follow: bool) -> Iterator[bytes]:
        """Break every connection but those of a pod that ended, and some of those, in the middle of a line."""
        nonlocal num_broken
        for number, chunk in enumerate(whole(log, follow=follow)):
            if number == 2 and num_broken < 20:
                num_broken += 1
                yield chunk[: len(chunk) // 2 + 1]
                raise ProtocolError("Connection broken")
            yield chunk

    monkeypatch.setattr(ContainerLog, "_chunks", breaking)
    monkeypatch.setattr(kubernetes, "_LAST_READS", 50)
    operator = site.operator("tell_lines", text="0.1", number=NUM_LINES, deferrable=deferrable)
    operator.base_container_status_polling_interval = 0.05
    followed(operator)
    assert heard.told("numbered") == [f"numbered {number}" for number in range(NUM_LINES)]
    assert num_broken > 1 and bool(heard.told("numbered", "triggerer")) == deferrable
