"""A real stage in a root directory that holds what the image holds and nothing of this machine, as the user of the image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.local.digits import publish_digits
from airflow_mlops.results import to_data
from tests.check_lock import ROOT
from tests.kubernetes.stage_image import UID, fill
from tests.kubernetes.stage_root import stage_root

# What a stage imports only when it has such work to do: formats, object stores, the server's messages.
RARE = """
import keras, mlflow, onnxruntime, pyarrow.parquet, s3fs, safetensors.numpy, scipy.stats, tensorflow, tf2onnx
from airflow_mlops.serving import protos, warmup
"""
MOUNTED = ("dev", "proc")  # as in every container
ENTER = """for each in dev proc; do mkdir "$0/$each" && mount --bind "/$each" "$0/$each" || exit; done
exec chroot --userspec="$1" "$0" /opt/mlops/bin/python "${@:2}"
"""

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter another root directory"), pytest.mark.timeout(900)]


@pytest.fixture
def root() -> Iterator[Path]:
    """The root of a container; it lies beside the packages, which it has as hard links."""
    with stage_root() as environment, tempfile.TemporaryDirectory(dir=environment.parent) as name:
        fill(Path(name) / "root", environment)
        yield Path(name) / "root"


def run(root: Path, *arguments: str) -> str:
    """Run the image's Python in a mount namespace of its own."""
    command = ["unshare", "--mount", "bash", "-c", ENTER, root, f"{UID}:{UID}", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/bin", "LANG": "C.UTF-8"})
    for each in MOUNTED:
        (root / each).rmdir()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_real_stage_leaves_its_record_and_everything_rare_can_be_imported(root: Path) -> None:
    shared = root / "srv"
    version = publish_digits(shared / "inbox", "v1", num_rows=200, seed=1)
    shutil.copy(ROOT / "dags" / "digits_suite.json", shared)
    (shared / "out").mkdir(mode=0o777)
    (shared / "out").chmod(0o777)
    data = json.loads(json.dumps(to_data(version)).replace(str(shared), "/srv"))
    (shared / "spec.json").write_bytes(canonical_json({"dataset": data, "suite": "/srv/digits_suite.json"}))
    run(root, "-m", "airflow_mlops", "stage", "validate", "--spec", "/srv/spec.json", "--result", "/srv/out/result.json")
    record = shared / "out" / "result.json"
    assert json.loads(record.read_bytes())["result"]["num_rows"] == 200 and record.stat().st_uid == UID
    run(root, "-c", RARE)
