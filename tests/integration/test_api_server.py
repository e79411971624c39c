"""The plugin in Airflow's own API server, under both auth managers: every role, route and DAG."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import DatasetVersion
from tests.api_servers import ApiServer, api_server

pytestmark = pytest.mark.slow

# What each role gets of /mlops/: the overview, pages and models of the DAGs alpha_release and beta_release.
ROUTES = {
    "overview": "",
    "icon": "static/icon.svg",
    "alpha page": "reports/runs/alpha_release/r/validate/try-1/data_docs/index.html",
    "alpha pack": "reports/evidence/alpha_release/alpha/1-r/lineage.json",
    "alpha model": "reports/runs/alpha_release/r/train/try-1/model.keras",
    "alpha graph": "reports/runs/alpha_release/r/train/try-1/saved_model/saved_model.pb",
    "alpha spec": "reports/runs/alpha_release/r/train/try-1/spec.json",
    "beta page": "reports/runs/beta_release/r/validate/try-1/data_docs/index.html",
    "beta pack": "reports/evidence/beta_release/beta/1-r/lineage.json",
    "beta model": "reports/runs/beta_release/r/train/try-1/model.keras",
    "beta through alpha": "reports/runs/alpha_release/%2e%2e/beta_release/r/validate/try-1/data_docs/index.html",
    "link to beta": "reports/runs/alpha_release/link.html",
}
EDITOR = {200: [name for name in ROUTES if name not in ("beta through alpha", "link to beta")], 404: ["beta through alpha", "link to beta"]}
READER = {
    200: ["overview", "icon", "alpha page", "alpha pack", "beta page", "beta pack"],
    403: ["alpha model", "alpha graph", "alpha spec", "beta model"],
}
READER = {**READER, 404: EDITOR[404]}
NOTHING = {200: ["icon"], 403: [name for name in ROUTES if name != "icon"]}
ONLY_ALPHA = {
    200: ["overview", "icon", "alpha page", "alpha pack"],
    403: ["alpha model", "alpha graph", "alpha spec", "beta page", "beta pack", "beta model"],
    404: EDITOR[404],
}
ANONYMOUS = {200: ["icon"], 401: NOTHING[403]}
MATRIX = {None: ANONYMOUS, "none": NOTHING, "viewer": READER, "user": EDITOR, "op": EDITOR, "admin": EDITOR, "alpha": ONLY_ALPHA}
SEEN = {"viewer": {"alpha", "beta"}, "user": {"alpha", "beta"}, "op": {"alpha", "beta"}, "admin": {"alpha", "beta"}, "alpha": {"alpha"}}


@pytest.fixture(scope="module", params=["simple", "fab"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server per auth manager; FAB's has a path before it."""
    prefix = {"simple": "", "fab": "/team/airflow"}[request.param]
    with api_server(tmp_path_factory.mktemp(request.param) / "home", request.param, prefix=prefix) as server:
        _fill(server)
        yield server


def test_every_role_gets_of_every_dag_what_airflow_lets_it_see(server: ApiServer) -> None:
    wrong = []
    for user in (None, *server.users):
        wanted = {name: status for status, names in MATRIX[user].items() for name in names}
        with server.client(user) as client:
            found = {name: client.get(f"/mlops/{route}") for name, route in ROUTES.items()}
        wrong += [(user, name, found[name].status_code, status) for name, status in wanted.items() if found[name].status_code != status]
        assert found.keys() == wanted.keys()
        leaks = [name for name, answer in found.items() if answer.status_code != 200 and "content of" in answer.text]
        assert leaks == []
    assert wrong == []


def test_the_overview_shows_each_role_the_rows_of_its_dags(server: ApiServer) -> None:
    for user, models in SEEN.items():
        if user not in server.users:
            continue
        with server.client(user) as client:
            page = client.get("/mlops/").text
        assert {name for name in ("alpha", "beta") if f"<b>{name}</b>" in page} == models, user


def _fill(server: ApiServer) -> None:
    workspace = server.home / "workspace"
    for name in ("alpha", "beta"):
        run = workspace / "runs" / f"{name}_release" / "r"
        for file in (
            "validate/try-1/data_docs/index.html",
            "train/try-1/model.keras",
            "train/try-1/saved_model/saved_model.pb",
            "train/try-1/spec.json",
        ):
            (run / file).parent.mkdir(parents=True, exist_ok=True)
            (run / file).write_text(f"content of {name}")
        pack = workspace / "evidence" / f"{name}_release" / name / "1-r"
        pack.mkdir(parents=True)
        (pack / "lineage.json").write_text("{}")
    (workspace / "runs" / "alpha_release" / "link.html").symlink_to(workspace / "runs/beta_release/r/validate/try-1/data_docs/index.html")
    store = Store(f"sqlite:///{server.home}/ledger.db")
    for number, name in enumerate(("alpha", "beta")):
        version = DatasetVersion(name, "v1", "sha256:" + f"{number}" * 64, f"/inbox/{name}")
        datasets.claim(store, version, purpose=f"{name}_release", run_id="r")
        once(store, f"promote:{name}", "promote", {"model": name, "version": 1, "run": f"{name}_release/r"}, lambda: {"previous": None})
    store.close()
