"""The pages of the plugin; they read the ledger and the workspace and compute nothing. Only the API server imports this."""

from __future__ import annotations

import contextlib
from pathlib import Path

from airflow.api_fastapi.core_api.security import requires_authenticated
from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import workspace
from airflow_mlops.ledger import history, messages
from airflow_mlops.ui import pages, reports

MAX_MESSAGES = 20

app = FastAPI(title="MLOps", dependencies=[Depends(requires_authenticated())], docs_url=None, redoc_url=None, openapi_url=None)
# Public, because Airflow's navigation fetches the icon without a login; nothing in it is a secret.
app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")


@app.get("/", response_class=HTMLResponse)
def overview(request: Request) -> HTMLResponse:
    """Show dataset versions, releases and messages; 503 with the error's words when the ledger does not answer."""
    try:
        with contextlib.closing(MlopsLedgerHook().get_conn()) as store:
            versions = history.dataset_versions(store)
            releases = history.effects(store, pages.STEPS)
            told = messages.latest(store, limit=MAX_MESSAGES)
    except (MlopsError, AirflowNotFoundException) as error:
        return _problem(request, 503, "The ledger can not be read", str(error))
    found = {"versions": versions, "releases": releases, "messages": told, "inbox": conf.get("mlops", "inbox")}
    return HTMLResponse(pages.render("overview.html", root=request.scope["root_path"], **found), headers=pages.HEADERS)


@app.get("/reports/{path:path}", response_class=Response)
def report(request: Request, path: str) -> Response:
    """Send one file of a run or of an evidence pack; nothing else is ever sent."""
    file = reports.find(workspace(), path)
    if file is None:
        return _problem(request, 404, "No such report", f"There is no report {path}. Reports are removed with their run's files.")
    media_type = reports.MEDIA_TYPES.get(file.suffix.lower())
    if media_type is None:
        return FileResponse(file, media_type="application/octet-stream", filename=file.name, headers=reports.HEADERS)
    return FileResponse(file, media_type=media_type, headers=reports.HEADERS)


def _problem(request: Request, status: int, title: str, words: str) -> HTMLResponse:
    page = pages.render("problem.html", root=request.scope["root_path"], title=title, words=words)
    return HTMLResponse(page, status, headers=pages.HEADERS)
