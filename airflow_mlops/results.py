"""What stages tell each other: small frozen records of URIs, digests and numbers, JSON both ways.

Records are plain standard-library dataclasses; pydantic does the JSON and the type checks. Unknown fields, NaN and infinity are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from airflow_mlops.artifacts import Artifact
from airflow_mlops.exceptions import DatasetRejected, MlopsError, ResultInvalid
from airflow_mlops.splits import JudgedRows, SplitDefinition
from airflow_mlops.usage import TrainingEnvironment

STRICT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
R = TypeVar("R")
SHOWN_FINDINGS = 3  # a message with all of them is read by nobody


class StageResult:
    """What every stage's result can say of itself."""

    def headline(self) -> str:
        """Return the key figures as one line for a log or a message."""
        return type(self).__name__

    def refusal(self) -> MlopsError | None:
        """Return the error that must stop the run although the stage itself worked, or None."""
        return None

    def report(self) -> Path | None:
        """Return the HTML page a person should open, or None."""
        return None


@STRICT
@dataclass(frozen=True)
class DatasetVersion:
    """One immutable version of a dataset: `digest` is that of its manifest's file list, `uri` the directory, `name` the directory's name."""

    dataset: str
    name: str
    digest: str
    uri: str


@STRICT
@dataclass(frozen=True)
class Finding:
    """One expectation that did not hold, or could not be evaluated, as a sentence a person can act on."""

    expectation: str
    column: str | None
    message: str


@STRICT
@dataclass(frozen=True)
class ValidationResult(StageResult):
    """What Great Expectations said: `critical` findings stop the run, `warnings` do not; `data_docs` is the site's directory."""

    dataset: DatasetVersion
    num_rows: int
    num_expectations: int
    critical: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    data_docs: Artifact

    def refusal(self) -> MlopsError | None:
        if not self.critical:
            return None
        shown = " ".join(finding.message for finding in self.critical[:SHOWN_FINDINGS])
        rest = len(self.critical) - SHOWN_FINDINGS
        return DatasetRejected(
            f"{self.dataset.dataset} {self.dataset.name} breaks {len(self.critical)} critical expectations. {shown} "
            + (f"And {rest} more, see the report. " if rest > 0 else "")
            + "Mend the data and publish it as a new version."
        )

    def report(self) -> Path | None:
        return self.data_docs.path / "index.html"

    def headline(self) -> str:
        failed = len(self.critical) + len(self.warnings)
        return f"{self.num_expectations - failed}/{self.num_expectations} expectations hold on {self.num_rows} rows, {len(self.warnings)} warnings"


