"""Who the users of this Airflow are, by asking the plugin in the API server: a task sees neither Airflow's database nor its users.

The question is a signed statement that is good for a minute; its key is ``[api] secret_key``, which workers and API server share anyway, for
task logs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from airflow.sdk import conf

from airflow_mlops.exceptions import UsersUnknown

AUDIENCE = "airflow-mlops-people"
PATH = "mlops-people"
SECONDS = 60
TRIES = 3


class Person(NamedTuple):
    """A user of Airflow: `name` is what they log in with, `user_id` the auth manager's id, `known_as` their e-mail address and full name.

    `may_answer` is whether their role may answer the questions of the DAG that was asked about.
    """

    name: str
    user_id: str
    known_as: tuple[str, ...]
    may_answer: bool


def people(names: Sequence[str], dag_id: str) -> dict[str, Person]:
    """Return by name those of the users `names` whom Airflow knows as active.

    :raises UsersUnknown: the API server cannot be asked.
    """
    import httpx
    import jwt

    address = f"{_api_server()}/{PATH}"
    problem = ""
    for attempt in range(TRIES):
        time.sleep(attempt)
        claims = {"aud": AUDIENCE, "exp": int(time.time()) + SECONDS, "names": list(names), "dag_id": dag_id}
        question = jwt.encode(claims, conf.get("api", "secret_key"), algorithm="HS256")
        try:
            answer = httpx.post(f"{address}/", json={"question": question}, timeout=20.0)
        except httpx.HTTPError as error:
            problem = f"{address} does not answer ({type(error).__name__}: {error})"
            continue
        if answer.is_success:
            return {name: Person(**{**about, "known_as": tuple(about["known_as"])}) for name, about in answer.json().items()}
        problem = f"{address} answers {answer.status_code}: {_detail(answer)}"
        if answer.is_client_error or answer.status_code == 501:
            break
    raise UsersUnknown(
        f"Airflow's users are not known here: {problem}. Expected an API server with this plugin below the address of "
        "[core] execution_api_server_url, and the same [api] secret_key in both; correct what differs."
    )


def _api_server() -> str:
    address: str = conf.get("core", "execution_api_server_url", fallback="") or f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/execution/"
    return address.rstrip("/").removesuffix("/execution")


def _detail(answer: Any) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return str(answer.text[:200])
