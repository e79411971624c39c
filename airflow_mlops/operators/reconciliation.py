"""Compare what ledger, registry and model servers say of every model: repair what is safe, and tell people the rest, once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.tf_serving import TFServingHook

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.store import Store
    from airflow_mlops.registry.reconciliation import Difference


class ReconcileModelsOperator(BaseOperator):
    """Repair aliases that do not say what the ledger says; fail, without a retry, when something new needs a person.

    A difference fails one run. While it stays, further runs succeed and name it in ``reported``; when it comes back, it is new again. Returns
    ``{"repaired": [...], "reported": [...], "headline": ...}``, each difference a sentence with its model.

    :param version_label: version label that clients ask for.
    :param tf_serving_conn_id: connection of type ``tf_serving``; None where no model server is to be compared.
    """

    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        version_label: str = "stable",
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        tf_serving_conn_id: str | None = TFServingHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.version_label = version_label
        self.mlflow_conn_id = mlflow_conn_id
        self.tf_serving_conn_id = tf_serving_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.registry.reconciliation import untold

        ti = context["ti"]
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            found = self._compare(store, functools.partial(_still_runs, ti))
            repaired = [str(difference) for difference in found if difference.repaired]
            reported = [str(difference) for difference in found if not difference.repaired]
            new = untold(store, f"reconcile:{ti.dag_id}:{ti.task_id}", reported)
        for difference in found:
            self.log.warning("%s %s", "Repaired:" if difference.repaired else "Needs a person:", difference)
        if new:
            raise AirflowFailException("Needs a person. " + " ".join(new))
        headline = f"{len(repaired)} repaired, {len(reported)} told before and still there" if found else "ledger, registry and servers agree"
        self.log.info("%s", headline)
        return {"repaired": repaired, "reported": reported, "headline": headline}

    def _compare(self, store: Store, runs: Callable[[str], bool]) -> list[Difference]:
        from airflow_mlops.ledger.store import now
        from airflow_mlops.registry.reconciliation import Difference, reconcile

        at, served, broken = now(), {}, []
        for model, (version, problem) in self._served(store).items():
            if problem:
                broken.append(Difference(model, problem, repaired=False))
            else:
                served[model] = version
        return reconcile(store, MlflowHook(self.mlflow_conn_id).get_conn(), served, at=at, runs=runs) + broken

    def _served(self, store: Store) -> dict[str, tuple[int | None, str]]:
        """Return for every model of the ledger the version that clients get, and why not all get it."""
        from airflow_mlops.ledger import champions
        from airflow_mlops.serving.served import look

        if self.tf_serving_conn_id is None:
            return {}
        hook = TFServingHook(self.tf_serving_conn_id)
        config_path = Path(hook.extra("config_path"))
        with hook.get_conn() as fleet:
            return {model: look(fleet, config_path, model, self.version_label) for model in champions.models(store)}


def _still_runs(ti: Any, release: str) -> bool:
    """Return whether Airflow has yet to end the run that `release` (``DAG id/run id``) is."""
    dag_id, _, run_id = release.partition("/")
    return bool(ti.get_dr_count(dag_id=dag_id, run_ids=[run_id], states=["queued", "running"]))
