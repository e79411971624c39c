from __future__ import annotations

from collections.abc import Callable

import psutil

from tests.conformance.serving_fuzz import every_check
from tests.conformance.serving_target import Target

NUM_EXAMPLES = {"grpc_messages": 40}  # for each of the seven methods
OTHERS = 300


@every_check
def test_whatever_is_sent_the_server_answers_with_a_reason_in_time_and_goes_on(
    check: Callable[[Target, int], None], fuzzed: Target, fuzzed_processes: set[psutil.Process]
) -> None:
    check(fuzzed, NUM_EXAMPLES.get(check.__name__, OTHERS))
    assert all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in fuzzed_processes)
