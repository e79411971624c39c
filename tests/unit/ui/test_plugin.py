from __future__ import annotations

import subprocess
import sys
from urllib.parse import urljoin

from airflow_mlops.ui import MlopsPlugin


def test_the_plugin_serves_what_its_page_asks_for_wherever_airflow_is_served() -> None:
    (view,), (mounted, _people) = MlopsPlugin.external_views, MlopsPlugin().fastapi_apps
    paths = {route.path for route in mounted["app"].routes}
    # Airflow's pages have a <base>: a leading slash would leave the path of [api] base_url.
    for base in ("http://airflow/", "http://airflow/some/path/"):
        assert urljoin(base, view["href"]) == f"{base}{mounted['url_prefix'].strip('/')}/"
        assert urljoin(base, view["icon"]).startswith(f"{base}{mounted['url_prefix'].strip('/')}/static/")
    assert {"/", "/static", "/reports/{area}/{dag_id}/{path:path}"} <= paths


def test_every_other_airflow_process_loads_the_plugin_without_its_app() -> None:
    script = "import sys, airflow_mlops.ui; print({'airflow_mlops.ui.app', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "set()"
