from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from airflow_mlops.ledger import datasets, messages
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.notifications.slack import escaped
from airflow_mlops.results import DatasetVersion
from tests.unit.ui.conftest import Reader

HOSTILE = "<script>alert(1)</script>"
V1 = DatasetVersion(dataset="digits", name="v1", digest="sha256:" + "ab" * 32, uri="/inbox/v1")


def test_a_stranger_sees_nothing_but_the_icon(anonymous: TestClient) -> None:
    assert anonymous.get("/").status_code == 401
    assert anonymous.get("/reports/runs/dag/a.html").status_code == 401
    assert "Log in" in anonymous.get("/").text
    for page in ("/docs", "/redoc", "/openapi.json"):
        assert anonymous.get(page).status_code == 404
    icon = anonymous.get("/static/icon.svg")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")


def test_an_empty_ledger_says_what_to_do_first(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "/srv/inbox/v1/" in page.text
    assert "manifest.json" in page.text


def test_a_version_links_to_the_run_that_took_it_and_out_of_the_iframe(client: TestClient, store: Store) -> None:
    datasets.announce(store, V1)
    datasets.claim(store, V1, purpose="digits_on_dataset", run_id="asset__2026-01-01T00:00:00+00:00")
    page = client.get("/").text
    assert '<a href="../dags/digits_on_dataset/runs/asset__2026-01-01T00%3A00%3A00%2B00%3A00" target="_top">' in page
    assert ">abababababab</code>" in page


def test_a_repeated_run_is_shown_under_its_dag(client: TestClient, store: Store) -> None:
    datasets.announce(store, V1)
    datasets.claim(store, V1, purpose="digits_nightly/scheduled__1", run_id="scheduled__1")
    assert '<a href="../dags/digits_nightly/runs/scheduled__1" target="_top">digits_nightly</a>' in client.get("/").text


def test_a_version_that_was_taken_by_hand_is_shown_although_nobody_announced_it(client: TestClient, store: Store) -> None:
    datasets.claim(store, V1, purpose="digits_on_dataset", run_id="manual__1")
    page = client.get("/").text
    assert "taken before it was announced" in page
    assert "/runs/manual__1" in page


def test_a_broken_version_says_why(client: TestClient, store: Store) -> None:
    datasets.announce_broken(store, "digits", "broken:v2", "v2", "part-1.csv is missing")
    page = client.get("/").text
    assert "part-1.csv is missing" in page
    assert "waiting for a run" not in page


def test_a_version_that_validation_rejected_says_why(client: TestClient, store: Store) -> None:
    datasets.announce(store, V1)
    datasets.claim(store, V1, purpose="digits_on_dataset", run_id="run 1")
    datasets.record_verdict(store, V1, rejected_because="pixel_3 goes up to 17")
    page = client.get("/").text
    assert ">rejected</span> pixel_3 goes up to 17" in page
    assert "/runs/run%201" in page


def test_releases_tell_what_was_replaced_and_what_failed(client: TestClient, store: Store) -> None:
    once(store, "plan:7", "plan-rollout", {"model": "digits", "version": 7}, lambda: {"previous": 41})
    with pytest.raises(ConnectionError):
        once(store, "switch:7", "switch", {"model": "digits", "version": 7}, _crash)
    page = client.get("/").text
    assert "<td>41</td>" in page
    assert page.count(">failed</span> ") == 1 and "the server went away" in page
    assert page.index(">serve</span>") < page.index(">begin rollout</span>")


def test_the_evidence_of_a_release_is_a_link_with_its_score(client: TestClient, store: Store) -> None:
    written = {"path": "/srv/workspace/evidence/digits_release/digits/7/manual__2026+00~3a00", "score": 0.5, "previous": 6}
    once(store, "evidence:7", "evidence", {"model": "digits", "version": 7}, lambda: written)
    page = client.get("/").text
    assert 'href="reports/evidence/digits_release/digits/7/manual__2026%2B00~3a00/index.html" target="_top">ML Test Score 0.5</a>' in page
    assert "<td>6</td>" in page


def test_only_the_latest_messages_are_shown(client: TestClient, store: Store) -> None:
    for number in range(21):
        messages.add(store, f"notify:{number}", "slack_api_default", "#mlops", {"text": f":rocket: *digits* message-{number}."})
    page = client.get("/").text
    assert "message-0." not in page
    assert page.index("★ <b>digits</b> message-20.") < page.index("message-1.")


def test_a_reader_of_one_dag_sees_its_rows_and_nothing_of_the_others(client: TestClient, store: Store, reader: Reader) -> None:
    """A row belongs to the DAG whose run wrote it; that the newest ones are others' hides none."""
    reader.readable, reader.assets = {"mine"}, False
    other = DatasetVersion(dataset="secret", name="s1", digest="sha256:" + "ef" * 32, uri="/inbox/s1")
    for version, dags in ((V1, ("mine", "theirs")), (other, ("theirs",))):
        datasets.announce(store, version)
        for dag_id in dags:
            datasets.claim(store, version, purpose=dag_id, run_id=f"run of {dag_id}")
    datasets.announce(store, DatasetVersion(dataset="secret", name="s2", digest="sha256:" + "12" * 32, uri="/inbox/s2"))
    once(store, "mine", "promote", {"model": "digits", "version": 1, "run": "mine/r"}, lambda: {"previous": None})
    once(store, "by hand", "promote", {"model": "hidden-model", "version": 1}, lambda: {"previous": None})
    messages.add(store, "note", "slack", "#mlops", {"text": "message of mine", "dag_id": "mine"})
    messages.add(store, "note by hand", "slack", "#mlops", {"text": "hidden-message"})
    for number in range(60):
        messages.add(store, f"n{number}", "slack", "#mlops", {"text": "hidden-message", "dag_id": "theirs"})
        once(store, f"p{number}", "promote", {"model": "hidden-model", "version": number, "run": "theirs/r"}, lambda: {"previous": None})
    page = client.get("/").text
    assert "message of mine" in page and "run of mine" in page and "<b>digits</b>" in page
    assert not [word for word in ("hidden", "secret", "theirs") if word in page]


def test_who_may_read_assets_sees_arrivals_but_no_verdict_of_a_dag_that_is_hidden(client: TestClient, store: Store, reader: Reader) -> None:
    reader.readable = {"other"}
    datasets.announce(store, V1)
    datasets.claim(store, V1, purpose="digits_on_dataset", run_id="run 1")
    datasets.record_verdict(store, V1, rejected_because="pixel_3 goes up to 17")
    page = client.get("/").text
    assert "abababababab" in page and "The reason is shown to who may read the DAG" in page
    assert not [word for word in ("pixel_3", "digits_on_dataset", "waiting for a run") if word in page]


def test_a_role_that_may_read_nothing_gets_an_explanation(client: TestClient, reader: Reader) -> None:
    reader.readable, reader.assets = set(), False
    answer = client.get("/")
    assert (answer.status_code, "may read no DAG" in answer.text) == (403, True)


def test_the_page_names_the_services_it_speaks_of_and_no_credentials(client: TestClient, store: Store, connect: Callable[..., None]) -> None:
    connect("mlflow_default", "mlflow", host="http://ann:s3cret-word@mlflow.example.org", port=5000, password="s3cret-token")
    connect("tf_serving_default", "tf_serving", extra={"replicas": [{"grpc": "a:1"}, {"grpc": "b:1"}]})
    page = client.get("/").text
    section = page[page.index('<section id="services">') :]
    for words in ("<code>mlflow_default</code>", "http://mlflow.example.org:5000", "2 replicas", "ledger.db", "outbox.jsonl"):
        assert words in section
    assert "s3cret" not in page
    connect("slack_api_default", "slack", password="s3cret-slack")
    section = client.get("/").text.partition('<section id="services">')[2]
    assert "Slack" in section and "outbox.jsonl" not in section


def test_hostile_names_stay_words(client: TestClient, store: Store) -> None:
    version = DatasetVersion(dataset=HOSTILE, name=HOSTILE, digest="sha256:" + "cd" * 32, uri="/inbox/x")
    datasets.announce(store, version)
    datasets.announce_broken(store, HOSTILE, "k", HOSTILE, HOSTILE)
    datasets.claim(store, version, purpose=HOSTILE, run_id='"><script>')
    once(store, "p", "promote", {"model": HOSTILE, "version": 1}, lambda: {"previous": HOSTILE})
    messages.add(store, "n", HOSTILE, HOSTILE, {"text": f"`{escaped(HOSTILE)}` *{HOSTILE}* {escaped('&lt;')}"})
    messages.send(store, HOSTILE, HOSTILE, lambda waiting: messages.Delivery(HOSTILE))
    page = client.get("/").text
    assert "alert(1)" in page
    assert "<script>" not in page
    assert "&amp;amp;" not in page  # what Slack needs escaped is shown as it was
    assert "&amp;lt;" in page


def test_the_page_runs_no_script_but_its_own(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        ('{"conn_type": "mlops_ledger", "schema": "/no/such/directory/ledger.db"}', "unable to open database file"),
        ('{"conn_type": "mlops_ledger", "schema": "x", "host": "127.0.0.1", "port": 1, "extra": {"driver": "nosuchdb"}}', "nosuchdb"),
        (None, "mlops_ledger_default"),
    ],
)
def test_a_ledger_that_cannot_be_read_is_a_sentence(client: TestClient, monkeypatch: pytest.MonkeyPatch, connection: str | None, words: str) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT")
    if connection:
        monkeypatch.setenv("AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT", connection)
    page = client.get("/")
    assert page.status_code == 503
    assert words in page.text
    assert "Traceback" not in page.text


def test_a_file_that_is_no_database_is_a_sentence(client: TestClient, home: Path) -> None:
    (home / "ledger.db").write_bytes(b"not a database at all" * 100)
    page = client.get("/")
    assert (page.status_code, "not a database" in page.text) == (503, True)


def _crash() -> dict[str, int]:
    raise ConnectionError("the server went away")
