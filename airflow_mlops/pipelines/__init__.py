"""DAG factories: what a DAG file calls, once."""

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.gates import ApprovalPolicy, ReleasePolicy
from airflow_mlops.pipelines.factory import model_pipelines
from airflow_mlops.pipelines.reconciliation import reconciliation_dag
from airflow_mlops.pipelines.runner import Local, Pod
from airflow_mlops.pipelines.spec import PipelineSpec
from airflow_mlops.stages.job import JobSpec
from airflow_mlops.stages.pod import PodSpec
from airflow_mlops.training.search import Grid, RandomSearch, Range

__all__ = [
    "ApprovalPolicy",
    "ArrayLayout",
    "Grid",
    "JobSpec",
    "Local",
    "PipelineSpec",
    "Pod",
    "PodSpec",
    "RandomSearch",
    "Range",
    "ReleasePolicy",
    "model_pipelines",
    "reconciliation_dag",
]
