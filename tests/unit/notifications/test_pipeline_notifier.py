"""One message per transition: to Slack if it is there, into the outbox otherwise, and never an error for the pipeline."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from typing import Any
from urllib.parse import parse_qs, quote

import pytest

from airflow_mlops.ledger import messages
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import MESSAGES
from airflow_mlops.notifications.slack import ApprovalNotifier, PipelineNotifier
from airflow_mlops.operators.messages import DeliverMessagesOperator
from tests.fakes import FakeTaskInstance, context
from tests.servers import free_port

TOKEN = "xoxb-s3cret-token"
Connect = Callable[..., None]


class FakeSlack:
    """A server that takes Slack's ``chat.postMessage``; `posts` is what it was told.

    `answer` is what it says, after the `trouble`: answers of a status and headers that come first.
    """

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {"ok": True, "ts": "1.2", "channel": "C1"}
        self.trouble: list[tuple[int, dict[str, str]]] = []
        self.posts: list[dict[str, Any]] = []
        slack = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_json = self.headers["Content-Type"].startswith("application/json")
                data = json.loads(body) if is_json else {name: values[0] for name, values in parse_qs(body.decode()).items()}
                slack.posts.append({"path": self.path, "token": self.headers["Authorization"], **data})
                if slack.trouble:
                    status, headers = slack.trouble.pop(0)
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(b'{"ok": false, "error": "ratelimited"}' if status == 429 else b"<html>Bad gateway</html>")
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(slack.answer).encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/"


@pytest.fixture
def slack(connect: Connect) -> Iterator[FakeSlack]:
    fake = FakeSlack()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    connect("slack_api_default", "slack", password=TOKEN, extra={"base_url": fake.url})
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


@pytest.fixture(autouse=True)
def _ledger(ledger: Store, workspace: Path) -> None:
    """Every message is remembered in a ledger of the test's own."""


def outbox(workspace: Path) -> list[dict[str, Any]]:
    path = workspace / "outbox.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_without_slack_the_message_lies_in_the_outbox(workspace: Path) -> None:
    PipelineNotifier(text="digits *released*: ä")(context())
    (message,) = outbox(workspace)
    expected = {"text": "digits *released*: ä", "channel": "#mlops", "dag_id": FakeTaskInstance().dag_id, "run_id": FakeTaskInstance().run_id}
    assert {name: message[name] for name in expected} == expected
    assert "problem" not in message
    assert message["at"]


def test_the_outbox_can_be_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__MLOPS__OUTBOX", str(tmp_path / "else" / "messages.jsonl"))
    PipelineNotifier(text="hello")(context())
    assert "hello" in (tmp_path / "else" / "messages.jsonl").read_text()


def test_slack_gets_one_message_even_when_the_callback_runs_twice(slack: FakeSlack, workspace: Path) -> None:
    for _ in range(2):
        PipelineNotifier(text="digits *released*", channel="#models")(context())
    (post,) = slack.posts
    assert post["path"] == "/api/chat.postMessage"
    assert post["token"] == f"Bearer {TOKEN}"
    assert (post["channel"], post["text"]) == ("#models", "digits *released*")
    assert outbox(workspace) == []


def test_other_texts_tasks_and_runs_are_other_messages(slack: FakeSlack) -> None:
    PipelineNotifier(text="one")(context())
    PipelineNotifier(text="two")(context())
    PipelineNotifier(text="one")(context(FakeTaskInstance(task_id="other")))
    PipelineNotifier(text="one")(context(FakeTaskInstance(run_id="other")))
    PipelineNotifier(text="one")(context(FakeTaskInstance(map_index=0)))
    assert [post["text"] for post in slack.posts] == ["one", "two", "one", "one", "one"]


def test_one_notifier_for_all_tasks_of_a_dag_sends_each_its_own_text(slack: FakeSlack) -> None:
    shared = PipelineNotifier(text="{{ ti.task_id }} failed")
    for task_id in ("train", "evaluate"):
        shared(context(FakeTaskInstance(task_id=task_id)))
    assert [post["text"] for post in slack.posts] == ["train failed", "evaluate failed"]


def test_a_failure_after_a_clear_is_told_again(slack: FakeSlack) -> None:
    for try_number in (1, 2):
        PipelineNotifier(text="train failed")(context(FakeTaskInstance(try_number=try_number)))
    assert len(slack.posts) == 2


def test_a_message_for_an_outbox_that_cannot_be_written_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Store, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__MLOPS__OUTBOX", str(tmp_path))  # a directory
    PipelineNotifier(text="not lost")(context())
    assert "not lost" in caplog.text
    (message,) = messages.latest(ledger)
    assert (message.text, message.sent_to) == ("not lost", "the task's log")


