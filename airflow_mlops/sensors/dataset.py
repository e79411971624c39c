"""Dataset arrival as a classic sensor, for those who want to wait inside a DAG."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_mlops.exceptions import DatasetAlreadyClaimed
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.results import DatasetVersion, to_data

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.store import Store


class DatasetVersionSensor(BaseSensorOperator):
    """Wait for a complete version of a dataset that no run of this DAG has taken and no validation has rejected, take it, and return it.

    :param dataset: name of the dataset, as in the manifests.
    :param inbox: directory with one directory per version.
    """

    template_fields = ("dataset", "inbox")
    ui_color = "#fdf3d8"

    def __init__(self, *, dataset: str, inbox: str, ledger_conn_id: str = MlopsLedgerHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.inbox = inbox
        self.ledger_conn_id = ledger_conn_id

    def poke(self, context: Context) -> PokeReturnValue:
        from airflow_mlops.ledger import datasets

        dag_id, run_id = context["ti"].dag_id, context["ti"].run_id
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            owners = datasets.claimed(store, self.dataset, purpose=dag_id)
            own = {digest for digest, owner in owners.items() if owner == run_id}
            version = self._oldest(store, (owners.keys() | datasets.rejected(store, self.dataset).keys()) - own)
            if version is None:
                return PokeReturnValue(is_done=False)
            try:
                datasets.claim(store, version, purpose=dag_id, run_id=run_id, of_event=False)
            except DatasetAlreadyClaimed:  # taken by another run since we looked: there may be another version
                return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=to_data(version))

    def _oldest(self, store: Store, passed_over: Set[str]) -> DatasetVersion | None:
        """Return the complete version that the ledger saw first of those whose digest is not in `passed_over`; only their files are read."""
        from airflow_mlops.data.inbox import Inbox, in_order

        inbox = Inbox(Path(self.inbox))
        left = [one for one, heading in in_order(store, inbox.listed(), self.dataset) if heading.digest not in passed_over]
        for candidate in (candidate for one in left for candidate in inbox.examine([one])):
            if candidate.version:
                return candidate.version
            self.log.warning("%s is not complete: %s", candidate.name, candidate.problem)
        return None
