"""The Airflow plugin: our pages inside Airflow's UI. Light, because every Airflow process loads it."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class MlopsPlugin(AirflowPlugin):
    """Adds the page "MLOps" to Airflow's navigation and serves the reports that tasks link to."""

    name = "mlops"
    # Relative: Airflow's pages resolve both against the address they are served under, whatever path a proxy puts before it.
    external_views = [{"name": "MLOps", "href": "mlops/", "destination": "nav", "url_route": "mlops", "icon": "mlops/static/icon.svg"}]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        # A property, because only the API server may pay for the import.
        from airflow_mlops.ui import app, people

        return [
            {"app": app.app, "url_prefix": "/mlops", "name": "MLOps"},
            {"app": people.app, "url_prefix": "/mlops-people", "name": "MLOps: people"},
        ]
