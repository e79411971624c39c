"""``make bench``: what we cost beside the physical limit, as ratios within one run, because machines are shared and noisy.

``python -m tests.benchmarks --table FILE`` writes the table as Markdown too; names (``parse``, ``robustness`` ...) run only those.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from tests.benchmarks import kubernetes, ledger, robustness, serving
from tests.benchmarks.row import HEADER, Row, line, markdown, seconds

ROOT = Path(__file__).parents[2]


def cpu_of(code: str) -> float:
    """Return the CPU seconds of a fresh Python process that runs `code` in the DAG folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "dags", check=True, capture_output=True, env={**os.environ, **settings()})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def settings() -> dict[str, str]:
    home = tempfile.gettempdir()
    return {"AIRFLOW_HOME": f"{home}/airflow-mlops-bench", "AIRFLOW__MLOPS__INBOX": home, "AIRFLOW__MLOPS__WORKSPACE": home}


def parse() -> Iterator[Row]:
    """A DAG file against the import that every DAG file needs."""
    pairs = [(cpu_of("import digits"), cpu_of("import airflow.sdk")) for _ in range(7)]
    ours, limit = (median(column) for column in zip(*pairs, strict=True))
    yield Row("parse dags/digits.py (CPU)", ours, "import airflow.sdk", limit, allowed=1.2)


def arrival() -> Iterator[Row]:
    """A look at an unchanged inbox of 200 versions against listing and examining its files."""
    from airflow_mlops.data.arrival import DigestCache, scan
    from airflow_mlops.data.snapshot import publish_version

    with tempfile.TemporaryDirectory() as name:
        inbox = Path(name)
        for number in range(200):
            publish_version({"rows.csv": f"{number}\n".encode() * 10_000}, inbox, name=f"v{number}", dataset="bench")
        time.sleep(2.5)  # a file touched just now is always hashed
        digests = DigestCache()
        scan(inbox, digest_of=digests)
        ours = median(seconds(lambda: scan(inbox, digest_of=digests)) for _ in range(5))
        limit = median(seconds(lambda: [path.stat() for path in inbox.rglob("*")]) for _ in range(5))
    yield Row("look at an unchanged inbox of 200 versions", ours, "stat of its files", limit)


def publish() -> Iterator[Row]:
    """Publishing 500 MB to a base path, verified and flushed to disk, against `cp` and `sha256sum`, and against both with `sync`."""
    from airflow_mlops.artifacts import path_digest
    from airflow_mlops.serving.publish import publish_saved_model
    from tests.bare_saved_models import saved_model

    with tempfile.TemporaryDirectory() as name:
        source, base, copy = Path(name) / "saved_model", Path(name) / "base", Path(name) / "copy"
        saved_model(source, weights=os.urandom(500 << 20))
        digest = path_digest(source)[0]

        def publish_one(version: int) -> None:
            publish_saved_model(source, base, version, digest)

        def by_hand(*between: list[str]) -> None:
            for command in (["cp", "-r", str(source), str(copy)], *between, ["sha256sum", *map(str, files)]):
                subprocess.run(command, check=True, capture_output=True)

        files = [copy / path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        rounds: list[list[float]] = []
        for version in range(1, 6):  # in turn, because the disk is shared; what a round wrote is deleted and flushed before the next call
            rounds.append([])
            for call in (partial(publish_one, version), by_hand, partial(by_hand, ["sync", "-f", str(copy)])):
                rounds[-1].append(seconds(call))
                shutil.rmtree(copy, ignore_errors=True)
                shutil.rmtree(base, ignore_errors=True)
                os.sync()
        ours, limit, with_sync = (median(column) for column in zip(*rounds, strict=True))
    yield Row("publish a SavedModel of 500 MB", ours, "cp, sha256sum", limit, allowed=1.5)
    yield Row("publish a SavedModel of 500 MB", ours, "cp, sync, sha256sum", with_sync)


BENCHES: dict[str, Callable[[], Iterator[Row]]] = {
    "parse": parse,
    "arrival": arrival,
    "publish": publish,
    "serving": serving.rows,
    "ledger": ledger.rows,
    "robustness": robustness.rows,
    "kubernetes": kubernetes.rows,
}


def main() -> None:
    """Print one table, line by line as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", help=f"run only these of {', '.join(BENCHES)}")
    parser.add_argument("--table", type=Path, help="also write the table to this file, as Markdown")
    options = parser.parse_args()
    if unknown := set(options.only) - set(BENCHES):
        parser.error(f"there is no bench {', '.join(sorted(unknown))}; expected some of {', '.join(BENCHES)}")
    rows = []
    print(line(HEADER))
    for name in options.only or BENCHES:
        for row in BENCHES[name]():
            rows.append(row)
            print(line(row.cells()), flush=True)
    if missed := [row.what for row in rows if not row.held]:
        print(f"! missed: {'; '.join(missed)}")
    if options.table:
        options.table.write_text(markdown(rows))


if __name__ == "__main__":
    main()
