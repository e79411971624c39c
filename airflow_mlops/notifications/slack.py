"""Messages to people, one per transition: through Slack when its connection exists, else into an outbox file.

A message that can not be delivered never stops a pipeline; it is written to the outbox with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier, conf
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mlops.artifacts import bytes_digest
from airflow_mlops.exceptions import LedgerError, SpecError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import workspace

if TYPE_CHECKING:
    from airflow.sdk import Context


class PipelineNotifier(BaseNotifier):
    """Send `text` once for this try of this task: a try that is killed between sending and remembering sends it again.

    :param text: Slack's mrkdwn; a template.
    :param channel: Slack channel, used when `slack_conn_id` exists.
    :param slack_conn_id: connection of type ``slack``; without it messages go to ``[mlops] outbox``.
    """

    template_fields = ("text", "channel")

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

    def notify(self, context: Context) -> None:
        from airflow_mlops.ledger.journal import once

        ti = context["ti"]
        message = {"channel": self.channel, "text": self.text, "link": self.link(context), "dag_id": ti.dag_id, "run_id": ti.run_id}
        key = f"notify:{ti.dag_id}:{ti.run_id}:{ti.task_id}:{ti.map_index}:{ti.try_number}:{bytes_digest(self.text.encode())}"
        try:
            with contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
                once(store, key, "notify", {"text": self.text}, lambda: self._deliver(message))
        except (LedgerError, SpecError, AirflowNotFoundException) as error:  # two messages are better than none
            self.log.warning("%s Sending the message without remembering it.", error)
            self._deliver(message)

    def link(self, context: Context) -> str | None:
        """Return the address a reader should open, or None."""
        return None

    def _deliver(self, message: Mapping[str, Any]) -> dict[str, str]:
        from airflow.providers.slack.hooks.slack import SlackHook

        try:
            hook = SlackHook(slack_conn_id=self.slack_conn_id, timeout=10)
            hook.call("chat.postMessage", json={"channel": message["channel"], "text": message["text"], "blocks": _blocks(message)})
        except AirflowNotFoundException:
            return self._to_outbox(message)
        except Exception as error:  # whatever it is: a question that can not be posted must still be asked in Airflow
            self.log.warning("Slack did not take the message (%s); it is in the outbox.", error)
            return self._to_outbox({**message, "problem": str(error)})
        return {"sent_to": f"Slack {message['channel']}"}

    def _to_outbox(self, message: Mapping[str, Any]) -> dict[str, str]:
        outbox = Path(conf.get("mlops", "outbox", fallback="") or workspace() / "outbox.jsonl")
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **message}, ensure_ascii=False) + "\n"
        try:
            outbox.parent.mkdir(parents=True, exist_ok=True)
            with outbox.open("ab", buffering=0) as stream:
                stream.write(line.encode())  # one write: lines of several processes do not mix
        except OSError as error:
            self.log.error("The outbox %s can not be written (%s); the message was: %s", outbox, error, line)
            return {"sent_to": "the task's log"}
        return {"sent_to": str(outbox)}


class ApprovalNotifier(PipelineNotifier):
    """Post the question of an `ApprovalOperator` with the link under which a person answers it in Airflow."""

    def link(self, context: Context) -> str | None:
        from airflow.providers.standard.operators.hitl import HITLOperator

        try:
            return HITLOperator.generate_link_to_ui_from_context(context=context)
        except ValueError as error:
            self.log.warning("The question is posted without a link to it (%s). Expected the API server's address: set [api] base_url.", error)
            return None


def _blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "mrkdwn", "text": message["text"][:3000]}}]
    if message["link"]:
        button = {"type": "button", "text": {"type": "plain_text", "text": "Review"}, "url": message["link"]}
        blocks.append({"type": "actions", "elements": [button]})
    return blocks
