"""The user's code of a training: where it comes from, and the features it begins with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airflow_mlops.exceptions import SpecError
from airflow_mlops.stages.models import FEATURES

if TYPE_CHECKING:
    from airflow_mlops.stages import train
    from airflow_mlops.training.features import Features


def code_of(spec: train.Spec, out_dir: Path) -> Path:
    """Return the directory of the user's code: `code_path`, or the clean tree of a commit of a repository, which tries of one task fetch once."""
    if not (spec.repository or spec.commit):
        return Path(spec.code_path)
    if not (spec.repository and spec.commit):
        raise SpecError(f"repository is {spec.repository!r} and commit {spec.commit!r}; expected both, or neither for the code in code_path.")
    from airflow_mlops.training.repository import checkout

    return checkout(spec.repository, spec.commit, out_dir / "code", cache=out_dir.parent / ".repositories")


def features_of(spec: train.Spec, code: Path, out_dir: Path) -> Features | None:
    """Save the user's features function as the graph that everybody runs from now on, and return it; None without one."""
    if not spec.features:
        return None
    from airflow_mlops.training.features import Features, save_features
    from airflow_mlops.training.function import resolve

    save_features(resolve(spec.features, code), spec.layout.input_shape, out_dir / FEATURES)
    return Features(out_dir / FEATURES, code_allowed=spec.unsafe_models_allowed)
