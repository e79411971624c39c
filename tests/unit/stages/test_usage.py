"""Measuring a process: CPU that it burns, memory that it takes, children that it waits for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from airflow_mlops.records import read_record
from airflow_mlops.stages.runner import run_stage, spec_digest

BURNING = """
import dataclasses, json, subprocess, sys, time
from airflow_mlops.stages.usage import measure
until = time.process_time() + 0.5
while time.process_time() < until: pass
held = bytearray(200 * 2**20)
held[::4096] = b"x" * len(held[::4096])
child = "import time\\nuntil = time.process_time() + 0.5\\nwhile time.process_time() < until: pass"
subprocess.run([sys.executable, "-c", child], check=True)
print(json.dumps(dataclasses.asdict(measure(seconds_before=7.5))))
"""


def test_a_process_is_measured_with_its_memory_and_its_children() -> None:
    done = subprocess.run([sys.executable, "-c", BURNING], capture_output=True, text=True, check=True)
    used = json.loads(done.stdout)
    assert used["cpu_seconds"] >= 1.0
    assert used["wall_seconds"] >= 1.0
    assert 200 * 2**20 < used["peak_memory_bytes"] < 500 * 2**20
    assert (used["num_gpus"], used["gpu_seconds"], used["earlier_gpu_seconds"]) == (0, 0.0, 0.0)


def test_every_record_says_what_the_stage_used_and_in_which_image_it_ran(scripted: ModuleType, tmp_path: Path) -> None:
    for action in ("leave_file", "raise_something"):
        spec, result = tmp_path / "spec.json", tmp_path / action / "result.json"
        spec.write_text(json.dumps({"action": action}))
        run_stage("scripted", spec, result, image="stage@sha256:1")
        record = read_record(result, stage="scripted", spec_digest=spec_digest(scripted.Spec(action)))
        assert record.usage is not None and record.usage.cpu_seconds > 0
        assert record.image == "stage@sha256:1"


def test_a_record_of_an_older_release_is_read_without_usage(scripted: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"action": "leave_file"}))
    run_stage("scripted", tmp_path / "spec.json", tmp_path / "result.json")
    old = json.loads((tmp_path / "result.json").read_bytes())
    del old["usage"], old["image"]
    (tmp_path / "result.json").write_text(json.dumps(old))
    assert read_record(tmp_path / "result.json", stage="scripted", spec_digest=spec_digest(scripted.Spec("leave_file"))).usage is None
