from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from airflow_mlops.hooks.workspace import report_url
from tests.unit.ui.conftest import Reader


@pytest.fixture
def runs(home: Path) -> Path:
    (home / "secret.html").write_text("secret")
    (home / "workspace" / "outbox.jsonl").write_text("secret")
    runs = home / "workspace" / "runs"
    (runs / "dag" / ".hidden").mkdir(parents=True)
    (runs / "dag" / "report.html").write_text("<h1>Robüst</h1>", encoding="utf-8")
    (runs / "dag" / ".env").write_text("secret")
    (home / "workspace" / "evidence" / "dag" / "digits" / "1-r").mkdir(parents=True)
    (home / "workspace" / "evidence" / "dag" / "digits" / "1-r" / "model_card.md").write_text("# Card")
    (home / "workspace" / "evidence" / "dag" / "out.html").symlink_to(home / "secret.html")
    (runs / "dag" / ".hidden" / "page.html").write_text("secret")
    (runs / "dag" / "out.html").symlink_to(home / "secret.html")
    (runs / "dag" / "up").symlink_to(home)
    (runs / "dag" / "circle").symlink_to(runs / "dag" / "circle")
    (runs / "dag" / "inside.html").symlink_to(runs / "dag" / ".env")
    return runs


@pytest.mark.parametrize(
    "path",
    [
        "runs/dag/missing.html",
        "runs/dag",
        "runs/dag/",
        "runs",
        "",
        "outbox.jsonl",
        "runs/../outbox.jsonl",
        "runs/%2e%2e/outbox.jsonl",
        "runs%2f%2e%2e%2foutbox.jsonl",
        "runs/%252e%252e/outbox.jsonl",
        "runs/dag/..%5c..%5c..%5cworkspace%5coutbox.jsonl",
        "runs/dag/%2e%2e/%2e%2e/%2e%2e/secret.html",
        "%2fetc/passwd",
        "/etc/passwd",
        "/runs/dag/report.html",
        "runs/dag/report.html%00.png",
        "runs/dag/%00",
        "runs/" + "a" * 5000,
        "runs/dag/.env",
        "runs/dag/.hidden/page.html",
        "runs/dag/out.html",
        "runs/dag/up/secret.html",
        "runs/dag/circle",
        "runs/dag/inside.html",
        "evidence",
        "evidence/dag/out.html",
        "evidence/../outbox.jsonl",
        "evidence/dag/../../outbox.jsonl",
        "models/dag/report.html",
        "~/dag/report.html",
        "runs/~/report.html",
    ],
)
def test_nothing_but_a_plain_file_of_a_run_is_sent(client: TestClient, runs: Path, path: str) -> None:
    answer = client.get(f"/reports/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text.replace("secret.html", "")


def test_a_report_is_sent_and_its_scripts_are_nobody(client: TestClient, runs: Path) -> None:
    answer = client.get("/reports/runs/dag/report.html")
    assert (answer.status_code, answer.text) == (200, "<h1>Robüst</h1>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "sandbox allow-scripts" in policy
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy and "http" not in policy


@pytest.mark.parametrize(
    ("name", "status"), [("page.html", 200), ("model.keras", 403), ("spec.json", 403), ("saved_model.pb", 403), ("notes.txt", 403)]
)
def test_who_may_only_read_a_dag_gets_its_pages_and_no_model(client: TestClient, runs: Path, reader: Reader, name: str, status: int) -> None:
    reader.readable, reader.editable = {"dag"}, {"other"}
    (runs / "dag" / name).write_text("content")
    answer = client.get(f"/reports/runs/dag/{name}")
    assert (answer.status_code, answer.text == "content") == (status, status == 200)
    assert client.get("/reports/evidence/dag/digits/1-r/model_card.md").status_code == 200


@pytest.mark.parametrize(
    "path", ["runs/dag/report.html", "runs/dag/missing.html", "evidence/dag/digits/1-r/model_card.md", "runs/other/../dag/report.html"]
)
def test_who_may_not_read_a_dag_learns_nothing_of_its_files(client: TestClient, runs: Path, reader: Reader, path: str) -> None:
    reader.readable = {"other"}
    answer = client.get(f"/reports/{path.replace('..', '%2e%2e')}")
    assert answer.status_code in (403, 404)
    assert "Robüst" not in answer.text and "Card" not in answer.text


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("page.HTML", "text/html; charset=utf-8"),
        ("result.json", "application/json"),
        ("recipes.jsonl", "text/plain; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("drawing.svg", "image/svg+xml"),
        ("picture.png", "image/png"),
    ],
)
def test_a_known_kind_of_file_is_shown(client: TestClient, runs: Path, name: str, media_type: str) -> None:
    (runs / "dag" / name).write_text("x")
    answer = client.get(f"/reports/runs/dag/{name}")
    assert (answer.headers["content-type"], answer.headers.get("content-disposition")) == (media_type, None)


def test_any_other_file_is_a_download(client: TestClient, runs: Path) -> None:
    (runs / "dag" / "model.keras").write_bytes(b"x")
    answer = client.get("/reports/runs/dag/model.keras")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="model.keras"'


def test_the_address_that_a_task_links_to_is_answered(client: TestClient, runs: Path) -> None:
    page = runs / "dag" / "asset__2026-01-01T00_00+00_00" / "ä ?# +.html"
    page.parent.mkdir()
    page.write_text("found")
    assert client.get(report_url(page).removeprefix("/mlops")).text == "found"


def test_a_workspace_behind_a_link_is_still_served(client: TestClient, runs: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "link").symlink_to(home / "workspace")
    monkeypatch.setenv("AIRFLOW__MLOPS__WORKSPACE", str(home / "link"))
    assert client.get("/reports/runs/dag/report.html").status_code == 200


def test_a_file_of_an_evidence_pack_is_shown(client: TestClient, runs: Path) -> None:
    answer = client.get("/reports/evidence/dag/digits/1-r/model_card.md")
    assert (answer.status_code, answer.text) == (200, "# Card")
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_missing_report_says_so_in_words_that_are_escaped(client: TestClient, runs: Path) -> None:
    answer = client.get("/reports/runs/dag/<script>alert(1)</script>.html")
    assert "Reports are removed with their run" in answer.text
    assert "<script>alert" not in answer.text
