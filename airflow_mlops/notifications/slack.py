"""Messages to people, one per transition: through Slack when its connection exists, else into an outbox file.

A message that cannot be delivered never stops a pipeline: it is in the outbox with the reason, and is sent later, before those that follow it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mlops.artifacts import bytes_digest
from airflow_mlops.exceptions import LedgerError, SpecError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.messages import deliver, deliver_unremembered
from airflow_mlops.hooks.workspace import task_url

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


class PipelineNotifier(BaseNotifier):
    """Send `text` once for this try of this task: a try that is killed between sending and remembering sends it again.

    :param text: Slack's mrkdwn; a template, whose values are escaped, for they may come from data: only the template itself can link and mention.
    :param channel: Slack channel, used when `slack_conn_id` exists.
    :param slack_conn_id: connection of type ``slack``; without it messages go to ``[mlops] outbox``.
    """

    template_fields = ("text", "channel")
    button = "Open task"

    def __init__(
        self,
        text: str,
        channel: str = "#mlops",
        slack_conn_id: str = "slack_api_default",
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.text = text
        self.channel = channel
        self.slack_conn_id = slack_conn_id
        self.ledger_conn_id = ledger_conn_id

    def __call__(self, *args: Any) -> None:
        # Airflow renders a notifier in place, and one object serves every task of a DAG.
        super(PipelineNotifier, copy.copy(self)).__call__(*args)

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        """Render the templates, every value escaped."""
        environment = jinja_env or self.get_template_env(dag=context.get("dag"))
        super().render_template_fields(context, environment.overlay(finalize=escaped))

    def notify(self, context: Context) -> None:
        from airflow_mlops.ledger import messages

        ti = context["ti"]
        link = self.link(context)
        message = {"channel": self.channel, "text": self.text, "link": link, "button": self.button, "dag_id": ti.dag_id, "run_id": ti.run_id}
        key = f"notify:{ti.dag_id}:{ti.run_id}:{ti.task_id}:{ti.map_index}:{ti.try_number}:{bytes_digest(self.text.encode())}"
        try:
            with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
                messages.add(store, key, self.slack_conn_id, self.channel, message)
                deliver(store, self.slack_conn_id, self.channel)
        except (LedgerError, SpecError, AirflowNotFoundException) as error:  # two messages are better than none
            self.log.warning("%s Sending the message without remembering it.", error)
            deliver_unremembered(message, self.slack_conn_id)

    def link(self, context: Context) -> str | None:
        """Return the address a reader should open, or None where Airflow does not know its own."""
        return task_url(context)


class ApprovalNotifier(PipelineNotifier):
    """Post the question of an `ApprovalOperator` with the link under which a person answers it in Airflow."""

    button = "Review"

    def link(self, context: Context) -> str | None:
        if (page := task_url(context)) is None:
            self.log.warning("The question is posted without a link to it. Expected the API server's address: set [api] base_url.")
            return None
        return f"{page}/required_actions?map_index={context['ti'].map_index}"


def escaped(value: object) -> object:
    """Return a template's value so that Slack shows it and follows nothing in it; see Slack's "Escaping text"."""
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
