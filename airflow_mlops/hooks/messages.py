"""Delivers the ledger's messages: through Slack where its connection exists, else into the outbox file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from slack_sdk.errors import SlackApiError
from slack_sdk.http_retry.builtin_handlers import ConnectionErrorRetryHandler
from slack_sdk.http_retry.handler import RetryHandler

from airflow_mlops.hooks.workspace import workspace

if TYPE_CHECKING:
    from slack_sdk.http_retry.request import HttpRequest
    from slack_sdk.http_retry.response import HttpResponse
    from slack_sdk.http_retry.state import RetryState

    from airflow_mlops.ledger.messages import Delivery, Waiting
    from airflow_mlops.ledger.store import Store

log = logging.getLogger(__name__)
TIMEOUT_SECONDS = 10
LONGEST_WAIT_SECONDS = 10  # within a task; what Slack wants to wait for longer is sent later
AGAIN_AFTER = timedelta(seconds=30)
KEPT = timedelta(days=7)  # what could not be sent for so long is in the outbox alone
# Slack's words for a message that it will never take, however often it is sent.
MALFORMED = frozenset(
    ("invalid_blocks", "invalid_blocks_format", "metadata_too_large", "msg_blocks_too_long", "msg_too_long", "no_text", "too_many_attachments")
)
LONGEST_SECTION = 3000  # characters; Slack refuses longer ones


class PatientRetryHandler(RetryHandler):
    """Tries again after 429 and 5xx: when ``Retry-After`` says, else after 1 and 2 seconds, but waits no longer than a task should."""

    def _can_retry(self, *, state: RetryState, request: HttpRequest, response: HttpResponse | None = None, error: Exception | None = None) -> bool:
        if response is None or not (response.status_code == 429 or response.status_code >= 500):
            return False
        return retry_after(response.headers, default=0.0) <= LONGEST_WAIT_SECONDS

    def prepare_for_next_attempt(
        self, *, state: RetryState, request: HttpRequest, response: HttpResponse | None = None, error: Exception | None = None
    ) -> None:
        import time

        time.sleep(retry_after(response.headers if response else {}, default=2.0**state.current_attempt))
        state.next_attempt_requested = True
        state.increment_current_attempt()


def retry_after(headers: Mapping[str, Any], *, default: float) -> float:
    """Return the seconds that the header ``Retry-After`` of an answer asks for."""
    for name, value in headers.items():
        if name.lower() == "retry-after":
            first = value[0] if isinstance(value, list) else value
            return float(first) if str(first).isdigit() else default
    return default


def deliver(store: Store, slack_conn_id: str, channel: str) -> int:
    """Send every message that waits for `channel`, the oldest first; return how many were sent."""
    from airflow_mlops.ledger import messages

    return messages.send(store, slack_conn_id, channel, lambda waiting: _attempt(waiting, slack_conn_id))


def deliver_unremembered(message: Mapping[str, Any], slack_conn_id: str) -> None:
    """Send one message that no ledger remembers."""
    from airflow_mlops.ledger.messages import Waiting

    _attempt(Waiting(0, message, datetime.now(UTC), None), slack_conn_id)


def _attempt(waiting: Waiting, slack_conn_id: str) -> Delivery:
    from airflow.providers.slack.hooks.slack import SlackHook

    from airflow_mlops.ledger.messages import Delivery

    retrying = [ConnectionErrorRetryHandler(), PatientRetryHandler(max_retry_count=2)]
    message = waiting.message
    try:
        hook = SlackHook(slack_conn_id=slack_conn_id, timeout=TIMEOUT_SECONDS, retry_handlers=retrying)
        hook.call("chat.postMessage", json=_post(waiting))
    except AirflowNotFoundException:
        return Delivery(_to_outbox(message))
    except Exception as error:  # whatever it is: a question that cannot be posted must still be asked in Airflow
        return _failed(waiting, error)
    return Delivery(f"Slack {message['channel']}")


def _failed(waiting: Waiting, error: Exception) -> Delivery:
    """Put the message into the outbox the first time it fails, and say whether it is tried again."""
    from airflow_mlops.ledger.messages import Delivery

    at, problem = datetime.now(UTC), str(error)
    code = error.response.get("error") if isinstance(error, SlackApiError) and not isinstance(error.response, str) else None
    final = code in MALFORMED or at - waiting.asked_at > KEPT
    kept = _to_outbox({**waiting.message, "problem": problem}) if waiting.problem is None or final else None
    if final:
        log.warning("Slack does not take the message (%s); it is in the outbox %s.", problem, kept)
        return Delivery(kept, problem)
    headers = error.response.headers if isinstance(error, SlackApiError) and not isinstance(error.response, str) else {}
    wait = timedelta(seconds=retry_after(headers, default=AGAIN_AFTER.total_seconds()))
    log.warning("Slack did not take the message (%s); it is sent with a later one, or when reconcile_models runs.", problem)
    return Delivery(None, problem, at + wait)


def outbox() -> Path:
    """Return the file of the messages that no messenger took: configuration ``[mlops] outbox``."""
    return Path(conf.get("mlops", "outbox", fallback="") or workspace() / "outbox.jsonl")


def _to_outbox(message: Mapping[str, Any]) -> str:
    path = outbox()
    line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **message}, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as stream:
            stream.write(line.encode())  # one write: lines of several processes do not mix
    except OSError as error:
        log.error("The outbox %s cannot be written (%s); the message was: %s", path, error, line)
        return "the task's log"
    return str(path)


def _post(waiting: Waiting) -> dict[str, Any]:
    """Return the arguments of ``chat.postMessage``; what looks like a link in the text stays text, for it may come from data."""
    message = waiting.message
    late = f"_Delayed, from {waiting.asked_at:%Y-%m-%d %H:%M} UTC:_ " if waiting.problem is not None else ""
    text = late + message["text"]
    blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "mrkdwn", "text": shortened(text), "verbatim": True}}]
    if message["link"]:
        button = {"type": "button", "text": {"type": "plain_text", "text": message["button"]}, "url": message["link"]}
        blocks.append({"type": "actions", "elements": [button]})
    quiet = {"parse": "none", "link_names": False, "unfurl_links": False, "unfurl_media": False}
    return {"channel": message["channel"], "text": text, "blocks": blocks, **quiet}


def shortened(text: str) -> str:
    """Return `text` as one section holds it, cut between its characters and not inside an escaped one."""
    if len(text) <= LONGEST_SECTION:
        return text
    cut = text[: LONGEST_SECTION - 1]
    start = cut.rfind("&")
    return (cut[:start] if start >= 0 and ";" not in cut[start:] else cut) + "…"
