"""Wait inside a DAG until a model server serves a version, whoever brings it there."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, conf
from airflow.sdk.exceptions import AirflowSensorTimeout

from airflow_mlops.exceptions import ServingError
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.triggers.tf_serving import TFServingModelAvailableTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class TFServingModelAvailableSensor(BaseSensorOperator):
    """Wait until a version of a model is AVAILABLE on every replica of the model server.

    A replica that does not answer is waited for until the sensor's `timeout`.

    :param model: name of the model.
    :param version: its version: a whole number, or its decimal text, as a template renders it.
    :param fail_on_load_error: fail at once, with the server's words, when a replica could not load the version; a server gives a version up for
        good. Set it to false where somebody repairs the version and has it loaded anew meanwhile.
    :param deferrable: wait in the triggerer, where a wait costs no worker; by default what ``[operators] default_deferrable`` says.
    """

    template_fields = ("model", "version")
    ui_color = "#e2f4e4"

    def __init__(
        self,
        *,
        model: str,
        version: int | str,
        fail_on_load_error: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        tf_serving_conn_id: str = TFServingHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.version = version
        self.fail_on_load_error = fail_on_load_error
        self.deferrable = deferrable
        self.tf_serving_conn_id = tf_serving_conn_id

    def execute(self, context: Context) -> Any:
        if self.deferrable:
            trigger = TFServingModelAvailableTrigger(
                model=self.model,
                version=self.version,
                deadline=time.time() + self.timeout,
                tf_serving_conn_id=self.tf_serving_conn_id,
                poll_interval_seconds=self.poke_interval,
                fail_on_load_error=self.fail_on_load_error,
            )
            self.defer(trigger=trigger, method_name="execute_complete")
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Fail with the `reason` in the trigger's `event`, if there is one."""
        if event["timed_out"]:
            raise AirflowSensorTimeout(event["reason"])
        with airflow_errors():
            if event["reason"]:
                raise ServingError(event["reason"])
        self.log.info("Version %s of %s is AVAILABLE on every replica.", self.version, self.model)

    def poke(self, context: Context) -> bool:
        from airflow_mlops.serving import availability

        with airflow_errors(), TFServingHook(self.tf_serving_conn_id).get_conn() as fleet:
            version = availability.version_number(self.version)
            # Whether it has waited too long, Airflow decides in this mode.
            action = availability.decide(fleet.statuses(self.model), version, 0.0, math.inf, fail_on_load_error=self.fail_on_load_error)
            if isinstance(action, availability.Fail):
                raise ServingError(action.reason)
        if isinstance(action, availability.Wait):
            self.log.info("Waiting: %s.", action.reason)
        return isinstance(action, availability.Available)
