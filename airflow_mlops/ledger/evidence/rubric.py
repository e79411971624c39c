"""The 28 tests of the ML Test Score (Breck et al., "The ML Test Score: A Rubric for ML Production Readiness and Technical Debt Reduction", 2017).

A test has 1 point where the evidence shows that it runs by itself at every release and held, 0.5 where it shows that a person did and documented
it, else 0: that the package could do something, or does a part of it, is a reason in words and no point.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_mlops.ledger.evidence import judges
from airflow_mlops.ledger.evidence.judges import Judge, by, nothing
from airflow_mlops.results import EvaluationResult, TrainingResult, ValidationResult

DATA, MODEL, INFRASTRUCTURE, MONITORING = SECTIONS = ("data", "model", "infrastructure", "monitoring")


@dataclass(frozen=True)
class Item:
    """One test: its section, its words, how the evidence is judged (points and the reason), and what would bring the missing points."""

    section: str
    title: str
    judge: Judge
    remedy: str


RUBRIC: dict[str, Item] = {
    "data_schema": Item(
        DATA,
        "Feature expectations are captured in a schema",
        by("validate", ValidationResult, judges.schema),
        "Give the dataset an expectation suite that holds.",
    ),
    "features_beneficial": Item(
        DATA,
        "All features are beneficial",
        nothing("No training without a feature is recorded."),
        "Train without each feature, or each group of them, and document what is lost.",
    ),
    "feature_costs": Item(
        DATA,
        "No feature's cost is too much",
        nothing("No cost of a feature (latency, memory, upkeep) is recorded."),
        "Document what each input costs to collect and to serve, and state that.",
    ),
    "feature_requirements": Item(
        DATA,
        "Features adhere to meta-level requirements",
        nothing("No requirement on which data may be used is checked."),
        "Check the columns against a list of what may be used, and state that.",
    ),
    "privacy_controls": Item(
        DATA,
        "The data pipeline has appropriate privacy controls",
        nothing("Nothing about who may read the data is recorded."),
        "Document who may read datasets and models, and how long they are kept; state that.",
    ),
    "features_added_quickly": Item(
        DATA,
        "New features can be added quickly",
        nothing("How long a new feature takes is not recorded."),
        "Document the time from a new feature's idea to its release, and state that.",
    ),
    "feature_code_tested": Item(
        DATA,
        "All input feature code is tested",
        nothing("No report of tests of the code that makes the inputs belongs to the version."),
        "Test the code that makes the inputs in its build, and state that with a link to the build.",
    ),
    "specs_reviewed": Item(
        MODEL,
        "Model specs are reviewed and submitted",
        by("train", TrainingResult, judges.reviewed),
        "Train from a clean commit that somebody else reviewed, and state that with a link to the review.",
    ),
    "metrics_correlate": Item(
        MODEL,
        "Offline and online metrics correlate",
        nothing("No online metric is recorded."),
        "Measure what users see of versions that differ offline, and document how both go together.",
    ),
    "hyperparameters_tuned": Item(
        MODEL,
        "All hyperparameters have been tuned",
        nothing("One training with given parameters is recorded, and no search for better ones."),
        "Search the parameters, and state that with a link to the search.",
    ),
    "staleness_known": Item(
        MODEL,
        "The impact of model staleness is known",
        nothing("No older model is measured on newer data over time."),
        "Measure models of different ages on today's data, and document how fast they lose.",
    ),
    "simpler_model_not_better": Item(
        MODEL,
        "A simpler model is not better",
        nothing("No simpler model was trained and compared."),
        "Train a linear model on the same data, and document how much worse it is.",
    ),
    "quality_on_slices": Item(
        MODEL,
        "Model quality is sufficient on important data slices",
        by("evaluate", EvaluationResult, judges.slices),
        "Measure the slices that matter, with a bar for each, and document that.",
    ),
    "inclusion_considered": Item(
        MODEL,
        "The model is tested for considerations of inclusion",
        nothing("No comparison between groups of people is recorded."),
        "Measure the model for the groups it concerns, or document why it concerns nobody.",
    ),
    "training_reproducible": Item(
        INFRASTRUCTURE,
        "Training is reproducible",
        by("train", TrainingResult, judges.reproducible),
        "Train twice from the same record, and document how the models differ.",
    ),
    "specs_unit_tested": Item(
        INFRASTRUCTURE,
        "Model specs are unit tested",
        nothing("No tests of the model's code belong to the version: there is no stage for them yet."),
        "Test the train function in its build, and state that with a link to the build.",
    ),
    "pipeline_integration_tested": Item(
        INFRASTRUCTURE,
        "The full pipeline is integration tested",
        nothing("No test of the whole pipeline before this release is recorded; the release itself is none."),
        "Run the whole pipeline on small data in the build, and state that with a link to it.",
    ),
    "quality_before_serving": Item(
        INFRASTRUCTURE,
        "Model quality is validated before serving",
        by("evaluate", EvaluationResult, judges.quality),
        "Give the release policy minimum metrics, so that also a first model is held against something.",
    ),
    "model_debuggable": Item(
        INFRASTRUCTURE,
        "The model can be debugged step by step on a single example",
        nothing("No tool that shows each layer's answer to one example is part of the release."),
        "Document how one example is followed through the model, and state that.",
    ),
    "canary": Item(
        INFRASTRUCTURE,
        "Models are canaried before serving",
        judges.canary,
        "Send a share of the traffic to the new version and judge its answers before the label moves; document that.",
    ),
    "rollback": Item(
        INFRASTRUCTURE,
        "Serving models can be rolled back",
        judges.rollback,
        "Roll back once in an exercise, and let every release prove the way back.",
    ),
    "dependency_changes": Item(
        MONITORING,
        "Dependency changes result in notification",
        by("train", TrainingResult, judges.dependencies),
        "Let somebody be told when a data source or a package changes, and state that.",
    ),
    "data_invariants": Item(
        MONITORING,
        "Data invariants hold for inputs",
        nothing("The inputs that are served are not watched, whatever was checked of those to learn from."),
        "Check served inputs against the suite, too, and alert.",
    ),
    "no_skew": Item(
        MONITORING,
        "Training and serving are not skewed",
        judges.skew,
        "Log a sample of served inputs and compare it with the training's; alert on drift.",
    ),
    "not_stale": Item(
        MONITORING,
        "Models are not too stale",
        nothing("The age of the serving model is not watched."),
        "Alert when the champion is older than the impact of staleness allows.",
    ),
    "numerically_stable": Item(
        MONITORING,
        "Models are numerically stable",
        by("train", TrainingResult, judges.stable),
        "Let training and evaluation be run again, so that their records are whole.",
    ),
    "no_speed_regression": Item(
        MONITORING,
        "Computing performance has not regressed",
        nothing("Speed and memory of training and serving are not compared between versions."),
        "Record latency and memory of each version, and alert when they grow.",
    ),
    "no_quality_regression": Item(
        MONITORING,
        "Prediction quality on served data has not regressed",
        nothing("Labels of served inputs are not collected, so quality while serving is unknown."),
        "Collect labels of a sample of served inputs, and measure the champion on them.",
    ),
}
