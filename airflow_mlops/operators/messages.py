"""Send the messages that are still waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.messages import deliver

if TYPE_CHECKING:
    from airflow.sdk import Context


class DeliverMessagesOperator(BaseOperator):
    """Send every message that waits, in the order of each channel; what Slack still does not take keeps waiting and fails nothing.

    Returns ``{"sent": N, "waiting": N, "headline": ...}``.
    """

    ui_color = "#fdf3d0"

    def __init__(self, *, ledger_conn_id: str = MlopsLedgerHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.ledger import messages

        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            sent = sum(deliver(store, messenger, channel) for messenger, channel in messages.waiting(store))
            waiting = sum(messages.waiting(store).values())
        headline = f"{sent} messages sent, {waiting} wait"
        self.log.info("%s", headline)
        return {"sent": sent, "waiting": waiting, "headline": headline}
