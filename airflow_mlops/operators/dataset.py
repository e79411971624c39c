"""Take the dataset version a run works on, so that no other run of the same pipeline does."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.exceptions import DatasetAlreadyClaimed, DatasetNotFound
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.operators.errors import airflow_errors
from airflow_mlops.results import DatasetVersion, to_data
from airflow_mlops.triggers.dataset import version_of

if TYPE_CHECKING:
    from airflow.sdk import Context


class ClaimDatasetOperator(BaseOperator):
    """Return the dataset version of this run, its files verified and the version claimed in the ledger.

    The version is the newest of the asset events that started the run (older ones are claimed with it: they are superseded), else the one
    called `version`, else the newest complete one in the inbox.

    :param dataset: name of the dataset, as in the manifests.
    :param inbox: directory with one directory per version.
    :param version: name of the version's directory; None or empty for the newest.
    :param repeat: work on the version although another run has it, for instance every night.
    """

    template_fields = ("dataset", "inbox", "version", "repeat")
    ui_color = "#fdf3d8"

    def __init__(
        self,
        *,
        dataset: str,
        inbox: str,
        version: str | None = None,
        repeat: bool = False,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.inbox = inbox
        self.version = version
        self.repeat = repeat
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.data.snapshot import verify
        from airflow_mlops.ledger import datasets

        with airflow_errors():
            *superseded, newest = self._arrived(context) or [self._chosen()]
            run_id, dag_id = context["ti"].run_id, context["ti"].dag_id
            purpose = f"{dag_id}/{run_id}" if self.repeat else dag_id
            verify(newest)
            with contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
                datasets.claim(store, newest, purpose=purpose, run_id=run_id)
                for version in superseded:
                    self.log.info("%s %s is superseded by %s, which arrived before this run began.", self.dataset, version.name, newest.name)
                    with contextlib.suppress(DatasetAlreadyClaimed):  # an event that came twice: its first run has it, which is as good
                        datasets.claim(store, version, purpose=purpose, run_id=run_id)
            self.log.info("This run works on %s %s (%s) in %s.", newest.dataset, newest.name, newest.digest, newest.uri)
            return dict(to_data(newest))

    def _arrived(self, context: Context) -> list[DatasetVersion]:
        events = [event for events in (context.get("triggering_asset_events") or {}).values() for event in events]
        payloads = [event.extra["payload"] for event in sorted(events, key=lambda event: event.timestamp) if "payload" in event.extra]
        return list({version.digest: version for version in map(version_of, payloads)}.values())

    def _chosen(self) -> DatasetVersion:
        from airflow_mlops.data.arrival import scan
        from airflow_mlops.data.snapshot import open_version

        if self.version:
            return open_version(Path(self.inbox) / self.version)
        complete = [(c.changed_at, c.version) for c in scan(Path(self.inbox)) if c.version and c.version.dataset == self.dataset]
        if not complete:
            raise DatasetNotFound(f"{self.inbox} holds no complete version of {self.dataset!r}; publish one there, its manifest.json last.")
        return max(complete, key=lambda found: found[0])[1]
