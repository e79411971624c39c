"""DAG factories: what a DAG file calls, once."""

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.gates import ApprovalPolicy, ReleasePolicy
from airflow_mlops.pipelines.factory import model_pipelines
from airflow_mlops.pipelines.reconciliation import reconciliation_dag
from airflow_mlops.pipelines.spec import PipelineSpec

__all__ = ["ApprovalPolicy", "ArrayLayout", "PipelineSpec", "ReleasePolicy", "model_pipelines", "reconciliation_dag"]