@STRICT
@dataclass(frozen=True)
class TrainingResult(StageResult):
    """A trained model: Keras file, SavedModel directory, golden answers (JSON: ``{"inputs": [...], "outputs": [...]}``) and its origin.

    `code_version` is a Git commit (with ``+dirty``) or a source digest; `mlflow_source` is the URI of the run's artefacts. `split` is what it learned
    from; `warm_started_from` names the champion's version or is None, `start_problem` why it is not the one that was asked for; `notes` are
    sentences on what else was asked for and not done. `code_authors` wrote and committed the last change of the code
    (``Ann Lee <ann@example.org>``), empty where Git does not know. `formats` are the further ones it was converted into, `format_problems` says
    why others are missing. `features`, or None, is the graph from raw rows to what `model` takes, which the SavedModel holds already.
    `stopped_early`: its time was over before it was done; `resumed_from_step`: the batch of the checkpoint that it resumed from, or None.
    `weights_digest` is that of the numbers in `model`, whose file holds the time too. `seconds_before` were trained by the attempts before this
    one, which resumed from their checkpoint.
    """

    dataset: DatasetVersion
    model: Artifact
    saved_model: Artifact
    golden: Artifact
    mlflow_run_id: str
    mlflow_source: str
    metrics: Mapping[str, float]
    params: Mapping[str, str | int | float | bool | None]
    seed: int
    code_version: str
    packages: Mapping[str, str]
    num_train_rows: int
    num_held_out_rows: int
    split: SplitDefinition
    warm_started_from: str | None
    start_problem: str | None = None
    notes: tuple[str, ...] = ()
    code_authors: tuple[str, ...] = ()
    formats: Mapping[str, Artifact] = field(default_factory=dict)
    format_problems: Mapping[str, str] = field(default_factory=dict)
    features: Artifact | None = None
    weights_digest: str | None = None
    environment: TrainingEnvironment | None = None
    seconds_before: float = 0.0
    stopped_early: bool = False
    resumed_from_step: int | None = None

    def headline(self) -> str:
        return ". ".join([self.figures(), " ".join(self.undone())]) if self.undone() else self.figures()

    def figures(self) -> str:
        """Return how it began and what it came to, as one line."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(self.metrics.items()))
        start = f"warm from champion v{self.warm_started_from}" if self.warm_started_from else "from scratch"
        return f"{self.num_train_rows} rows, {start}: {figures}"

    def undone(self) -> tuple[str, ...]:
        """Return a sentence for each thing that was asked for and not done, or that a release should know of; the most important one first."""
        ended = ("Its time was over before it was done: the model is as it was then.",) if self.stopped_early else ()
        return (*filter(None, [self.start_problem]), *ended, *(text for _, text in sorted(self.format_problems.items())), *self.notes)


@STRICT
@dataclass(frozen=True)
class EvaluationResult(StageResult):
    """Challenger and champion on the same `num_rows` rows, which neither has learned from; `judged` says how many each of them held out.

    `champion_metrics` is None when there is no champion, or when both cannot be compared: `champion_problem` then says why, and the rows are all
    that the challenger held out. `start_problem` is the training's. The metrics are those of the SavedModel, as it is served; `served_difference` is
    the largest absolute difference of its answers to the rows that it held out from those of the Keras file, which the robustness campaign attacks.
    """

    num_rows: int
    rows_digest: str
    metrics: Mapping[str, float]
    champion_version: str | None
    champion_metrics: Mapping[str, float] | None
    judged: JudgedRows
    champion_problem: str | None = None
    start_problem: str | None = None
    served_difference: float | None = None

    def headline(self) -> str:
        champion = self.champion_metrics
        shown = [f"{k} {v:.4f}" + (f" (champion {champion[k]:.4f})" if champion and k in champion else "") for k, v in sorted(self.metrics.items())]
        said = [f"{', '.join(shown)} on {self.num_rows} held-out rows", self.judged.sentence()]
        if self.champion_problem:
            said.append(f"not compared with champion v{self.champion_version}: {self.champion_problem}")
        return "; ".join(filter(None, said))


@STRICT
@dataclass(frozen=True)
class DefectRate:
    """Defects per mutant of one operator in the random sample; `low` and `high` are the exact (Clopper-Pearson) 95 % interval."""

    num_mutants: int
    num_defects: int
    rate: float
    low: float
    high: float


@STRICT
@dataclass(frozen=True)
class RobustnessResult(StageResult):
    """A guided campaign and a random sample: rates per operator come from the sample, which alone may be gated on.

    `ledger_hash` is a digest of everything that was found, the same for every number of shards and after every interruption. `notes` are sentences
    that a reader of the figures should know.
    """

    num_seeds: int
    num_mutants: int
    num_defects: int
    num_distinct_defects: int
    coverage: Mapping[str, float]
    defect_rates: Mapping[str, DefectRate]
    sample_rate: float
    ledger_hash: str
    report_page: Artifact
    recipes: Artifact
    notes: tuple[str, ...] = ()

    def report(self) -> Path | None:
        return self.report_page.path

    def headline(self) -> str:
        coverage = ", ".join(f"{name} {value:.1%}" if value <= 1 else f"{name} {value:.0f}" for name, value in sorted(self.coverage.items()))
        return f"{self.num_distinct_defects} distinct defects in {self.num_mutants} mutants; defect rate {self.sample_rate:.1%} ({coverage})"


@functools.cache
def _adapter(record_type: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, record_type))


def to_data(record: Any) -> Any:
    """Return a record as JSON-ready data (dictionaries, lists, numbers, strings)."""
    return _adapter(cast(Hashable, type(record))).dump_python(record, mode="json")


def from_data(record_type: type[R], data: Any, *, what: str = "record") -> R:
    """Return `data` as a record of `record_type`; raise `ResultInvalid` with every field that does not fit."""
    try:
        return cast(R, _adapter(cast(Hashable, record_type)).validate_python(data))
    except ValidationError as error:
        raise ResultInvalid(f"The {what} is not a {record_type.__name__}: {problems(error)}.") from error


def problems(error: ValidationError) -> str:
    """Return every field that does not fit, with the reason."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'top'}: {e['msg']}" for e in error.errors())
