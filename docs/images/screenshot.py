"""Takes the README's picture: the graph of the last finished run of a running demo. Usage: python docs/images/screenshot.py HOME FILE"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import sync_playwright

from airflow_mlops.local.api import AirflowApi
from airflow_mlops.local.services import Settings

DAG = "digits_on_dataset"


def main(home: Path, picture: Path) -> None:
    settings = Settings.of(home)
    url = settings.url("airflow")
    api = AirflowApi(url, "admin", settings.password)
    run_id = [run["dag_run_id"] for run in api.runs(DAG) if run["state"] == "success"][-1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 640})
        page.goto(f"{url}/auth/login/")
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", settings.password)
        page.click("button[type=submit]")
        page.wait_for_timeout(3000)
        page.goto(f"{url}/dags/{DAG}/runs/{quote(run_id)}")
        page.get_by_label("Show Graph").first.click()
        # The graph gets the room: the divider between it and the run's table goes to the right.
        divider = page.locator("[data-panel-resize-handle-id], [data-resize-handle]").first.bounding_box()
        if divider:
            page.mouse.move(divider["x"] + divider["width"] / 2, divider["y"] + 200)
            page.mouse.down()
            page.mouse.move(1050, divider["y"] + 200, steps=10)
            page.mouse.up()
        page.wait_for_timeout(3000)
        page.screenshot(path=str(picture))
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
