"""What memory a deployment takes: ``python -m tests.memory .demo`` while ``make demo`` runs, until it is interrupted.

Each line is the sum of the proportional set sizes of all its processes (PSS: what several share counts once; Linux's proc_pid_smaps(5)), in MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import time
from pathlib import Path

from airflow_mlops.local.deployment import processes


def pss(pid: int) -> int:
    """Return the proportional set size of a process in KiB, 0 if it has ended."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^Pss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE):
            return int(found[1])
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=lambda text: Path(text).absolute())
    home, peak = parser.parse_args().home, 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            now = sum(map(pss, processes(home))) // 1024
            peak = max(peak, now)
            print(f"\r{now:,} MiB, at most {peak:,} MiB ", end="", flush=True)
            time.sleep(1.0)
    print()
