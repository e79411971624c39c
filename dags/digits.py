"""DAGs for handwritten digits: retrained when a dataset version arrives and every night, released by a person."""

from pathlib import Path

from airflow.sdk import conf

from airflow_mlops.pipelines import ArrayLayout, PipelineSpec, ReleasePolicy, model_pipelines

model_pipelines(
    PipelineSpec(
        model="digits",
        dataset="digits",
        inbox=conf.get("mlops", "inbox"),
        suite="digits_suite.json",
        train_function="digits_model:train",
        code_path=Path(__file__).parent,
        layout=ArrayLayout(input_shape=(8, 8, 1), num_classes=10, scale=1 / 16),
        params={"epochs": 15, "learning_rate": 0.002},
        policy=ReleasePolicy(min_metrics={"accuracy": 0.9}, max_regression=0.02, max_defect_rate=0.1),
    )
)
