"""Who agreed to a release, to what exactly, and who was not allowed to.

A request is bound to what is asked about (`Subject`): the model's, the dataset's and the evidence's digest, the version it replaces and the
target. It ends with one outcome: granted by as many different people as the policy wants, or by the policy itself, rejected by one, expired, or
stale because what it is bound to changed. Every answer is an event of the audit trail, those that do not count with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from airflow_mlops.artifacts import bytes_digest, canonical_json
from airflow_mlops.exceptions import NotApproved
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.ledger import rows
from airflow_mlops.ledger.chain import Event, parsed
from airflow_mlops.ledger.store import Store, insert_new, now
from airflow_mlops.ledger.tables import APPROVAL_REQUESTS, APPROVALS, AUDIT_EVENTS

GRANTED, REJECTED, EXPIRED, STALE = "granted", "rejected", "expired", "stale"
ASKED = "approval asked"
_BOUND = ("model_digest", "dataset_digest", "evidence_digest")


@dataclass(frozen=True)
class Subject:
    """What is approved: version `version` of `model` with these digests, in place of version `replaces`, on `target`."""

    model: str
    version: int
    replaces: int | None
    target: str
    digests: Mapping[str, str | None]

    @classmethod
    def of(cls, description: Mapping[str, Any], target: str) -> Subject:
        """Return the subject that the description of a selected version names."""
        digests = {name: description.get(name) for name in _BOUND}
        return cls(description["name"], int(description["version"]), description["expected_champion"], target, digests)

    @property
    def binding(self) -> str:
        """Digest of all of it."""
        return bytes_digest(canonical_json(asdict(self)))


@dataclass(frozen=True)
class Answer:
    """What the Airflow user who logs in as `name` said at `at`, a time with its zone; `known_as` are other names of theirs, such as an address."""

    name: str
    user_id: str  # the auth manager's, with FAB a number
    approve: bool
    at: datetime
    comment: str = ""
    known_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A request as it stands: open while `outcome` is None, approved so far by `approved_by`; `problem` is why the last answer did not count."""

    release: str
    attempt: int
    subject: Subject
    num_approvals: int
    expires_at: datetime
    outcome: str | None
    approved_by: tuple[str, ...]
    problem: str = ""

    def progress(self) -> str:
        """Say how far it is, in one sentence."""
        if self.num_approvals == 0:
            return "Approved by policy; no person was asked."
        by = f" by {', '.join(self.approved_by)}" if self.approved_by else ""
        said = f"{len(self.approved_by)} of {self.num_approvals} approvals{by}."
        return f"{said} {self.problem}" if self.problem else said


def ask(store: Store, release: str, subject: Subject, policy: ApprovalPolicy, authors: tuple[str, ...]) -> Request:
    """Return the request of `release` for `subject`: the open or granted one, or a new one where the last ended otherwise.

    :param release: whose request it is: ``DAG id/run id``.
    :param authors: whose work is released: who triggered the runs and who wrote the code, as names of Airflow users, or names and e-mail addresses.
        Whoever was an author when this version was asked about before still is one.
    """
    with store.transaction() as connection:
        last, asked_at = _last(connection, release), now()
        if last is not None and last.outcome is None and last.subject != subject:
            _end(connection, last, STALE, "What was asked about changed before it was answered.")
        elif last is not None and last.outcome is None and last.expires_at <= asked_at:
            _end(connection, last, EXPIRED, _in_time(last))
        elif last is not None and last.outcome in (None, GRANTED) and last.subject == subject:
            return last
        authors = tuple(dict.fromkeys([*authors, *_authors_before(connection, subject)]))
        said = {"subject": asdict(subject), "policy": asdict(policy), "authors": list(authors)}
        row: dict[str, Any] = {"release": release, "attempt": (last.attempt if last else 0) + 1, "binding": subject.binding, "request": said}
        row |= {"outcome": None, "asked_at": asked_at, "expires_at": asked_at + timedelta(days=policy.valid_days)}
        if not insert_new(connection, APPROVAL_REQUESTS, row):  # on PostgreSQL: another process of the same task asked at this moment
            return _open(connection, release)
        request = Request(release, row["attempt"], subject, policy.num_approvals, row["expires_at"], None, ())
        _note(connection, request, ASKED, release, {"policy": said["policy"], "authors": list(authors)})
        if policy.num_approvals == 0:
            _end(connection, request, GRANTED, "The policy asks nobody.")
        return _open(connection, release)


def answer(store: Store, release: str, said: Answer, subject: Subject, invalid: str = "") -> Request:
    """Count an answer, or refuse it with a reason in the trail and in the returned request's `problem`; return how the request stands then.

    :param subject: what would be released now, looked at after the answer; another one than was asked about makes the request stale.
    :param invalid: why the answer cannot count, from any user.
    :raises NotApproved: nothing was asked.
    """
    with store.transaction() as connection:
        request = _open(connection, release)
        outcome, problem = _judge(connection, request, said, subject)
        if invalid and not problem:
            outcome, problem = None, invalid
        about = {"user_id": said.user_id, "known_as": list(said.known_as), "answered_at": said.at.isoformat(), "comment": said.comment}
        if problem:
            verb = "approve" if said.approve else "reject"
            _note(connection, request, "answer refused", said.name, {**about, "wanted": verb, "reason": problem})
        elif said.approve:
            row = {"approver": said.name, "comment": said.comment, "answered_at": said.at}
            insert_new(connection, APPROVALS, {"release": release, "attempt": request.attempt, **row})
            approval = (APPROVALS, {"release": release, "attempt": request.attempt, "approver": said.name})
            _note(connection, request, "approved", said.name, about, approval)
            request = _open(connection, release)
            outcome = GRANTED if len(request.approved_by) >= request.num_approvals else None
        else:
            _note(connection, request, "rejected", said.name, about)
        if outcome is not None and request.outcome is None:
            _end(connection, request, outcome, problem)
        return replace(_open(connection, release), problem=problem)


