"""A frame against an expectation suite: findings in sentences, and Data Docs. The only importer of Great Expectations: for stages only.

Great Expectations stores a result as JSON and fails on NumPy's booleans, which some of its own expectations return; it reports the results in
another order than the suite's; and it reports a metric that raised like one that failed. So the batch is validated without storing,
the results are put in order, made plain and told apart, and only then written down as Data Docs, which are pages of our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.core.expectation_suite import ExpectationSuite
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext
from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig
from great_expectations.exceptions.exceptions import ExpectationNotFoundError
from great_expectations.expectations.expectation import Expectation as GxExpectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.registry import get_expectation_impl, list_registered_expectation_implementations

from airflow_mlops.artifacts import Artifact
from airflow_mlops.data import data_docs
from airflow_mlops.data.sentences import could_not_be_evaluated, cut, does_not_hold, expected, found, plain, subject
from airflow_mlops.data.suites import Expectation, Suite
from airflow_mlops.exceptions import DatasetError, SpecError, nearest
from airflow_mlops.results import DatasetVersion, Finding, ValidationResult

POSITION = "position"


def validate(frame: pd.DataFrame, suite: Suite, *, dataset: DatasetVersion, docs_dir: Path, run_url: str = "") -> ValidationResult:
    """Return what `suite` says about `frame` (N rows), in the suite's order, and write Data Docs, an ``index.html``, to `docs_dir`.

    Expectations of severity critical that fail, or that cannot be evaluated, are critical findings; those of severity warning or info are
    warnings. Raises `SpecError`, naming file and line, for a type or kwargs that Great Expectations does not accept; data that fail are a result,
    not an error. `run_url` is where the Data Docs lead back to.
    """
    context = _context()
    gx_suite = context.suites.add(ExpectationSuite(name=suite.name, expectations=[_build(*item) for item in enumerate(suite.expectations)]))
    batches = context.data_sources.add_pandas("frames").add_dataframe_asset(dataset.dataset).add_batch_definition_whole_dataframe("all")
    result = batches.get_batch(batch_parameters={"dataframe": frame}).validate(gx_suite, result_format="SUMMARY")
    _make_plain(result)
    told = [(suite.expectations[_position(one)], one) for one in result.results]
    failed = [(expectation, one) for expectation, one in told if not one.success]
    findings = {critical: tuple(_finding(*item) for item in failed if (item[0].severity == "critical") is critical) for critical in (True, False)}
    counts = (len(frame), len(suite.expectations))
    summary = ValidationResult(dataset, *counts, critical=findings[True], warnings=findings[False], data_docs=Artifact("", "", 0))
    about = data_docs.About(dataset, len(frame), suite.name, summary.headline(), bool(summary.critical), run_url)
    data_docs.write(docs_dir, about, [_check(*item) for item in told])
    return replace(summary, data_docs=Artifact.of(docs_dir))


def _context() -> EphemeralDataContext:
    """Return a context in memory: no progress bars in the log, no analytics, no pages."""
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _build(position: int, expectation: Expectation) -> GxExpectation:
    """Return Great Expectations' own object, carrying its position, because results come back in another order."""
    prefix = f"{expectation.where}: " if expectation.where else ""
    try:
        implementation = get_expectation_impl(expectation.type)
    except ExpectationNotFoundError as error:
        hint = nearest(expectation.type, list_registered_expectation_implementations())
        raise SpecError(f"{prefix}unknown expectation type {expectation.type!r}: expected one of Great Expectations'.{hint}") from error
    known = [name for name in implementation.__fields__ if name not in ("id", "meta", "severity", "rendered_content")]
    for name in expectation.kwargs:
        if name not in known:
            raise SpecError(f"{prefix}{expectation.type} has no argument {name!r}: expected {', '.join(known)}.{nearest(name, known)}")
    try:
        return implementation(**expectation.kwargs, severity=FailureSeverity(expectation.severity), meta={POSITION: position})
    except (ValueError, TypeError) as error:
        raise SpecError(f"{prefix}{expectation.type} does not accept these kwargs: {' '.join(str(error).split())}. Correct them.") from error


def _make_plain(result: ExpectationSuiteValidationResult) -> None:
    for one in result.results:
        one.success = bool(one.success)
        one.result = plain(one.result)
    result.results.sort(key=_position)
    result.success = all(one.success for one in result.results)


def _check(expectation: Expectation, one: ExpectationValidationResult) -> data_docs.Check:
    kind, kwargs = expectation.type, expectation.kwargs
    problems = sorted(set(_exception_messages(one.exception_info)))
    outcome = data_docs.HOLDS if one.success else data_docs.UNKNOWN if problems else data_docs.FAILS
    words = cut("; ".join(problems)) if problems else found(one.result)
    return data_docs.Check(subject(kind, kwargs), expected(kind, kwargs), words, expectation.severity, outcome)


def _finding(expectation: Expectation, one: ExpectationValidationResult) -> Finding:
    problems = sorted(set(_exception_messages(one.exception_info)))
    kwargs = expectation.kwargs
    message = could_not_be_evaluated(expectation.type, kwargs, problems) if problems else does_not_hold(expectation.type, kwargs, one.result)
    column = kwargs.get("column")
    return Finding(expectation=expectation.type, column=column if isinstance(column, str) else None, message=message)


def _exception_messages(info: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the messages of what raised: `info` is one exception, or one per metric, and the metrics' identifiers differ from run to run."""
    info = info or {}
    if info.get("raised_exception"):
        yield str(info.get("exception_message") or "no message")
    for one in info.values():
        if isinstance(one, Mapping) and one.get("raised_exception"):
            yield str(one.get("exception_message") or "no message")


def _position(one: ExpectationValidationResult) -> int:
    config = one.expectation_config
    if config is None or POSITION not in (config.meta or {}):
        raise DatasetError("Great Expectations returned a result without the expectation it belongs to. Report this with its version.")
    return int(config.meta[POSITION])
