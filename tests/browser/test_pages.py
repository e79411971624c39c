"""The plugin's pages in a real browser, inside the iframe that Airflow's own UI puts around them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from playwright.sync_api import Browser, Page, expect

from airflow_mlops.ledger import datasets, messages
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import DatasetVersion
from airflow_mlops.ui.access import access_of
from airflow_mlops.ui.app import app
from tests.unit.ui.conftest import Reader

pytestmark = pytest.mark.slow

# The sandbox is the one that Airflow 3.3 gives to a plugin's page in its navigation.
AIRFLOW = """<!doctype html><html class="dark"><body>
<iframe src="/mlops/" sandbox="allow-scripts allow-same-origin allow-forms allow-downloads" width="1200" height="800"></iframe></body></html>"""
REPORT = """<!doctype html><title>report</title><p id="origin"></p><p id="cookie"></p><p id="answer"></p><script>
document.getElementById("origin").textContent = self.origin;
try { document.getElementById("cookie").textContent = document.cookie; } catch (e) { document.getElementById("cookie").textContent = e.name; }
fetch("/whoami", {credentials: "include"}).then((r) => r.text()).then((t) => "got " + t, () => "refused")
  .then((t) => { document.getElementById("answer").textContent = t; });
</script>"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that holds the plugin as Airflow's API server does, with one version, one release and one message."""
    home = tmp_path_factory.mktemp("home")
    _fill(home)
    server = uvicorn.Server(uvicorn.Config(_airflow(), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AIRFLOW__MLOPS__WORKSPACE", str(home / "workspace"))
        environment.setenv("AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT", f'{{"conn_type": "mlops_ledger", "schema": "{home}/ledger.db"}}')
        environment.setitem(app.dependency_overrides, get_user, lambda: object())
        environment.setitem(app.dependency_overrides, access_of, Reader)
        thread.start()
        try:
            yield f"http://127.0.0.1:{_port(server)}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails its test when the console shows an error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    page.close()
    assert problems == []


def test_the_overview_is_styled_and_tells_what_happened(page: Page, url: str) -> None:
    page.goto(f"{url}/mlops/")
    expect(page.locator("#datasets")).to_contain_text("digits v1")
    expect(page.locator("#releases tbody tr")).to_have_count(1)
    expect(page.locator("#messages")).to_contain_text("digits version 1 serves")
    assert page.locator("section").first.evaluate("e => getComputedStyle(e).borderRadius") == "10px"


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(246, 247, 249)"), ("dark", "rgb(15, 19, 24)")])
def test_the_page_follows_the_readers_colour_scheme(page: Page, url: str, scheme: str, ground: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(f"{url}/mlops/")
    expect(page.locator("body")).to_have_css("background-color", ground)


def test_inside_airflow_the_page_takes_its_colours_and_a_link_leaves_the_iframe(page: Page, url: str) -> None:
    page.goto(f"{url}/plugin/mlops")
    frame = page.frame_locator("iframe")
    expect(frame.locator("body")).to_have_css("background-color", "rgb(15, 19, 24)")
    page.evaluate("document.documentElement.className = 'light'")
    expect(frame.locator("body")).to_have_css("background-color", "rgb(246, 247, 249)")
    frame.get_by_role("link", name="digits_on_dataset").click()
    expect(page).to_have_url(re.compile(r"/dags/digits_on_dataset/runs/asset__2026-01-01T00%3A00%2B00%3A00$"))
    expect(page.locator("h1")).to_have_text("Run asset__2026-01-01T00:00+00:00")


def test_a_reports_scripts_run_without_an_identity_and_reach_nothing(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.context.add_cookies([{"name": "_token", "value": "secret", "url": url, "sameSite": "Lax"}])
    page.goto(f"{url}/whoami")
    expect(page.locator("body")).to_have_text("secret")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/mlops/reports/runs/dag/report.html")
    expect(page.locator("#origin")).to_have_text("null")
    expect(page.locator("#answer")).to_have_text("refused")
    expect(page.locator("#cookie")).to_have_text("SecurityError")
    assert [address for address in asked if "whoami" in address] == []
    page.close()


def _fill(home: Path) -> None:
    (home / "workspace" / "runs" / "dag").mkdir(parents=True)
    (home / "workspace" / "runs" / "dag" / "report.html").write_text(REPORT)
    version = DatasetVersion(dataset="digits", name="v1", digest="sha256:" + "ab" * 32, uri="/inbox/v1")
    store = Store(f"sqlite:///{home}/ledger.db")
    datasets.announce(store, version)
    datasets.claim(store, version, purpose="digits_on_dataset", run_id="asset__2026-01-01T00:00+00:00")
    once(store, "promote", "promote", {"model": "digits", "version": 1}, lambda: {"previous": None})
    messages.add(store, "notify", "slack_api_default", "#mlops", {"text": "digits version 1 serves"})
    store.close()


def _airflow() -> FastAPI:
    outer = FastAPI()
    outer.mount("/mlops", app)

    @outer.get("/plugin/mlops", response_class=HTMLResponse)
    def plugin() -> str:
        return AIRFLOW

    @outer.get("/dags/{dag_id}/runs/{run_id}", response_class=HTMLResponse)
    def run(dag_id: str, run_id: str) -> str:
        return f"<h1>Run {run_id}</h1>"

    @outer.get("/favicon.ico", status_code=204)
    def favicon() -> None:
        return None

    @outer.get("/whoami", response_class=PlainTextResponse)
    def whoami(request: Request) -> PlainTextResponse:
        # Allows every origin to read the answer: the sandbox alone must keep the cookie back.
        allowed = {"Access-Control-Allow-Origin": request.headers.get("origin", "*"), "Access-Control-Allow-Credentials": "true"}
        return PlainTextResponse(request.cookies.get("_token", "nobody"), headers=allowed)

    return outer


def _port(server: uvicorn.Server) -> int:
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    return int(server.servers[0].sockets[0].getsockname()[1])