def test_the_text_is_a_template(slack: FakeSlack) -> None:
    PipelineNotifier(text="*{{ ti.dag_id }}* has {{ params.n }} rows")(context(params={"n": 300}))
    assert slack.posts[0]["text"] == "*digits_on_dataset* has 300 rows"


def test_a_message_that_slack_refuses_is_kept_with_the_reason(slack: FakeSlack, workspace: Path) -> None:
    slack.answer = {"ok": False, "error": "channel_not_found"}
    PipelineNotifier(text="hello")(context())
    (message,) = outbox(workspace)
    assert "channel_not_found" in message["problem"]
    assert TOKEN not in json.dumps(message)


def test_a_slack_that_is_down_stops_nothing(connect: Connect, workspace: Path) -> None:
    connect("slack_api_default", "slack", password=TOKEN, extra={"base_url": f"http://127.0.0.1:{free_port()}/api/"})
    for _ in range(2):
        PipelineNotifier(text="hello")(context())
    (message,) = outbox(workspace)
    assert "refused" in message["problem"]


def test_an_answer_that_is_no_http_stops_nothing(connect: Connect, workspace: Path) -> None:
    class Stranger(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(b"220 a mail server\r\n")

    with TCPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.handle_request).start()
        connect("slack_api_default", "slack", password=TOKEN, extra={"base_url": f"http://127.0.0.1:{server.server_address[1]}/api/"})
        PipelineNotifier(text="hello")(context())
    (message,) = outbox(workspace)
    assert "a mail server" in message["problem"]


def test_a_slack_connection_without_a_token_stops_nothing(connect: Connect, workspace: Path) -> None:
    connect("slack_api_default", "slack")
    PipelineNotifier(text="hello")(context())
    assert len(outbox(workspace)) == 1


def test_a_ledger_that_does_not_answer_costs_the_memory_and_not_the_message(connect: Connect, workspace: Path) -> None:
    connect("mlops_ledger_default", "mlops_ledger", schema="/nowhere/at/all/ledger.db")
    for _ in range(2):
        PipelineNotifier(text="hello")(context())
    assert len(outbox(workspace)) == 2


