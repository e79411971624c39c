"""Which services the pipelines work with: the connection of each, and its address without credentials."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.messages import outbox
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.tf_serving import TFServingHook

SLACK = "slack_api_default"


class Service(NamedTuple):
    """What a service is for, its connection, and where it is; `address` is None where there is no such connection."""

    name: str
    conn_id: str
    address: str | None


def services() -> list[Service]:
    """Return the services of the pipelines' connections."""
    found = {name: _connection(conn_id) for name, conn_id in _IDS.items()}
    told = Service("Messages", SLACK, "Slack" if found["Messages"] else str(outbox()))
    return [*(Service(name, _IDS[name], _address(one)) for name, one in found.items() if name != "Messages"), told]


_IDS = {
    "Registry": MlflowHook.default_conn_name,
    "Model server": TFServingHook.default_conn_name,
    "Ledger": MlopsLedgerHook.default_conn_name,
    "Messages": SLACK,
}


def _connection(conn_id: str) -> Connection | None:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return None


def _address(connection: Connection | None) -> str | None:
    if connection is None:
        return None
    parts = [connection.host or "", f":{connection.port}" if connection.port else ""]
    address = f"{''.join(parts)}/{connection.schema}" if connection.schema and connection.host else "".join(parts) or connection.schema or ""
    if not address:
        replicas = connection.extra_dejson.get("replicas")
        return f"{len(replicas)} replicas" if isinstance(replicas, list) else "no address"
    url = urlsplit(address)
    return address.replace(f"{url.username}:{url.password}@", "").replace(f"{url.username}@", "") if url.username else address
