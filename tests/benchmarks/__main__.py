"""``make bench``: what we cost beside the physical limit, as ratios within one run, because machines are shared and noisy."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Row(NamedTuple):
    what: str
    ours: float  # seconds
    limit_is: str
    limit: float  # seconds
    allowed: float | None = None


def cpu_of(code: str) -> float:
    """Return the CPU seconds of a fresh Python process that runs `code` in the DAG folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "dags", check=True, capture_output=True, env={**os.environ, **settings()})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def settings() -> dict[str, str]:
    home = tempfile.gettempdir()
    return {"AIRFLOW_HOME": f"{home}/airflow-mlops-bench", "AIRFLOW__MLOPS__INBOX": home, "AIRFLOW__MLOPS__WORKSPACE": home}


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def parse() -> Row:
    """A DAG file against the import that every DAG file needs."""
    pairs = [(cpu_of("import digits"), cpu_of("import airflow.sdk")) for _ in range(7)]
    ours, limit = (median(column) for column in zip(*pairs, strict=True))
    return Row("parse dags/digits.py (CPU)", ours, "import airflow.sdk", limit, 1.2)


def arrival() -> Row:
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
    return Row("look at an unchanged inbox of 200 versions", ours, "stat of its files", limit)


def publish() -> Row:
    """Publishing 200 MB to a base path against `cp` and `sha256sum`."""
    from airflow_mlops.artifacts import path_digest
    from airflow_mlops.serving.publish import publish_saved_model

    with tempfile.TemporaryDirectory() as name:
        source, base = Path(name) / "saved_model", Path(name) / "base"
        source.mkdir()
        (source / "saved_model.pb").write_bytes(b"pb")
        (source / "variables.data").write_bytes(os.urandom(200 << 20))
        digest = path_digest(source)[0]
        copy = Path(name) / "copy"

        def by_hand() -> None:
            subprocess.run(["cp", "-r", source, copy], check=True)
            subprocess.run(["sync", "-f", copy], check=True)
            subprocess.run(["sha256sum", copy / "variables.data", copy / "saved_model.pb"], check=True, capture_output=True)
            shutil.rmtree(copy)

        pairs = [(seconds(lambda n=number: publish_saved_model(source, base, n, digest)), seconds(by_hand)) for number in range(1, 4)]
        ours, limit = (median(column) for column in zip(*pairs, strict=True))
    return Row("publish a SavedModel of 200 MB", ours, "cp, sync, sha256sum", limit)


def robustness() -> Row:
    """A campaign, coverage and report included, against a plain batched forward pass of as many inputs."""
    import keras
    import numpy as np
    from sklearn.datasets import load_digits

    from airflow_mlops.robustness.campaign import CampaignConfig, run_campaign

    images, labels = (load_digits().images[..., None] / 16).astype("float32"), load_digits().target.astype("int64")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images[:1200], labels[:1200], epochs=8, verbose=0)
    config = CampaignConfig(max_mutants=50_000, sample_mutants=50_000)
    with tempfile.TemporaryDirectory() as name:
        campaign = lambda: run_campaign(model, images[1200:], labels[1200:], config=config, out_dir=Path(name))  # noqa: E731
        campaign()
        ours = median(seconds(campaign) for _ in range(3))
    plain = np.resize(images, (config.batch_size, 8, 8, 1))
    forward = lambda: [model.predict_on_batch(plain) for _ in range(100_000 // config.batch_size)]  # noqa: E731
    forward()
    return Row("campaign of 100,000 mutants", ours, "forward pass of as many", median(seconds(forward) for _ in range(3)))


def main() -> None:
    """Print one table."""
    print(f"{'what':<46}{'ours, s':>10}  {'limit':<26}{'limit, s':>10}{'ratio':>8}{'allowed':>9}")
    for bench in (parse, arrival, publish, robustness):
        row = bench()
        allowed = f"{row.allowed:.2f}" if row.allowed else "-"
        print(f"{row.what:<46}{row.ours:>10.3f}  {row.limit_is:<26}{row.limit:>10.3f}{row.ours / row.limit:>8.2f}{allowed:>9}", flush=True)


if __name__ == "__main__":
    main()
