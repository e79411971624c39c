"""The pages of the plugin; they read the ledger and the workspace and compute nothing. Only the API server imports this."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from airflow.api_fastapi.core_api.security import requires_authenticated
from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import workspace
from airflow_mlops.names import file_name
from airflow_mlops.ui import overview, pages, reports
from airflow_mlops.ui.access import Access, access_of
from airflow_mlops.ui.services import services

TITLES = {401: "Log in first", 403: "This is not for your role", 404: "No such page"}
LOG_IN = "This page needs a login to Airflow. Log in there, then open this address again."

app = FastAPI(title="MLOps", dependencies=[Depends(requires_authenticated())], docs_url=None, redoc_url=None, openapi_url=None)
# Public, because Airflow's navigation fetches the icon without a login; nothing in it is a secret.
app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")

Reader = Annotated[Access, Depends(access_of)]


@app.get("/", response_class=HTMLResponse)
def show_overview(request: Request, reader: Reader) -> HTMLResponse:
    """Show the dataset versions, releases and messages that the reader may see; 503 with the error's words when the ledger does not answer."""
    if not (reader.reads_anything() or reader.reads_assets()):
        raise HTTPException(403, "Your role in Airflow may read no DAG and no asset, so there is nothing to show. Ask for a role that may.")
    try:
        with MlopsLedgerHook().get_conn() as store:
            found = overview.collect(store, reader)
    except (MlopsError, AirflowNotFoundException) as error:
        return _page(request, 503, "The ledger cannot be read", str(error))
    about = {"root": request.scope["root_path"], "inbox": conf.get("mlops", "inbox"), "services": services()}
    page = pages.render("overview.html", **about, **found._asdict())
    return HTMLResponse(page, headers=pages.HEADERS)


@app.get("/reports/{area}/{dag_id}/{path:path}", response_class=Response)
def report(request: Request, area: str, dag_id: str, path: str, reader: Reader) -> Response:
    """Send one file of a run or of an evidence pack to who may see it; nothing else is ever sent."""
    if not reader.reads(dag_id):
        raise HTTPException(403, f"Your role in Airflow may not read the runs of the DAG {dag_id}. Ask for one that may.")
    file = reports.find(workspace(), f"{area}/{file_name(dag_id)}/{path}")
    if file is None:
        raise HTTPException(404, f"There is no report {path} of the DAG {dag_id}. Reports are removed with their run's files.")
    if not reports.is_page(area, file) and not reader.edits(dag_id):
        raise HTTPException(403, f"Models, specs and records are for who may edit the DAG {dag_id}; your role may read its reports only.")
    media_type = reports.MEDIA_TYPES.get(file.suffix.lower())
    if media_type is None:
        return FileResponse(file, media_type="application/octet-stream", filename=file.name, headers=reports.HEADERS)
    return FileResponse(file, media_type=media_type, headers=reports.HEADERS)


@app.exception_handler(HTTPException)
def refuse(request: Request, refusal: HTTPException) -> HTMLResponse:
    """Show a refusal, Airflow's own included, as a page."""
    words = LOG_IN if refusal.status_code == 401 else str(refusal.detail)
    return _page(request, refusal.status_code, TITLES.get(refusal.status_code, "Airflow refused this"), words)


def _page(request: Request, status: int, title: str, words: str) -> HTMLResponse:
    page = pages.render("problem.html", root=request.scope["root_path"], title=title, words=words)
    return HTMLResponse(page, status, headers=pages.HEADERS)
