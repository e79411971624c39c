"""The log of a real pod, whose connection breaks again and again: every line once, in its order."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from urllib3.exceptions import ProtocolError

from airflow_mlops.hooks import kubernetes
from airflow_mlops.operators.pod import StagePodOperator
from tests.kubernetes.test_stage_pod import Site, followed, site

__all__ = ["site"]

NUM_LINES = 3000


@pytest.mark.parametrize("deferrable", [False, True])
def test_nothing_is_lost_or_doubled(site: Site, deferrable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    served, num_broken = kubernetes._log, 0

    def breaking(*arguments: Any, **named: Any) -> Iterator[bytes]:
        """Break every connection but those of a pod that ended, and some of those, in the middle of a line."""
        nonlocal num_broken
        for number, chunk in enumerate(served(*arguments, **named)):
            if number == 2 and num_broken < 20:
                num_broken += 1
                yield chunk[: len(chunk) // 2 + 1]
                raise ProtocolError("Connection broken")
            yield chunk

    monkeypatch.setattr(kubernetes, "_log", breaking)
    monkeypatch.setattr(kubernetes, "_LAST_READS", 50)
    monkeypatch.setattr(StagePodOperator, "log", logging.getLogger("pod"))
    operator = site.operator("tell_lines", text="0.1", number=NUM_LINES, deferrable=deferrable)
    operator.base_container_status_polling_interval = 0.05
    with caplog.at_level("INFO"):
        followed(operator)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("numbered")]
    assert told == [f"numbered {number}" for number in range(NUM_LINES)]
    assert num_broken > 1
