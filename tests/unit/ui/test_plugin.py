from __future__ import annotations

import subprocess
import sys

from airflow_mlops.ui import MlopsPlugin


def test_the_plugin_serves_what_its_page_asks_for() -> None:
    (view,), (mounted,) = MlopsPlugin.external_views, MlopsPlugin().fastapi_apps
    paths = {route.path for route in mounted["app"].routes}
    assert view["href"] == f"{mounted['url_prefix']}/"
    assert view["icon"].startswith(f"{mounted['url_prefix']}/static/")
    assert {"/", "/static", "/reports/{path:path}"} <= paths


def test_every_other_airflow_process_loads_the_plugin_without_its_app() -> None:
    script = "import sys, airflow_mlops.ui; print({'airflow_mlops.ui.app', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "set()"
