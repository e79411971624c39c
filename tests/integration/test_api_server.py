"""The plugin in Airflow's own API server, under both auth managers: every role, route and DAG."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

from airflow_mlops.exceptions import UsersUnknown
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.hooks.people import people
from airflow_mlops.ledger import chain, datasets
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.approval import ApproveReleaseOperator
from airflow_mlops.registry import registrations
from airflow_mlops.results import DatasetVersion
from tests import fakes
from tests.api_servers import ApiServer, api_server
from tests.fakes import FakeTaskInstance, context
from tests.released import tags_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODEL = {"name": "alpha", "version": 1, "expected_champion": None, "fencing_token": 0, "questions": []}
MODEL["decision"] = "released: accuracy 0.9500 >= 0.9"
DIGESTS = {"model_digest": "sha256:m", "dataset_digest": "sha256:d", "authors": "", "airflow_run": "alpha_on_dataset/run 1"}

# What each role gets of /mlops/: the overview, pages and models of the DAGs alpha_release and beta_release.
ROUTES = {
    "overview": "",
    "icon": "static/icon.svg",
    "alpha page": "reports/runs/alpha_release/r/validate/try-1/data_docs/index.html",
    "alpha pack": "reports/evidence/alpha_release/alpha/1-r/lineage.json",
    "alpha model": "reports/runs/alpha_release/r/train/try-1/model.keras",
    "alpha graph": "reports/runs/alpha_release/r/train/try-1/saved_model/saved_model.pb",
    "alpha spec": "reports/runs/alpha_release/r/train/try-1/spec.json",
    "beta page": "reports/runs/beta_release/r/validate/try-1/data_docs/index.html",
    "beta pack": "reports/evidence/beta_release/beta/1-r/lineage.json",
    "beta model": "reports/runs/beta_release/r/train/try-1/model.keras",
    "beta through alpha": "reports/runs/alpha_release/%2e%2e/beta_release/r/validate/try-1/data_docs/index.html",
    "link to beta": "reports/runs/alpha_release/link.html",
}
EDITOR = {200: [name for name in ROUTES if name not in ("beta through alpha", "link to beta")], 404: ["beta through alpha", "link to beta"]}
READER = {
    200: ["overview", "icon", "alpha page", "alpha pack", "beta page", "beta pack"],
    403: ["alpha model", "alpha graph", "alpha spec", "beta model"],
}
READER = {**READER, 404: EDITOR[404]}
NOTHING = {200: ["icon"], 403: [name for name in ROUTES if name != "icon"]}
ONLY_ALPHA = {
    200: ["overview", "icon", "alpha page", "alpha pack"],
    403: ["alpha model", "alpha graph", "alpha spec", "beta page", "beta pack", "beta model"],
    404: EDITOR[404],
}
ANONYMOUS = {200: ["icon"], 401: NOTHING[403]}
MATRIX = {None: ANONYMOUS, "none": NOTHING, "viewer": READER, "user": EDITOR, "op": EDITOR, "admin": EDITOR, "alpha": ONLY_ALPHA}
SEEN = {"viewer": {"alpha", "beta"}, "user": {"alpha", "beta"}, "op": {"alpha", "beta"}, "admin": {"alpha", "beta"}, "alpha": {"alpha"}}


@pytest.fixture(scope="module", params=["simple", "fab"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server per auth manager; FAB's has a path before it."""
    prefix = {"simple": "", "fab": "/team/airflow"}[request.param]
    with api_server(tmp_path_factory.mktemp(request.param) / "home", request.param, prefix=prefix) as server:
        _fill(server)
        yield server


def test_every_role_gets_of_every_dag_what_airflow_lets_it_see(server: ApiServer) -> None:
    wrong = []
    for user in (None, *server.users):
        wanted = {name: status for status, names in MATRIX[user].items() for name in names}
        with server.client(user) as client:
            found = {name: client.get(f"/mlops/{route}") for name, route in ROUTES.items()}
        wrong += [(user, name, found[name].status_code, status) for name, status in wanted.items() if found[name].status_code != status]
        assert found.keys() == wanted.keys()
        leaks = [name for name, answer in found.items() if answer.status_code != 200 and "content of" in answer.text]
        assert leaks == []
    assert wrong == []


def test_the_overview_shows_each_role_the_rows_of_its_dags(server: ApiServer) -> None:
    for user, models in SEEN.items():
        if user not in server.users:
            continue
        with server.client(user) as client:
            page = client.get("/mlops/").text
        assert {name for name in ("alpha", "beta") if f"<b>{name}</b>" in page} == models, user


