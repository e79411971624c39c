"""Approvals: bound to what was asked about, by enough different people who are not its authors, in time; the rest is refused and recorded."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_mlops.exceptions import NotApproved
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.ledger import approvals, chain
from airflow_mlops.ledger.approvals import Answer, Request, Subject
from airflow_mlops.ledger.store import Store, now

RELEASE = "digits_release/run-1"
SUBJECT = Subject(
    "digits", 7, 6, "tf_serving_default/stable", {"model_digest": "sha256:m", "dataset_digest": "sha256:d", "evidence_digest": "sha256:e"}
)
AUTHORS = ("bob", "Ann Lee <ann@example.org>")
ONE = ApprovalPolicy()


def ask(store: Store, policy: ApprovalPolicy = ONE, subject: Subject = SUBJECT) -> Request:
    return approvals.ask(store, RELEASE, subject, policy, AUTHORS)


def say(
    store: Store,
    user: str,
    *,
    approve: bool = True,
    comment: str = "",
    subject: Subject = SUBJECT,
    later: timedelta = timedelta(),
    known_as: tuple[str, ...] = (),
) -> Request:
    """Answer as a user whose id is a number, as with FAB."""
    number = str(sum(user.encode()))
    return approvals.answer(store, RELEASE, Answer(user, number, approve, now() + later, comment, known_as), subject)


def kinds(store: Store) -> list[str]:
    return [event.kind for event in chain.events(store)]


def last_reason(store: Store) -> str:
    return str([event for event in chain.events(store) if event.kind == "answer refused"][-1].details["reason"])


def test_one_approval_grants_and_the_trail_says_who_and_what(store: Store) -> None:
    assert ask(store).outcome is None
    granted = say(store, "cleo", comment="looks right")
    assert (granted.outcome, granted.approved_by, granted.problem) == ("granted", ("cleo",), "")
    asked, approved, end = chain.events(store)
    assert (asked.kind, approved.kind, end.kind) == ("approval asked", "approved", "approval granted")
    assert (approved.actor, approved.subject, approved.details["comment"]) == ("cleo", "digits@7", "looks right")
    assert approved.details["user_id"] == "419"
    bound = {"binding": SUBJECT.binding, "target": SUBJECT.target, **SUBJECT.digests}
    assert bound.items() <= asked.details.items() and bound.items() <= approved.details.items() and bound.items() <= end.details.items()
    assert asked.details["authors"] == list(AUTHORS)
    assert approvals.require(store, RELEASE, SUBJECT) == replace(granted, problem="")


def test_two_of_three_need_two_different_people(store: Store) -> None:
    ask(store, ApprovalPolicy(2, approvers=("cleo", "dan", "eve")))
    once = say(store, "cleo")
    assert once.outcome is None and once.progress() == "1 of 2 approvals by cleo."
    twice = say(store, "cleo")
    assert twice.outcome is None and twice.approved_by == ("cleo",) and "has approved already" in twice.problem
    assert say(store, "eve").outcome == "granted"
    assert kinds(store) == ["approval asked", "approved", "answer refused", "approved", "approval granted"]


@pytest.mark.parametrize("author", ["bob", "ann", "Ann", "ann@example.org"])
def test_an_author_cannot_approve_but_may_reject(store: Store, author: str) -> None:
    ask(store)
    refused = say(store, author)
    assert refused.outcome is None and "is an author of what is released" in refused.problem and last_reason(store) == refused.problem
    assert say(store, author, approve=False).outcome == "rejected"


def test_an_author_under_another_name_is_known_by_the_policy(store: Store) -> None:
    ask(store, ApprovalPolicy(identities={"u123": "ann@example.org"}))
    assert "author" in say(store, "u123").problem
    assert say(store, "u124").outcome == "granted"


def test_an_author_is_known_by_what_airflow_says_of_the_user(store: Store) -> None:
    """With FAB a user may log in with another name than Git's; the address is the same."""
    ask(store)
    assert "author" in say(store, "u123", known_as=("ann@example.org", "A. Lee")).problem
    assert say(store, "u124", known_as=("dan@example.org", "Dan")).outcome == "granted"


def test_an_approver_is_a_name_and_never_an_id(store: Store) -> None:
    ask(store, ApprovalPolicy(1, approvers=("419", "cleo")))
    assert say(store, "cleo").outcome == "granted"
    ask(store, ApprovalPolicy(1, approvers=("419",)), replace(SUBJECT, version=8))
    assert "not one of the approvers" in say(store, "cleo", subject=replace(SUBJECT, version=8)).problem