def test_a_missing_ledger_connection_costs_no_message(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT")
    PipelineNotifier(text="hello")(context())
    assert len(outbox(workspace)) == 1


def test_lines_of_several_writers_do_not_mix(workspace: Path) -> None:
    def write(number: int) -> None:
        PipelineNotifier(text=f"{number}" * 500)(context(FakeTaskInstance(run_id=f"run {number}")))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(message["text"][0] for message in outbox(workspace)) == list("01234567")


def blocks_of(post: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = post["blocks"] if isinstance(post["blocks"], list) else json.loads(post["blocks"])
    return found


@pytest.mark.parametrize("base_url", ["http://airflow:8080", "https://example.org/team/airflow/"])
def test_a_message_has_a_button_that_opens_its_task_under_whatever_path_airflow_lives(
    slack: FakeSlack, monkeypatch: pytest.MonkeyPatch, base_url: str
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    PipelineNotifier(text="x")(context(FakeTaskInstance(run_id="manual__a/b?c#d 1+0:00", map_index=3)))
    _, actions = blocks_of(slack.posts[0])
    (button,) = actions["elements"]
    assert button["text"]["text"] == "Open task"
    run = "manual__a%2Fb%3Fc%23d%201%2B0%3A00"
    assert button["url"] == f"{base_url.rstrip('/')}/dags/digits_on_dataset/runs/{run}/tasks/train/mapped/3"


def test_a_message_that_is_too_long_is_cut_between_its_characters(slack: FakeSlack) -> None:
    PipelineNotifier(text="{{ exception }}")(context(exception="x" * 2996 + "<" * 100))
    section = blocks_of(slack.posts[0])[0]
    assert section["text"]["text"] == "x" * 2996 + "…"  # Slack refuses more than 3000 characters


@pytest.mark.parametrize("hostile", ["<!channel>", "<https://evil.example|Approve>", "<@U123>", "a & b", "&lt;!here&gt;"])
def test_text_from_data_mentions_no_one_and_links_nowhere(slack: FakeSlack, hostile: str) -> None:
    PipelineNotifier(text="<https://docs.example|Docs> {{ exception }} {{ [exception] }}")(context(exception=ValueError(hostile)))
    (post,) = slack.posts
    shown = hostile.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert post["text"].startswith(f"<https://docs.example|Docs> {shown} [ValueError(")
    assert post["text"].count("<") == 1  # that of the template
    assert (post["parse"], post["link_names"], post["unfurl_links"]) == ("none", False, False)
    assert blocks_of(post)[0]["text"] == {"type": "mrkdwn", "text": post["text"], "verbatim": True}


@pytest.mark.parametrize("trouble", [[(429, {"Retry-After": "0"})], [(503, {"Retry-After": "0"}), (502, {"Retry-After": "0"})]])
def test_slack_is_asked_again_when_it_is_busy_or_broken(slack: FakeSlack, workspace: Path, trouble: list[tuple[int, dict[str, str]]]) -> None:
    slack.trouble = list(trouble)
    PipelineNotifier(text="hello")(context())
    assert len(slack.posts) == len(trouble) + 1
    assert outbox(workspace) == []


def again_now(store: Store) -> None:
    """Let the time pass that a messenger wants to be left alone."""
    with store.transaction() as connection:
        connection.execute(MESSAGES.update().where(MESSAGES.c.not_before.is_not(None)).values(not_before=datetime(2020, 1, 1, tzinfo=UTC)))


def test_a_task_does_not_wait_for_a_slack_that_wants_a_minute(slack: FakeSlack, workspace: Path, ledger: Store) -> None:
    slack.trouble = [(429, {"Retry-After": "60"})]
    PipelineNotifier(text="one")(context())
    PipelineNotifier(text="two")(context())  # within that minute Slack is left alone
    assert [post["text"] for post in slack.posts] == ["one"]
    assert [message["text"] for message in outbox(workspace)] == ["one"]
    assert messages.waiting(ledger) == {("slack_api_default", "#mlops"): 2}


def test_what_slack_did_not_take_is_sent_later_and_in_order(slack: FakeSlack, workspace: Path, ledger: Store) -> None:
    slack.answer = {"ok": False, "error": "not_in_channel"}
    for text in ("one", "two"):
        PipelineNotifier(text=text)(context())
        again_now(ledger)
    assert {post["text"].split()[-1] for post in slack.posts} == {"one"}  # a message waits for the one before it
    PipelineNotifier(text="elsewhere", channel="#other")(context())
    again_now(ledger)
    slack.answer = {"ok": True}
    del slack.posts[:]
    PipelineNotifier(text="three")(context())
    assert [post["text"].split()[-1] for post in slack.posts] == ["one", "two", "three"]
    assert slack.posts[0]["text"].startswith("_Delayed, from 20")
    assert slack.posts[2]["text"] == "three"
    assert messages.waiting(ledger) == {("slack_api_default", "#other"): 1}
    assert [message["text"] for message in outbox(workspace)] == ["one", "elsewhere"]


def test_a_question_of_an_approval_is_sent_by_the_reconciliation_when_nothing_else_happens(slack: FakeSlack, ledger: Store) -> None:
    slack.trouble = [(500, {})] * 3
    ApprovalNotifier(text="release?")(context())
    again_now(ledger)
    answer = DeliverMessagesOperator(task_id="deliver").execute(context())
    assert (answer["sent"], answer["waiting"]) == (1, 0)
    assert slack.posts[-1]["text"].endswith("release?")
    assert DeliverMessagesOperator(task_id="deliver").execute(context())["sent"] == 0


def test_a_message_that_slack_never_takes_holds_up_no_other(slack: FakeSlack, workspace: Path, ledger: Store) -> None:
    slack.answer = {"ok": False, "error": "invalid_blocks"}
    PipelineNotifier(text="odd")(context())
    slack.answer = {"ok": True}
    PipelineNotifier(text="next")(context())
    assert [post["text"] for post in slack.posts] == ["odd", "next"]
    assert [message["text"] for message in outbox(workspace)] == ["odd"]


def test_a_message_that_waited_for_a_week_is_given_up(slack: FakeSlack, ledger: Store) -> None:
    slack.answer = {"ok": False, "error": "is_archived"}
    PipelineNotifier(text="old")(context())
    with ledger.transaction() as connection:
        connection.execute(MESSAGES.update().values(asked_at=datetime(2020, 1, 1, tzinfo=UTC), not_before=None))
    DeliverMessagesOperator(task_id="deliver").execute(context())
    assert messages.waiting(ledger) == {}


def test_messages_of_many_tasks_at_once_are_each_sent_once_and_one_at_a_time(slack: FakeSlack) -> None:
    def tell(number: int) -> None:
        PipelineNotifier(text=str(number))(context(FakeTaskInstance(run_id=f"run {number}")))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(post["text"]) for post in slack.posts) == list(range(12))


@pytest.mark.parametrize(("base_url", "place"), [("http://airflow:8080", "http://airflow:8080/dags/"), (None, None)])
def test_a_question_links_to_the_page_on_which_it_is_answered_and_is_posted_without_a_link_when_nobody_told_airflows_address(
    monkeypatch: pytest.MonkeyPatch, workspace: Path, base_url: str | None, place: str | None
) -> None:
    if base_url:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    ti = FakeTaskInstance(task_id="approve")
    ApprovalNotifier(text="release?")(context(ti))
    (message,) = outbox(workspace)
    assert message["text"] == "release?"
    assert message["link"] == (place and f"{place}{ti.dag_id}/runs/{quote(ti.run_id)}/tasks/approve/required_actions?map_index=-1")
