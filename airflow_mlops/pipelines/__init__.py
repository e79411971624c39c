"""DAG factories: what a DAG file calls, once."""

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.gates import ApprovalPolicy, ReleasePolicy
from airflow_mlops.pipelines.factory import model_pipelines
from airflow_mlops.pipelines.reconciliation import reconciliation_dag
from airflow_mlops.pipelines.runner import Local, Pod
from airflow_mlops.pipelines.spec import PipelineSpec
from airflow_mlops.stages.pod import PodSpec

__all__ = ["ApprovalPolicy", "ArrayLayout", "Local", "PipelineSpec", "Pod", "PodSpec", "ReleasePolicy", "model_pipelines", "reconciliation_dag"]