def test_on_a_team_of_one_the_policy_lets_the_author_approve_and_the_trail_shows_it(store: Store) -> None:
    ask(store, ApprovalPolicy(author_may_approve=True))
    assert say(store, "bob").outcome == "granted"
    assert chain.events(store)[0].details["policy"]["author_may_approve"] is True


def test_the_policy_may_approve_by_itself_and_says_so(store: Store) -> None:
    request = ask(store, ApprovalPolicy(0))
    assert request.outcome == "granted" and request.approved_by == () and "no person" in request.progress()
    event = chain.events(store)[-1]
    assert (event.kind, event.details["approved_by"], event.details["reason"]) == ("approval granted", ["policy"], "The policy asks nobody.")


def test_a_foreign_answer_is_refused_also_as_a_rejection(store: Store) -> None:
    ask(store, ApprovalPolicy(1, approvers=("cleo",)))
    assert "not one of the approvers (cleo)" in say(store, "mallory").problem
    assert say(store, "mallory", approve=False).outcome is None
    assert kinds(store) == ["approval asked", "answer refused", "answer refused"]


def test_a_late_answer_ends_the_request_as_expired(store: Store) -> None:
    ask(store)
    late = say(store, "cleo", later=timedelta(days=8))
    assert late.outcome == "expired" and "too late" in late.problem
    assert kinds(store) == ["approval asked", "answer refused", "approval expired"]
    with pytest.raises(NotApproved, match="its request is expired"):
        approvals.require(store, RELEASE, SUBJECT)


def test_an_answer_after_the_end_changes_nothing(store: Store) -> None:
    ask(store)
    say(store, "cleo", approve=False)
    after = say(store, "dan")
    assert after.outcome == "rejected" and "rejected already" in after.problem and after.approved_by == ()


def test_a_stale_answer_is_refused(store: Store) -> None:
    ask(store)
    changed = replace(SUBJECT, digests={**SUBJECT.digests, "model_digest": "sha256:other"})
    stale = say(store, "cleo", subject=changed)
    assert stale.outcome == "stale" and "no longer what was asked about" in stale.problem
    again = ask(store, subject=changed)
    assert (again.attempt, again.outcome, again.subject) == (2, None, changed)


def test_a_comment_can_be_required(store: Store) -> None:
    ask(store, ApprovalPolicy(comment_required=True))
    assert "no comment" in say(store, "cleo", comment="  ").problem
    assert say(store, "cleo", comment="seen").outcome == "granted"


def test_asking_again_is_the_same_request_until_it_ended_without_approval(store: Store) -> None:
    assert ask(store) == ask(store)
    say(store, "cleo", approve=False)
    assert ask(store).attempt == 2
    say(store, "cleo")
    assert ask(store).outcome == "granted" and ask(store).attempt == 2
    assert kinds(store).count("approval asked") == 2


def test_an_unanswered_request_is_asked_again_after_it_expired(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(store)
    assert approvals.expire(store, RELEASE).outcome == "expired"
    assert approvals.expire(store, RELEASE).outcome == "expired" and kinds(store).count("approval expired") == 1
    ask(store)
    monkeypatch.setattr(approvals, "now", lambda: now() + timedelta(days=ONE.valid_days))
    assert ask(store).attempt == 3 and kinds(store).count("approval expired") == 2


@pytest.mark.parametrize(
    "change", [{"version": 8}, {"replaces": 5}, {"target": "other/stable"}, {"digests": {**SUBJECT.digests, "evidence_digest": "x"}}]
)
def test_an_approval_is_good_for_nothing_else(store: Store, change: dict[str, object]) -> None:
    ask(store)
    say(store, "cleo")
    with pytest.raises(NotApproved, match=f"not what would be released: {next(iter(change))} was"):
        approvals.require(store, RELEASE, replace(SUBJECT, **change))  # type: ignore[arg-type]
    with pytest.raises(NotApproved, match="nobody was asked"):
        approvals.require(store, "digits_release/run-2", SUBJECT)


def test_something_else_in_the_same_release_is_asked_anew(store: Store) -> None:
    ask(store)
    other = replace(SUBJECT, version=8)
    assert ask(store, subject=other).attempt == 2
    assert kinds(store) == ["approval asked", "approval stale", "approval asked"]
