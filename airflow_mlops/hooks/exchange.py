"""The object storage between workers and pods, with the worker's own credentials for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from airflow_mlops.exceptions import SpecError

if TYPE_CHECKING:
    from airflow_mlops.stages.exchange import Exchange


def open_exchange(url: str, conn_id: str | None) -> Exchange:
    """Return the exchange at `url`.

    :param conn_id: connection of any type whose extra field `storage_options` (endpoint, credentials) is fsspec's; None: what the worker's
        environment says.
    :raises SpecError: the field is no object.
    """
    from airflow_mlops.stages.exchange import Exchange

    options = BaseHook.get_connection(conn_id).extra_dejson.get("storage_options", {}) if conn_id else {}
    if not isinstance(options, dict):
        raise SpecError(f'Connection {conn_id!r} has storage_options that are no object; write them as {{"key": "...", "secret": "..."}}.')
    return Exchange(url, options)
