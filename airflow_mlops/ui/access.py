"""What a reader may see: whatever Airflow's auth manager lets this user see of each DAG, asked again for every page."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_asset, requires_access_dag
from fastapi import HTTPException, Request

EVERY_DAG = "~"  # no DAG's id can be this: who may read it may read all of them


class Access:
    """The permissions of one request's user. Who may read a DAG's task instances may read what they left behind.

    A row of the ledger that no run wrote (a command did) has no DAG; it is for those who may read every DAG.
    """

    def __init__(self, request: Request, user: Any) -> None:
        self._request, self._user = request, user
        self._known: dict[tuple[str, str], bool] = {}

    def reads(self, dag_id: str | None) -> bool:
        """Return whether the user may read the task instances of a DAG, which need not exist any longer."""
        return self._may("GET", dag_id or EVERY_DAG)

    def edits(self, dag_id: str) -> bool:
        """Return whether the user may edit the task instances of a DAG."""
        return self._may("PUT", dag_id)

    def reads_assets(self) -> bool:
        """Return whether the user may read assets and their events, of which the arrival of a dataset version is one."""
        return _allowed(requires_access_asset("GET"), self._request, self._user)

    def reads_anything(self) -> bool:
        """Return whether there is any DAG that the user may read."""
        return _allowed(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE, param_dag_id=""), self._request, self._user)

    def _may(self, method: Any, dag_id: str) -> bool:
        key = (method, dag_id)
        if key not in self._known:
            self._known[key] = _allowed(requires_access_dag(method, DagAccessEntity.TASK_INSTANCE, param_dag_id=dag_id), self._request, self._user)
        return self._known[key]


def access_of(request: Request, user: GetUserDep) -> Access:
    """Return what the user who is logged in may see; 401 without a login."""
    return Access(request, user)


def _allowed(check: Any, request: Request, user: Any) -> bool:
    try:
        check(request, user)
    except HTTPException as refusal:
        if refusal.status_code != 403:
            raise
        return False
    return True
