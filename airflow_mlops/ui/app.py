"""The pages of the plugin; they read the ledger and the workspace and compute nothing."""

from __future__ import annotations

from pathlib import Path

from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse

from airflow_mlops.hooks.workspace import workspace

app = FastAPI(title="MLOps", dependencies=[Depends(requires_authenticated())], docs_url=None, redoc_url=None, openapi_url=None)


@app.get("/reports/{path:path}")
def report(path: str) -> FileResponse:
    """Send one file of a run's reports; nothing outside the workspace is ever sent."""
    runs = (workspace() / "runs").resolve()
    file = (workspace() / path).resolve()
    if not (file.is_relative_to(runs) and file.is_file()):
        raise HTTPException(404, f"There is no report {path}. Reports are removed with their run's files.")
    return FileResponse(file)


@app.get("/", response_class=HTMLResponse)
def overview() -> str:
    """Show what the ledger knows."""
    return "<h1>MLOps</h1>"
