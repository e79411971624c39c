"""Wait inside a DAG until an alias of a model in MLflow is where it should be, whoever moves it there."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue, conf
from airflow.sdk.exceptions import AirflowSensorTimeout

from airflow_mlops.exceptions import RegistryError
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.registry.base import CHAMPION
from airflow_mlops.triggers.mlflow import MlflowModelAliasTrigger, ask

if TYPE_CHECKING:
    from airflow.sdk import Context


class MlflowModelAliasSensor(BaseSensorOperator):
    """Wait until a version of a model has an alias, and return ``{"model": ..., "alias": ..., "version": ...}``.

    An MLflow that does not answer, and a model that does not exist yet, are waited for until the sensor's `timeout`.

    :param model: the registered model.
    :param alias: its alias, for instance ``champion``.
    :param version: version that must have it: a whole number or its decimal text; empty for any.
    :param changed: wait until the alias is on another version than at this run's first look; the ledger keeps that, also for later tries.
    :param deferrable: wait in the triggerer, where a wait costs no worker; by default what ``[operators] default_deferrable`` says.
    """

    template_fields = ("model", "alias", "version")
    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        model: str,
        alias: str = CHAMPION,
        version: int | str | None = None,
        changed: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.alias = alias
        self.version = version
        self.changed = changed
        self.deferrable = deferrable
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> Any:
        if self.deferrable:
            trigger = MlflowModelAliasTrigger(
                model=self.model,
                alias=self.alias,
                version=self.version,
                since=self._since(context),
                deadline=time.time() + self.timeout,
                mlflow_conn_id=self.mlflow_conn_id,
                ledger_conn_id=self.ledger_conn_id,
                poll_interval_seconds=self.poke_interval,
            )
            self.defer(trigger=trigger, method_name="execute_complete")
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Return the version in the trigger's `event`, or fail with its `reason`."""
        if event["timed_out"]:
            raise AirflowSensorTimeout(event["reason"])
        with airflow_errors():
            if event["reason"]:
                raise RegistryError(event["reason"])
        return self._found(event["version"])

    def poke(self, context: Context) -> PokeReturnValue:
        from airflow_mlops.registry import aliases

        with airflow_errors():
            wish = aliases.Wish(self.model, self.alias, aliases.version_of(self.version), self._since(context))
            mlflow = MlflowHook.get_connection(self.mlflow_conn_id)
            ledger = MlopsLedgerHook.get_connection(self.ledger_conn_id) if self.changed else None
            # Whether it has waited too long, Airflow decides in this mode.
            action = aliases.decide(wish, ask(wish, mlflow, ledger), 0.0, math.inf)
        if isinstance(action, aliases.Reached):
            return PokeReturnValue(is_done=True, xcom_value=self._found(action.version))
        self.log.info("Waiting: %s.", action.reason.rstrip("."))
        return PokeReturnValue(is_done=False)

    def _since(self, context: Context) -> str | None:
        ti = context["ti"]
        return f"alias-seen:{ti.dag_id}:{ti.run_id}:{ti.task_id}:{ti.map_index}" if self.changed else None

    def _found(self, version: int) -> dict[str, Any]:
        self.log.info("Alias %r of %s is on version %d.", self.alias, self.model, version)
        return {"model": self.model, "alias": self.alias, "version": version}
