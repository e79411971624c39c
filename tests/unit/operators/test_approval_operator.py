"""The question to people: asked until enough of the right ones agreed, and bound to what they saw; over a real registry and ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG, BaseOperator, Param
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped, TaskAwaitingInput

from airflow_mlops.exceptions import UsersUnknown
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.hooks.people import Person
from airflow_mlops.ledger import approvals, chain
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators import approval
from airflow_mlops.operators.approval import ApproveReleaseOperator
from airflow_mlops.operators.publish import PublishSavedModelOperator
from airflow_mlops.registry import registrations
from airflow_mlops.registry.mlflow import MlflowRegistry
from tests import fakes
from tests.fakes import FakeTaskInstance, context
from tests.released import tags_of

ANN = "Ann Lee <ann@example.org>"
MODEL: dict[str, Any] = {"name": "digits", "version": 1, "expected_champion": None, "fencing_token": 0, "questions": []}
MODEL["decision"] = "released: accuracy 0.9500 >= 0.9"


@pytest.fixture(scope="module")
def tracking_uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture(scope="module")
def tags(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tags with which version 1 is registered, whose records lie on disk."""
    home, registry = tmp_path_factory.mktemp("records"), MlflowRegistry(tracking_uri)
    refs = fakes.leave_records(home)
    digests = {"model_digest": "sha256:m", "dataset_digest": "sha256:d", "airflow_run": "digits_on_dataset/run 1"}
    with registry.start_run("digits", name="training", tags={}) as run:
        tags = tags_of(refs, **digests, authors=ANN, mlflow_run=run.run_id)
    registry.register("digits", run.run_id, run.artifact_uri, tags=tags)
    return tags


@pytest.fixture(scope="module")
def registry(tracking_uri: str, tags: dict[str, str]) -> MlflowRegistry:
    return MlflowRegistry(tracking_uri)


class Office:
    """The task `approve`, what it put before people, and what it told them."""

    def __init__(self, ledger: Store, asked: list[dict[str, Any]]) -> None:
        self.ledger, self.asked, self.told = ledger, asked, [""]
        self.triggered_by: str | None = None
        self.known = {name: Person(name, "1", (f"{name}@example.org",), True) for name in ("ann", "bob", "cleo", "dan", "mallory")}

    def people(self, names: Sequence[str], dag_id: str) -> dict[str, Person]:
        if not self.known:
            raise UsersUnknown("The API server does not answer.")
        assert dag_id == "digits_release"
        return {name: self.known[name] for name in names if name in self.known}

    def context(self, **more: Any) -> Any:
        ti = FakeTaskInstance(dag_id="digits_release", run_id="run 1", task_id="approve")
        ti.id = "ti"  # type: ignore[attr-defined]
        about = {"ti": ti, "task_instance": ti, "dag_run": SimpleNamespace(triggering_user_name=self.triggered_by)}
        task = fakes.handed_over(self.ledger, MODEL, ti=ti, task_id="select")
        if "task" in more:
            task.get_direct_relatives = more.pop("task").get_direct_relatives
        return {**context(ti), **about, "task": task, **more}

    def operator(self, policy: ApprovalPolicy | None = None) -> ApproveReleaseOperator:
        def tell(context: Any) -> None:
            self.told.append(context["approval_progress"])

        with DAG("digits_release", params={"version": Param(None, type=["null", "integer"])}):
            asking = ApproveReleaseOperator(task_id="approve", model=MODEL, policy=policy or ApprovalPolicy(), notifiers=[tell])
            asking >> BaseOperator(task_id="publish")  # type: ignore[arg-type]
        return asking

    def answer(self, operator: ApproveReleaseOperator, user: str, chosen: str = "Approve", comment: str = "", **more: Any) -> Any:
        said = {"chosen_options": [chosen], "params_input": {"comment": comment}, "responded_at": datetime.now(UTC)}
        by = {"id": str(sum(user.encode())), "name": user}  # ids are numbers, as FAB's are
        return operator.execute_complete(self.context(task=operator), {**said, "responded_by_user": by, **more})

    def kinds(self) -> list[str]:
        """What the trail says of the request."""
        return [event.kind for event in chain.events(self.ledger) if event.kind not in ("handed over", "registered")]


@pytest.fixture
def office(
    registry: MlflowRegistry, tags: dict[str, str], tracking_uri: str, connect: Any, ledger: Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Office]:
    connect("mlflow_default", "mlflow", host=tracking_uri)
    asked: list[dict[str, Any]] = []
    # The API server's parts; see tests/integration/test_api_server.py.
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: asked.append(detail))
    registrations.note(ledger, "digits", 1, "digits_on_dataset/run 1", tags)
    office = Office(ledger, asked)
    monkeypatch.setattr(approval, "people", office.people)
    yield office
    registry.set_tags("digits", 1, tags)


