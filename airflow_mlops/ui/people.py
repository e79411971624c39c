"""What tasks may ask of the API server about Airflow's users; only the API server imports this.

The caller proves with ``[api] secret_key`` that it is part of this deployment: no user's login opens this.
"""

from __future__ import annotations

from typing import Any

import jwt
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models import DagModel
from airflow.sdk import conf
from airflow.utils.session import create_session
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from airflow_mlops.hooks.people import AUDIENCE

app = FastAPI(title="MLOps: people", docs_url=None, redoc_url=None, openapi_url=None)


class Question(BaseModel):
    """A signed statement of whom a task asks about; see `airflow_mlops.hooks.people`."""

    question: str


@app.post("/")
def people(asked: Question) -> dict[str, dict[str, Any]]:
    """Return by name the active users that the question names, 403 for one that this deployment did not sign."""
    try:
        claims = jwt.decode(
            asked.question,
            conf.get("api", "secret_key"),
            algorithms=["HS256"],
            audience=AUDIENCE,
            leeway=10,
            options={"require": ["exp", "aud", "names", "dag_id"]},
        )
    except jwt.InvalidTokenError as error:
        raise HTTPException(403, f"the question is not signed with this server's [api] secret_key, or is old ({error})") from error
    manager = get_auth_manager()
    found = {name: user for name in claims["names"] if (user := _user(manager, name)) is not None}
    return {name: _about(manager, name, user, claims["dag_id"]) for name, user in found.items()}


def _user(manager: Any, name: str) -> Any:
    kind = type(manager).__name__
    if kind == "SimpleAuthManager":
        return next((user for user in manager.get_users() if user.get_name() == name), None)
    if kind == "FabAuthManager":
        from airflow.providers.fab.auth_manager.models import User
        from sqlalchemy import select

        with create_session() as session:
            user_id = session.scalar(select(User.id).where(User.username == name, User.active.is_(True)))
        return None if user_id is None else manager.deserialize_user({"sub": str(user_id)})
    raise HTTPException(501, f"this package cannot look up the users of the auth manager {kind}")


def _about(manager: Any, name: str, user: Any, dag_id: str) -> dict[str, Any]:
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    may_answer = manager.is_authorized_dag(method="PUT", access_entity=DagAccessEntity.HITL_DETAIL, details=details, user=user)
    known_as = [str(user.email), user.get_full_name()] if hasattr(user, "email") else []
    return {"name": name, "user_id": str(user.get_id()), "known_as": [text for text in known_as if text.strip()], "may_answer": may_answer}
