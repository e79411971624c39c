"""A process of its own that runs one stage in a pod, and says by how much its memory grew and what it told: a process, because memory is.

It is the worker; where the task is deferred it is the triggerer, too, and then says how much of that was told there.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import scripted_stage

from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.stages import STAGES
from airflow_mlops.stages.pod import PodSpec
from airflow_mlops.triggers.pod import StagePodTrigger
from tests.kubernetes.test_stage_pod import followed


class Counting(logging.Handler):
    """Counts the lines of a stage, and remembers the last number."""

    def __init__(self) -> None:
        super().__init__()
        self.num_lines, self.last, self.num_live = 0, "", 0

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if words.startswith("numbered "):
            self.num_lines += 1
            self.num_live += record.name == "triggerer"
            self.last = words.split()[1]


def peak() -> int:
    """Return the most memory, in KiB, that this process had since its peak was reset; getrusage's is never less than what started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def main(namespace: str, kubeconfig: str, num_lines: int, length: int, *, deferrable: bool) -> None:
    """Run the stage and print the growth in MB, the number of lines, the last one's, and how many the trigger told."""
    STAGES["scripted"] = scripted_stage  # type: ignore[assignment]
    counting = Counting()
    for kind, name in ((StagePodOperator, "worker"), (StagePodTrigger, "triggerer")):
        log = logging.Logger(name, logging.INFO)
        log.addHandler(counting)
        kind.log = log
    operator = StagePodOperator(
        task_id="t",
        stage="scripted",
        spec=scripted_stage.Spec("tell_much", str(length), num_lines),
        pod_spec=PodSpec("stages", namespace, cpu="100m", memory="64Mi"),
        config_file=kubeconfig,
        kubernetes_conn_id=None,
        in_cluster=False,
        poll_interval=0.2,
        startup_check_interval_seconds=1,
        deferrable=deferrable,
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now, and not that of the imports
    before = peak()
    followed(operator)
    grown = (peak() - before) / 1024
    print(f"\ngrew {grown:.0f} lines {counting.num_lines} last {counting.last} live {counting.num_live}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), deferrable=sys.argv[5] == "True")