def test_it_asks_waits_and_returns_who_approved(office: Office) -> None:
    operator = office.operator()
    with pytest.raises(TaskAwaitingInput) as waiting:
        operator.execute(office.context())
    assert timedelta(days=6.9) < waiting.value.timeout <= timedelta(days=7)
    assert {name: param["schema"]["type"] for name, param in office.asked[0]["params"].items()} == {"comment": ["null", "string"]}
    assert office.told[-1] == "0 of 1 approvals."
    assert "| May approve | whoever may answer here, but no author |" in office.asked[0]["body"]
    done = office.answer(operator, "cleo", comment="fine")
    assert (done["approved_by"], done["headline"]) == (["cleo"], "1 of 1 approvals by cleo.")
    assert office.kinds() == ["approval asked", "approved", "approval granted"]
    assert operator.execute(office.context()) == done, "a task that is run again does not ask again"


def test_an_answer_that_does_not_count_is_told_and_asked_again(office: Office) -> None:
    operator = office.operator(ApprovalPolicy(2, approvers=("ann", "bob", "cleo", "dan")))
    office.triggered_by = "bob"
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    assert office.asked[0]["assigned_users"] is None, "Airflow compares ids, which no policy names"
    for user, told in [("ann", "Ann Lee"), ("bob", "(bob)"), ("mallory", "not one of the approvers"), ("cleo", "1 of 2 approvals by cleo.")]:
        with pytest.raises(TaskAwaitingInput):
            office.answer(operator, user)
        assert told in office.told[-1]
    assert office.kinds().count("answer refused") == 3 and len(office.asked) == 5


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (ApprovalPolicy(1, approvers=("bop", "cleo")), r"no active user who logs in as bop, whom the policy names"),
        (ApprovalPolicy(1, approvers=("1",)), r"logs in as 1, whom .* Expected names, not ids"),
        (ApprovalPolicy(1, approvers=("bob",)), r"1 approvals are needed, and 0 .*: bob is an author of what is released \(bob\)"),
        (ApprovalPolicy(1, approvers=("ann",)), r"ann is an author of what is released \(Ann Lee <ann@example.org>\)"),
        (ApprovalPolicy(2, approvers=("cleo", "mallory")), r"2 approvals are needed, and 1 .*: mallory may not answer the questions"),
    ],
)
def test_a_policy_that_locks_everybody_out_is_refused_when_it_asks(office: Office, policy: ApprovalPolicy, said: str) -> None:
    office.triggered_by = "bob"
    office.known["mallory"] = office.known["mallory"]._replace(may_answer=False)
    with pytest.raises(AirflowFailException, match=f"NotApproved: .*{said}"):
        office.operator(policy).execute(office.context())
    assert office.asked == [] and office.kinds() == []


def test_where_the_users_cannot_be_looked_up_the_question_says_so(office: Office) -> None:
    office.known.clear()
    operator = office.operator(ApprovalPolicy(1, approvers=("cleo",)))
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    assert "could not be checked whether cleo are users" in office.told[-1]
    assert office.answer(operator, "cleo")["approved_by"] == ["cleo"]


def test_an_author_is_recognised_by_the_address_that_airflow_has(office: Office) -> None:
    office.known["al7"] = Person("al7", "7", ("ann@example.org", "Somebody Else"), True)
    operator = office.operator()
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    with pytest.raises(TaskAwaitingInput):
        office.answer(operator, "al7")
    assert "al7 is an author of what is released (Ann Lee <ann@example.org>)" in office.told[-1]


def test_a_rejection_skips_what_follows_and_says_so_in_the_trail(office: Office) -> None:
    operator = office.operator()
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    with pytest.raises(DownstreamTasksSkipped):
        office.answer(operator, "cleo", "Reject", "too early")
    event = chain.events(office.ledger, kinds=["rejected"])[-1]
    assert (event.kind, event.actor, event.details["comment"]) == ("rejected", "cleo", "too early")


def test_a_policy_that_asks_nobody_approves_at_once(office: Office) -> None:
    assert office.operator(ApprovalPolicy(0)).execute(office.context())["headline"] == "Approved by policy; no person was asked."
    assert office.asked == []


def test_what_the_gate_leaves_to_a_person_no_policy_approves_and_it_is_the_first_thing_said(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL, "questions", ["The model was not compared with champion v3."])
    given = office.context()
    with pytest.raises(TaskAwaitingInput):
        office.operator(ApprovalPolicy(0)).execute(given)
    assert len(office.asked) == 1 and office.kinds() == ["approval asked"]
    assert office.asked[0]["body"].splitlines()[2] == "| To decide | The model was not compared with champion v3. |"
    assert given["approval_question"].startswith("Release digits version 1? The model was not compared with champion v3. accuracy ")


def test_when_nobody_answers_the_task_fails_and_the_trail_says_expired(office: Office) -> None:
    operator = office.operator()
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    with pytest.raises(HITLTimeoutError):
        operator.execute_complete(office.context(), {"error": "late", "error_type": "timeout"})
    assert office.kinds() == ["approval asked", "approval expired"]


