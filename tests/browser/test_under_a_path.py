"""Airflow's own pages with the plugin in a real browser, with and without a path before them, through a reverse proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from airflow_mlops.hooks.workspace import report_url
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.local.services import free_port
from airflow_mlops.notifications.slack import ApprovalNotifier
from airflow_mlops.results import DatasetVersion
from tests.api_servers import PASSWORD, ApiServer, api_server
from tests.fakes import FakeTaskInstance, context
from tests.proxies import proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PREFIX = "/team/airflow"
RUN = "manual__2026-01-01T00:00:00+00:00"
PATIENCE = 120_000.0  # milliseconds; Airflow's pages load slowly on two busy cores


@pytest.fixture(scope="module", params=[pytest.param("", id="no path", marks=pytest.mark.long), pytest.param(PREFIX, id="path")])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server that people reach through a proxy, which hands the path on as it is."""
    port = free_port()
    home = tmp_path_factory.mktemp("server") / "home"
    with api_server(home, "simple", prefix=request.param, public_url=f"http://127.0.0.1:{port}") as server, proxy(port, server.upstream):
        (home / "workspace/runs/alpha_release/r").mkdir(parents=True)
        (home / "workspace/runs/alpha_release/r/page.html").write_text("<h1>The report</h1>")
        store = Store(f"sqlite:///{home}/ledger.db")
        version = DatasetVersion(dataset="alpha", name="v1", digest="sha256:" + "ab" * 32, uri="/inbox/v1")
        datasets.announce(store, version)
        datasets.claim(store, version, purpose="alpha_release", run_id=RUN)
        store.close()
        server.trigger("user", "alpha_release", RUN)
        server.park("alpha_release", RUN, options=["Approve", "Reject"], subject="Release alpha?", body="Look.", params={})
        yield server


@pytest.fixture
def page(browser: Browser, server: ApiServer) -> Iterator[Page]:
    """A page after a login with the form; any 4xx or 5xx answer of the plugin fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    refused: list[str] = []
    page.on("response", lambda answer: refused.append(f"{answer.status} {answer.url}") if "mlops" in answer.url and answer.status >= 400 else None)
    page.goto(f"{server.url}/")
    page.fill("input[name=username]", "op")
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/auth/" not in url)
    yield page
    page.close()
    assert refused == []


def test_the_navigation_leads_to_the_page_and_the_page_to_a_run(page: Page, server: ApiServer) -> None:
    icon = page.locator('img[src$="mlops/static/icon.svg"]').first
    expect(icon).to_be_visible(timeout=PATIENCE)
    assert icon.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    page.goto(f"{server.url}/plugin/mlops")
    frame = page.frame_locator("iframe")
    expect(frame.locator("#datasets")).to_contain_text("alpha v1", timeout=PATIENCE)
    assert frame.locator("section").first.evaluate("e => getComputedStyle(e).borderRadius") == "10px"
    frame.get_by_role("link", name="alpha_release").click()
    expect(page).to_have_url(re.compile(re.escape(f"{server.url}/dags/alpha_release/runs/manual__2026")), timeout=PATIENCE)
    expect(page.locator("body")).to_contain_text("approve", timeout=PATIENCE)


def test_the_link_in_a_message_opens_the_question(page: Page, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", server.url)
    ti = FakeTaskInstance(dag_id="alpha_release", run_id=RUN, task_id="approve")
    link = ApprovalNotifier(text="Release?").link(context(ti))
    assert link is not None and link.startswith(f"{server.url}/dags/")
    page.goto(link)
    expect(page.locator("body")).to_contain_text("Release alpha?", timeout=PATIENCE)


def test_the_button_of_a_task_opens_its_report(page: Page, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", server.url)
    monkeypatch.setenv("AIRFLOW__MLOPS__WORKSPACE", str(server.home / "workspace"))
    page.goto(urljoin(server.url, report_url(server.home / "workspace/runs/alpha_release/r/page.html")))
    expect(page.locator("h1")).to_have_text("The report", timeout=PATIENCE)


@pytest.mark.parametrize("server", [PREFIX], indirect=True)
def test_a_proxy_that_takes_the_path_away_breaks_airflow_itself(server: ApiServer, tmp_path: Path) -> None:
    """So the docs ask for one that hands it on; the day that Airflow serves this, they may say so."""
    script = re.search(r'src="\./(static/assets/[^"]+)"', httpx.get(f"{server.url}/", trust_env=False).text)
    assert script is not None
    with proxy(free_port(), server.upstream, strip=PREFIX) as stripped:
        kept, taken = (httpx.get(f"{base}{PREFIX}/{script[1]}", trust_env=False).headers["content-type"] for base in (_origin(server.url), stripped))
    assert "javascript" in kept and "javascript" not in taken


def _origin(url: str) -> str:
    return f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
