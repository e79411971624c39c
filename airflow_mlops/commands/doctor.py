"""``airflow-mlops doctor``: is everything installed that a process of the deployment needs?"""

from __future__ import annotations

import argparse
from typing import Any

from airflow_mlops.installation import PROCESSES, advice, missing


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    doctor = commands.add_parser("doctor", help="say for each process of an Airflow deployment what this environment lacks for it")
    doctor.add_argument("process", nargs="*", choices=[*PROCESSES, []], metavar="PROCESS", help=f"{', '.join(PROCESSES)} (default: all of them)")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    failed = False
    for process in options.process or PROCESSES:
        problems = missing(*PROCESSES[process])
        failed |= bool(problems)
        print(f"{process}: {'ready' if not problems else '; '.join(problems)}")
        if problems:
            print(f"  pip install '{advice(*PROCESSES[process])}'")
    return int(failed)