def test_a_late_answer_fails_the_task(office: Office) -> None:
    operator = office.operator()
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    with pytest.raises(AirflowFailException, match=r"NotApproved: The request is expired\. The answer of .* comes too late"):
        office.answer(operator, "cleo", responded_at=datetime.now(UTC) + timedelta(days=8))


def test_an_answer_about_a_model_that_changed_meanwhile_is_stale(office: Office, registry: MlflowRegistry) -> None:
    operator = office.operator()
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    registry.set_tags("digits", 1, {"evidence_digest": "sha256:other"})
    with pytest.raises(AirflowFailException, match="NotApproved: The request is stale"):
        office.answer(operator, "cleo")


@pytest.mark.parametrize("said", ["nothing", "rejected", "approved for another label"])
def test_nothing_is_published_that_the_ledger_does_not_know_as_approved(office: Office, tags: dict[str, str], said: str, workspace: Path) -> None:
    release = "digits_release/run 1"
    subject = approvals.Subject.of({**tags, **MODEL}, "tf_serving_default/stable")
    if said != "nothing":
        approvals.ask(office.ledger, release, subject, ApprovalPolicy(), ())
        answer = approvals.Answer("cleo", "7", said != "rejected", datetime.now(UTC))
        approvals.answer(office.ledger, release, answer, subject)
    publish = PublishSavedModelOperator(task_id="publish", model=MODEL, version_label="canary" if "label" in said else "stable")
    with pytest.raises(AirflowFailException, match=r"NotApproved: .*(nobody was asked|is rejected|target was tf_serving_default/stable)"):
        publish.execute(office.context())


@pytest.mark.parametrize(
    "said",
    [
        {"params_input": {"comment": "fine", "mood": "good"}},
        {"params_input": {"mood": "good"}},
        {"params_input": {"comment": 7}},
        {"params_input": {"comment": ["fine"]}},
        {"chosen_options": ["Perhaps"]},
        {"chosen_options": ["Approve", "Reject"], "params_input": None},
        {"chosen_options": []},
    ],
)
def test_an_answer_that_does_not_fit_the_form_is_recorded_and_asked_again(office: Office, said: dict[str, Any]) -> None:
    operator = office.operator()
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    with pytest.raises(TaskAwaitingInput):
        office.answer(operator, "cleo", **said)
    [refused] = chain.events(office.ledger, kinds=["answer refused"])
    assert (refused.actor, refused.details["reason"][:30]) == ("cleo", "The answer does not fit the fo")
    assert office.answer(office.operator(), "cleo", comment="fine")["approved_by"] == ["cleo"]


def test_the_form_shows_figures_of_the_records_and_text_in_them_stays_text(office: Office) -> None:
    operator = office.operator()
    operator.subject, operator.body = "Release digits version 1, accuracy 0.9999?", "accuracy 0.9999"
    with pytest.raises(TaskAwaitingInput):
        operator.execute(office.context())
    asked = office.asked[0]
    assert asked["subject"] == "Release digits version 1?"
    rows = dict(line.strip("| ").split(" | ", 1) for line in asked["body"].splitlines()[2:])
    assert rows["Evaluation"] == "accuracy 0.9500 (champion 0.9500), macro_f1 0.9400 (champion 0.9300) on 200 held-out rows"
    assert (rows["Replaces"], rows["By"]) == ("nothing, it is the first", "Ann Lee &lt;ann@example.org&gt;")
    assert (rows["Gate"], rows["Trained on"]) == (MODEL["decision"].replace(">", "&gt;"), "digits v1 (sha256:v1)")


@pytest.mark.parametrize("how", ["asked again", "in another run", "registered again"])
def test_who_was_an_author_once_stays_one(office: Office, tags: dict[str, str], how: str) -> None:
    office.triggered_by = "bob"
    with pytest.raises(TaskAwaitingInput):
        office.operator().execute(office.context())
    release, subject = "digits_release/run 1", approvals.Subject.of({**tags, **MODEL}, "tf_serving_default/stable")
    if how == "registered again":
        kept = registrations.authors_before(office.ledger, "digits", tags)
        assert kept == {ANN}
    else:
        approvals.expire(office.ledger, release)
        release = "digits_release/run 2" if how == "in another run" else release
        approvals.ask(office.ledger, release, subject, ApprovalPolicy(), ())
        for user in ("bob", "ann"):
            request = approvals.answer(office.ledger, release, approvals.Answer(user, user, True, datetime.now(UTC)), subject)
            assert request.outcome is None and "is an author of what is released" in request.problem


def test_an_altered_selection_is_refused_before_anybody_is_asked(office: Office) -> None:
    for change in ({"version": 2}, {"expected_champion": 3}, {"decision": "released: accuracy 0.9999"}, {"authors": ""}):
        operator = office.operator()
        operator.model = {**MODEL, **change}
        with pytest.raises(AirflowFailException, match=r"NotHandedOver: .*Clear 'select'"):
            operator.execute(office.context())
    assert (office.asked, office.kinds()) == ([], [])