def expire(store: Store, release: str) -> Request:
    """End an open request because nobody answered in time."""
    with store.transaction() as connection:
        request = _open(connection, release)
        if request.outcome is None:
            _end(connection, request, EXPIRED, _in_time(request))
        return _open(connection, release)


def require(store: Store, release: str, subject: Subject) -> Request:
    """Return the granted request of `release` for exactly `subject`.

    :raises NotApproved: there is none: nobody was asked, the answer is missing, or something else was approved.
    """
    with store.transaction() as connection:
        request = _last(connection, release)
    what = f"{subject.model} version {subject.version} on {subject.target}"
    if request is None or request.outcome != GRANTED:
        found = "nobody was asked" if request is None else f"its request is {request.outcome or 'open'}"
        raise NotApproved(
            f"The release {release} of {what} is not approved: {found}. A task marked as done by hand approves nothing; clear 'approve'."
        )
    if request.subject != subject:
        before, after = asdict(request.subject), asdict(subject)
        changed = ", ".join(f"{name} was {before[name]} and is {after[name]}" for name in before if before[name] != after[name])
        raise NotApproved(f"What was approved for {what} is not what would be released: {changed}. Clear 'select' with all that follows.")
    return request


def _judge(connection: sa.Connection, request: Request, said: Answer, subject: Subject) -> tuple[str | None, str]:
    """Return the outcome that an answer brings about, if any, and why it does not count, if so."""
    policy, authors = _terms(connection, request)
    if request.outcome is not None:
        return None, f"The answer comes too late: the request is {request.outcome} already."
    if said.at > request.expires_at:
        return (
            EXPIRED,
            f"The answer of {said.at:%Y-%m-%d %H:%M:%S} comes too late: the request expired on {request.expires_at:%Y-%m-%d %H:%M:%S} UTC.",
        )
    if request.subject != subject:
        return STALE, "The answer is stale: what would be released is no longer what was asked about."
    if policy.approvers and said.name not in policy.approvers:
        return None, f"{said.name} is not one of the approvers ({', '.join(policy.approvers)})."
    if said.approve and not policy.author_may_approve and (author := policy.author(said.name, said.known_as, authors)):
        return None, f"{said.name} is an author of what is released ({author}); another person must approve it."
    if said.approve and said.name in request.approved_by:
        return None, f"{said.name} has approved already; the next approval must come from another person."
    if policy.comment_required and not said.comment.strip():
        return None, f"{said.name} gave no comment, and the policy asks for one."
    return None if said.approve else REJECTED, ""


def _terms(connection: sa.Connection, request: Request) -> tuple[ApprovalPolicy, tuple[str, ...]]:
    said = next(row["request"] for row in rows.proven(connection, APPROVAL_REQUESTS, release=request.release) if row["attempt"] == request.attempt)
    return ApprovalPolicy(**{**said["policy"], "approvers": tuple(said["policy"]["approvers"])}), tuple(said["authors"])


def _authors_before(connection: sa.Connection, subject: Subject) -> Iterator[str]:
    """Yield the authors of every request about this version, in whatever run."""
    table = AUDIT_EVENTS.c
    query = sa.select(table.line).where(table.kind == ASKED, table.subject == f"{subject.model}@{subject.version}")
    for line in connection.scalars(query):
        yield from parsed(line).details["authors"]


def _last(connection: sa.Connection, release: str) -> Request | None:
    table = APPROVAL_REQUESTS.c
    connection.execute(sa.select(table.attempt).where(table.release == release).with_for_update())  # no other answer is counted meanwhile
    requests = rows.proven(connection, APPROVAL_REQUESTS, release=release)
    if not requests:
        return None
    row = requests[-1]
    given = [one for one in rows.proven(connection, APPROVALS, release=release) if one["attempt"] == row["attempt"]]
    approved_by = tuple(one["approver"] for one in sorted(given, key=lambda one: (one["answered_at"], one["approver"])))
    subject, num_approvals = Subject(**row["request"]["subject"]), row["request"]["policy"]["num_approvals"]
    return Request(release, row["attempt"], subject, num_approvals, row["expires_at"], row["outcome"], approved_by)


def _in_time(request: Request) -> str:
    return f"{len(request.approved_by)} of {request.num_approvals} approvals came in time."


def _open(connection: sa.Connection, release: str) -> Request:
    request = _last(connection, release)
    if request is None:
        raise NotApproved(f"Nobody was asked about the release {release}. Clear its task 'approve', so that somebody is.")
    return request


def _end(connection: sa.Connection, request: Request, outcome: str, reason: str) -> None:
    table = APPROVAL_REQUESTS.c
    key = (table.release == request.release, table.attempt == request.attempt)
    connection.execute(APPROVAL_REQUESTS.update().where(*key).values(outcome=outcome))
    by = list(request.approved_by) or ["policy" if outcome == GRANTED else "nobody"]
    _note(connection, request, f"approval {outcome}", request.release, {"approved_by": by, "reason": reason})


def _note(
    connection: sa.Connection, request: Request, kind: str, actor: str, details: Mapping[str, Any], *also: tuple[sa.Table, Mapping[str, Any]]
) -> None:
    """Add an event that states the request as it is now, and the rows `also`."""
    subject = request.subject
    bound = {"release": request.release, "attempt": request.attempt, "binding": subject.binding, "target": subject.target, **subject.digests}
    event = Event(kind, f"{subject.model}@{subject.version}", actor, {**details, **bound})
    rows.state(connection, event, (APPROVAL_REQUESTS, {"release": request.release, "attempt": request.attempt}), *also)