def test_only_a_task_learns_who_the_users_are(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, ids, addresses and the right to answer, as each auth manager has them: what this package reads of its insides moves with a release."""
    _as_a_task(server, monkeypatch)
    found = people(["op", "viewer", "none", "nobody", "1"], "alpha_release")
    assert {name: person.may_answer for name, person in found.items()} == {"op": True, "viewer": False, "none": False}
    assert found["op"].user_id == ("op" if server.manager == "simple" else server.ids["op"])
    assert found["op"].known_as == (() if server.manager == "simple" else ("op@example.org", "Op Person"))
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "another" * 10)
    with pytest.raises(UsersUnknown, match="answers 403: the question is not signed with this server's"):
        people(["op"], "alpha_release")
    with server.client("admin") as client:
        token = client.headers["Authorization"].removeprefix("Bearer ")
        assert client.post("/mlops-people/", json={"question": token}).status_code == 403, "a login is no signature"
        assert client.get("/mlops-people/docs").status_code == 404


def test_names_approve_and_are_in_the_trail_with_their_ids(server: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The question is asked through Airflow, answered by its users, and counted by name; not those of others, be it an admin, nor of an author."""
    release = Release(server, monkeypatch, tmp_path)
    release.ask(ApprovalPolicy(1, approvers=("op", "user")), triggered_by="user")
    assert release.answer("viewer") == 403, "the role viewer may not answer"
    assert release.answer("admin") == 200 and "admin is not one of the approvers (op, user)" in release.told[-1]
    assert release.answer("user") == 200 and "user is an author of what is released (user)" in release.told[-1]
    assert release.answer("op") == 200 and release.told[-1] == "1 of 1 approvals by op."
    approved = next(event for event in chain.events(release.store) if event.kind == "approved")
    assert (approved.actor, approved.details["user_id"]) == ("op", "op" if server.manager == "simple" else server.ids["op"])
    assert [event.actor for event in chain.events(release.store) if event.kind == "answer refused"] == ["admin", "user"]


def test_an_approver_whom_airflow_does_not_know_is_said_when_the_task_asks(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release = Release(server, monkeypatch, tmp_path)
    for approvers, said in (("op", "opp"), "logs in as opp"), (("op", "viewer"), "viewer may not answer the questions of this DAG"):
        with pytest.raises(AirflowFailException, match=said):
            release.ask(ApprovalPolicy(2, approvers=approvers), triggered_by="admin")


class Release:
    """The task `approve` of a run of alpha_release: executed here as a worker does, asked and answered through the API server."""

    def __init__(self, server: ApiServer, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        _as_a_task(server, monkeypatch)
        self.server, self.told, self.number = server, [""], 0
        monkeypatch.setenv("AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT", f'{{"conn_type": "mlops_ledger", "schema": "{home}/ledger.db"}}')
        self.store = Store(f"sqlite:///{home}/ledger.db")
        monkeypatch.setattr(hitl, "upsert_hitl_detail", self._upsert)
        tags = tags_of(fakes.leave_records(home), **DIGESTS)
        registrations.note(self.store, "alpha", 1, "alpha_on_dataset/run 1", tags)
        monkeypatch.setattr(ApproveReleaseOperator, "_now", lambda _self: {**tags, **MODEL})
        self.run_id = f"manual__2026-01-01T00:00:00+00:00~{uuid.uuid4()}"

    def ask(self, policy: ApprovalPolicy, *, triggered_by: str) -> None:
        run = self.server.trigger(triggered_by, "alpha_release", f"{self.run_id}{len(policy.approvers)}{policy.approvers[-1]}")
        ti = FakeTaskInstance(dag_id="alpha_release", run_id=run["dag_run_id"], task_id="approve")
        ti.id = "ti"  # type: ignore[attr-defined]
        with DAG("alpha_release"):
            self.task = ApproveReleaseOperator(
                task_id="approve",
                model=MODEL,
                policy=policy,
                notifiers=[lambda context: self.told.append(context["approval_progress"])],
            )
        about = SimpleNamespace(triggering_user_name=run["triggering_user_name"])
        before = fakes.handed_over(self.store, MODEL, ti=ti, task_id="select")
        self.context = {**context(ti), "ti": ti, "task_instance": ti, "dag_run": about, "task": before}
        with pytest.raises(TaskAwaitingInput):
            self.task.execute(self.context)

    def answer(self, user: str) -> int:
        """Approve as `user` and let the task count it; return what Airflow answered."""
        ti = self.context["ti"]
        path = f"/api/v2/dags/{ti.dag_id}/dagRuns/{quote(ti.run_id, safe='')}/taskInstances/approve/-1/hitlDetails"
        with self.server.client(user) as client:
            answered = client.patch(path, json={"chosen_options": ["Approve"], "params_input": {"comment": "fine"}})
        if answered.status_code == 200:
            said = answered.json()
            event = {**said, "responded_by_user": said["responded_by"], "responded_at": datetime.fromisoformat(said["responded_at"])}
            with contextlib.suppress(TaskAwaitingInput):
                self.told.append(self.task.execute_complete(self.context, event)["headline"])
        return answered.status_code

    def _upsert(self, *, ti_id: str, assigned_users: object, **detail: object) -> None:
        ti = self.context["ti"]
        self.server.park(ti.dag_id, ti.run_id, **{**detail, "assignees": assigned_users})


def _as_a_task(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW__API__SECRET_KEY", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"):
        monkeypatch.setenv(name, server.env[name])


def _fill(server: ApiServer) -> None:
    workspace = server.home / "workspace"
    for name in ("alpha", "beta"):
        run = workspace / "runs" / f"{name}_release" / "r"
        for file in (
            "validate/try-1/data_docs/index.html",
            "train/try-1/model.keras",
            "train/try-1/saved_model/saved_model.pb",
            "train/try-1/spec.json",
        ):
            (run / file).parent.mkdir(parents=True, exist_ok=True)
            (run / file).write_text(f"content of {name}")
        pack = workspace / "evidence" / f"{name}_release" / name / "1-r"
        pack.mkdir(parents=True)
        (pack / "lineage.json").write_text("{}")
    (workspace / "runs" / "alpha_release" / "link.html").symlink_to(workspace / "runs/beta_release/r/validate/try-1/data_docs/index.html")
    store = Store(f"sqlite:///{server.home}/ledger.db")
    for number, name in enumerate(("alpha", "beta")):
        version = DatasetVersion(name, "v1", "sha256:" + f"{number}" * 64, f"/inbox/{name}")
        datasets.claim(store, version, purpose=f"{name}_release", run_id="r")
        once(store, f"promote:{name}", "promote", {"model": name, "version": 1, "run": f"{name}_release/r"}, lambda: {"previous": None})
    store.close()
