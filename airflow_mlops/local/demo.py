"""The demo: three dataset versions arrive, two models are trained, approved and served by Airflow, and broken data is refused."""

from __future__ import annotations

import functools
import html
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import airflow_mlops
from airflow_mlops.exceptions import MlopsError
from airflow_mlops.local.api import AirflowApi
from airflow_mlops.local.deployment import LocalDeployment
from airflow_mlops.local.digits import ALL, SMALL, publish_digits
from airflow_mlops.local.lock import only_one
from airflow_mlops.local.services import Settings
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import from_data
from airflow_mlops.stages import stage

RETRAIN, RELEASE, NIGHTLY = "digits_on_dataset", "digits_release", "digits_nightly"
FINISHED = {"success", "failed", "skipped", "upstream_failed", "removed"}
RUN_SECONDS = 900.0
READING_SECONDS = 3.0


class Demo:
    """The demo on one deployment, told line by line through `say`."""

    def __init__(self, deployment: LocalDeployment, say: Callable[[str], None]) -> None:
        self.deployment, self.say = deployment, say
        self.say("\nStarting Airflow, MLflow and the model server on this machine")
        deployment.start(lambda text: say(f"   {text}"))
        self.settings = deployment.settings
        self.api = AirflowApi(self.settings.url("airflow"), "admin", self.settings.password)
        self.reviewer = AirflowApi(self.settings.url("airflow"), "reviewer", self.settings.password)

    def run(self) -> None:
        """Run every act of the demo."""
        for dag_id in (RETRAIN, RELEASE, NIGHTLY):
            self._until(f"{dag_id} is known to Airflow", functools.partial(self._unpaused, dag_id))
        round_number = len(self._versions()) // 3
        names = [f"v{3 * round_number + index}" for index in (1, 2, 3)]

        self.say(f"\n1. Dataset version {names[0]} arrives: {SMALL} handwritten digits")
        started = time.monotonic()
        if self._train_and_release(names[0], SMALL, seed=round_number):
            self.say(f"   served {time.monotonic() - started:.0f} s after the dataset arrived")
        self._predict(draw=True)

        self.say(f"\n2. Dataset version {names[1]} arrives: all {ALL} digits; the champion is retrained and challenged")
        self._train_and_release(names[1], ALL, seed=round_number)
        self._predict()

        self.say(f"\n3. Dataset version {names[2]} arrives, deliberately broken")
        self._refuse(names[2], seed=round_number)
        self._predict()
        self._farewell()

    def _train_and_release(self, name: str, num_rows: int, *, seed: int) -> bool:
        self._publish(name, num_rows=num_rows, seed=seed)
        run_id = self._follow(RETRAIN, self._run_caused_by(RETRAIN, lambda event: event["extra"].get("payload", {}).get("name") == name))
        if self.api.tasks(RETRAIN, run_id)["register"]["state"] != "success":
            self.say(f"   not released: {self._gate(run_id)}")
            return False
        self._follow(RELEASE, self._run_caused_by(RELEASE, lambda event: event["source_run_id"] == run_id))
        return True

    def _refuse(self, name: str, *, seed: int) -> None:
        self._publish(name, num_rows=SMALL, seed=seed + 1, broken=True)
        run = self._run_caused_by(RETRAIN, lambda event: event["extra"].get("payload", {}).get("name") == name)
        run_id = self._follow(RETRAIN, run, expected="failed")
        reasons = self.api.errors(RETRAIN, run_id, "validate", 1)
        self.say(f"   refused: {reasons[0] if reasons else 'see the log of task validate'}")

    def _publish(self, name: str, **what: Any) -> None:
        version = publish_digits(self.deployment.inbox, name, **what)
        self.say(f"   published {version.uri} ({version.digest[:19]})")

    def _versions(self) -> list[Path]:
        return [path for path in self.deployment.inbox.iterdir() if not path.name.startswith(".")]

    def _run_caused_by(self, dag_id: str, matches: Callable[[dict[str, Any]], bool]) -> str:
        """Wait for the run that a matching asset event started and return its id."""

        def find() -> str | None:
            for run in reversed(self.api.runs(dag_id)):
                # Airflow 3.3 answers 500 when asked for the causes of a run that has not started.
                if run["start_date"] and any(map(matches, self.api.causes(dag_id, run["dag_run_id"]))):
                    return str(run["dag_run_id"])
            return None

        return str(self._until(f"a run of {dag_id} starts", find))

    def _follow(self, dag_id: str, run_id: str, expected: str = "success") -> str:
        """Show every task of a run as it ends; answer its approval; raise `MlopsError` unless the run ends as `expected`."""
        self.say(f"   {dag_id}: {self.settings.url('airflow')}/dags/{dag_id}/runs/{quote(run_id)}")
        shown: set[str] = set()
        deadline = time.monotonic() + RUN_SECONDS
        while (state := self.api.run_state(dag_id, run_id)) not in ("success", "failed"):
            self._show(dag_id, run_id, shown)
            if time.monotonic() > deadline:
                raise MlopsError(f"Run {run_id} of {dag_id} is still {state} after {RUN_SECONDS:.0f} s. Look at it in Airflow.")
            time.sleep(1.0)
        self._show(dag_id, run_id, shown)
        if state != expected:
            raise MlopsError(f"Run {run_id} of {dag_id} ended as {state}, expected {expected}. Look at its red task in Airflow.")
        return run_id

    def _show(self, dag_id: str, run_id: str, shown: set[str]) -> None:
        tasks = self.api.tasks(dag_id, run_id)
        for task_id, task in sorted(tasks.items(), key=lambda item: item[1]["end_date"] or "9"):
            question = f"{task_id}?{task['try_number']}"
            if task["state"] == "awaiting_input" and question not in shown:
                shown.add(question)
                self.say(f"     ? {task_id:<11} Airflow asks a person; the demo answers Approve as user reviewer")
                # Airflow 3.3 asks again when an answer comes before its scheduler has noticed that the task waits.
                time.sleep(READING_SECONDS)
                self.reviewer.approve(dag_id, run_id, task_id)
            elif task["state"] in FINISHED and task_id not in shown:
                shown.add(task_id)
                self.say(f"     {_mark(task['state'])} {task_id:<11} {task['duration'] or 0:5.1f} s  {self._headline(dag_id, run_id, task)}")

    def _headline(self, dag_id: str, run_id: str, task: dict[str, Any]) -> str:
        if task["state"] != "success":
            return "not run" if task["state"] == "upstream_failed" else str(task["state"])
        value = self.api.xcom(dag_id, run_id, task["task_id"])
        return "".join(_lines(value))

    def _gate(self, run_id: str) -> str:
        return str(self.api.xcom(RETRAIN, run_id, "gate")["headline"])

    def _predict(self, *, draw: bool = False) -> None:
        import httpx
        from sklearn.datasets import load_digits

        image, label = load_digits().data[7], load_digits().target[7]
        instance = (image / 16).reshape(8, 8, 1).tolist()
        url = f"{self.settings.url('serving_rest')}/v1/models/digits/labels/stable:predict"
        answer = httpx.post(url, json={"instances": [instance]}, timeout=10, trust_env=False)
        if answer.is_error:
            raise MlopsError(f"The model server refused a prediction: {answer.status_code} {answer.text}")
        (probabilities,) = answer.json()["predictions"]
        best = max(range(10), key=probabilities.__getitem__)
        self.say(f"   the served model sees a {best} ({probabilities[best]:.1%} sure) in this handwritten {label}")
        for row in image.reshape(8, 8) if draw else ():
            self.say("     " + "".join(" .:-=+*#%@"[int(value * 9 / 16)] * 2 for value in row))

    def _farewell(self) -> None:
        outbox = self.deployment.home / "workspace" / "outbox.jsonl"
        self.say("\nMessages that would have gone to Slack:")
        for line in outbox.read_text().splitlines()[-7:]:
            self.say(f"   {html.unescape(json.loads(line)['text'])}")
        self.say(f"""
Everything still runs; look around:
   Airflow       {self.settings.url("airflow")}   users admin and reviewer, password {self.settings.password}
   MLOps page    {self.settings.url("airflow")}/plugin/mlops
   MLflow        {self.settings.url("mlflow")}
   Model server  {self.settings.url("serving_rest")}/v1/models/digits
   Files         {self.deployment.home}
   Roll back     airflow-mlops rollback digits --home {self.deployment.home} --reason "I want to see it"
   Stop it       make stop
""")

    def _unpaused(self, dag_id: str) -> bool:
        known = {dag["dag_id"] for dag in self.api.call("GET", "/dags?limit=100")["dags"]}
        if dag_id in known:
            self.api.unpause(dag_id)
        elif errors := self.api.call("GET", "/importErrors")["import_errors"]:
            raise MlopsError(f"Airflow cannot read {errors[0]['filename']}:\n{errors[0]['stack_trace']}")
        return dag_id in known

    def _until(self, what: str, look: Callable[[], Any], seconds: float = 120.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                raise MlopsError(f"Waited {seconds:.0f} s in vain until {what}. See the logs in {self.deployment.home}/logs.")
            time.sleep(1.0)
        return found


def _mark(state: str) -> str:
    return {"success": "✓", "failed": "✗"}.get(state, "-")


def _lines(value: Any) -> Iterator[str]:
    """Yield what is worth showing of a task's result."""
    if not isinstance(value, dict):
        return
    if "stage" in value:  # a reference, which says no more than where the record lies
        ref = from_data(ResultRef, value, what="reference to a stage's result")
        yield load(ref, stage(ref.stage).Result).headline()
    elif "headline" in value:
        yield value["headline"]
    elif "responded_by_user" in value:
        yield f"{', '.join(value['chosen_options'])} by {value['responded_by_user']['name']}"
    elif "digest" in value:
        yield f"{value['dataset']} {value['name']}, {value['digest'][:19]}"


def run_demo(home: Path) -> int:
    """Run the demo in `home` and return 0."""
    dags = Path(airflow_mlops.__file__).parents[1] / "dags"
    if not (dags / "digits.py").is_file():
        raise MlopsError(f"The demo's DAGs are not at {dags}; run it from a checkout of the project.")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    pages = f"Airflow's pages are at {Settings.of(home).url('airflow')}. " if (home / "settings.json").exists() else ""
    with only_one(home, "demo", where=f"{pages}Its logs are in {home}/logs. "):
        Demo(LocalDeployment(home, dags), print).run()
    return 0
