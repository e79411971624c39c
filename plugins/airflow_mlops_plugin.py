"""For deployments that load plugins from a folder instead of installed packages."""

from airflow_mlops.ui import MlopsPlugin

__all__ = ["MlopsPlugin"]
