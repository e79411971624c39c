"""``airflow-mlops exchange clean``: an exchange keeps what pods were asked and answered until somebody says how long that is wanted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DAY = 24 * 60 * 60.0


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    exchange = commands.add_parser("exchange", help="what is done to the object storage between workers and pods now and then")
    clean = exchange.add_subparsers(required=True, metavar="COMMAND").add_parser("clean", help="delete what is old and what nothing refers to")
    clean.add_argument("--url", required=True, help="URL of the exchange, for instance s3://bucket/exchange")
    clean.add_argument(
        "--older-than", type=float, required=True, metavar="DAYS", help="age in days, 2 or more and longer than any task with its retries"
    )
    clean.add_argument("--options", type=Path, help="JSON file with fsspec's options for it (default: what the environment says)")
    clean.set_defaults(run=_clean)


def _clean(options: argparse.Namespace) -> int:
    from airflow_mlops.stages.remote import open_exchange

    exchange = open_exchange(options.url, options.options)
    num_deleted = 0
    while num := exchange.clean(options.older_than * _DAY):  # a part at a time, so that nothing grows with the exchange
        num_deleted += num
    print(f"{num_deleted} files deleted from {options.url}, all of them older than {options.older_than:g} days.")
    return 0
