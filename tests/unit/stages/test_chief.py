"""Worker 0 among the pods of a distributed training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.results import to_data
from airflow_mlops.stages.chief import INDEX_ANNOTATION, ToldChief, chiefs
from airflow_mlops.stages.pod_log import Position
from airflow_mlops.stages.told import read_note, understood
from airflow_mlops.training.progress import Progress

TOLD = ToldChief({"t-0-abc": Position("2026-01-01T00:00:00Z", 2, "2026-01-01T00:00:00.5Z")}, (Progress(1, 3, 10, 0.5),))


def pod(name: str, index: str | None, made: str = "2026-01-01T00:00:00Z", **labels: str) -> dict[str, Any]:
    annotations = {} if index is None else {"annotations": {INDEX_ANNOTATION: index}}
    return {"metadata": {"name": name, "creationTimestamp": made, "labels": labels, **annotations}}


def test_all_pods_that_were_worker_0_are_chiefs_the_newest_last() -> None:
    second, first = pod("b", "0", "2026-01-01T00:01:00Z"), pod("c", "0")
    assert chiefs([second, pod("a", "1"), first, pod("d", "10"), pod("e", None)]) == [first, second]


def test_of_a_train_job_only_the_trainer_has_a_chief() -> None:
    label = "jobset.sigs.k8s.io/replicatedjob-name"
    trainer, before_it = pod("a", "0", **{label: "node"}), pod("b", "0", **{label: "dataset-initializer"})
    assert chiefs([before_it, trainer]) == [trainer]


def test_what_was_told_is_understood_by_another_process(tmp_path: Path) -> None:
    (tmp_path / "told.json").write_bytes(canonical_json(to_data(TOLD)))
    assert read_note(ToldChief, tmp_path / "told.json") == understood(ToldChief, json.loads((tmp_path / "told.json").read_bytes())) == TOLD


@pytest.mark.parametrize("text", ["", "{", "7", '{"positions": 7}', "[" * 100_000])
def test_what_cannot_be_understood_is_nothing(text: str, tmp_path: Path) -> None:
    assert read_note(ToldChief, tmp_path / "told.json") == ToldChief()
    (tmp_path / "told.json").write_text(text)
    assert read_note(ToldChief, tmp_path / "told.json") == ToldChief()
