"""A person, or several, agree to a release; or a policy does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import ParamValidationError

from airflow_mlops.exceptions import NotApproved, UsersUnknown
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, hand_over, take
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.people import people
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.hooks.workspace import run_of, target, tell_notifiers, who_triggered

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.approvals import Answer, Request, Subject
    from airflow_mlops.ledger.store import Store

COMMENT = "comment"


class ApproveReleaseOperator(ApprovalOperator, HandsOver):
    """Ask until as many different people as the policy wants have approved, one rejects, or the time is over; or let the policy approve.

    What was asked, every answer and the outcome are in the ledger and its audit trail, bound to the model's, the dataset's and the evidence's
    digest, the version to be replaced and the target; `PublishSavedModelOperator` publishes nothing without it. An answer that does not count (of an
    author, of someone who is not an approver, a second one of the same person) is recorded, and the task asks again. The question and its figures
    are from the ledger and the records; notifiers find them in ``approval_question``, and how far the request is in ``approval_progress``.

    :param model: description of the version, as `MlflowSelectCandidateOperator` returns it.
    :param policy: who must agree, and until when.
    :param version_label: version label that the release moves; with the server's connection it is the target that people agree to.
    """

    template_fields = (*ApprovalOperator.template_fields, "model")
    ui_color = "#fdf3d0"

    def __init__(
        self,
        *,
        model: Any,
        policy: ApprovalPolicy,
        version_label: str = "stable",
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        tf_serving_conn_id: str = TFServingHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        required = {"type": "string", "minLength": 1} if policy.comment_required else {"type": ["null", "string"]}
        comment = Param(None, **required, title="Comment", description="Why; it goes into the audit trail.")
        # Airflow hands a task the DAG's own params, too, which do not belong into the form. Approvers are names, Airflow's assigned users are ids,
        # which with FAB are numbers: the ledger refuses the answers of others, and says so.
        super().__init__(**{"subject": "Release?", **kwargs, "params": {COMMENT: comment}})
        self.model = model
        self.policy = policy
        self.version_label = version_label
        self.mlflow_conn_id = mlflow_conn_id
        self.tf_serving_conn_id = tf_serving_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> Any:
        from airflow_mlops.ledger import approvals

        with self._ledger() as store:
            description = self._describe(store, context)
            authors = tuple(sorted({*description["authors"].splitlines(), *who_triggered(context)}))
            # A policy must not approve what the gate leaves to a person.
            policy = dataclasses.replace(self.policy, num_approvals=max(1, self.policy.num_approvals)) if description["questions"] else self.policy
            unchecked = self._check_approvers(policy, context["ti"].dag_id, authors)
            request = approvals.ask(store, run_of(context), self._subject(description), policy, authors)
        return self._go_on(context, dataclasses.replace(request, problem=unchecked))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Count the answer in `event`, and ask again while it is not enough."""
        from airflow_mlops.ledger import approvals

        if "error" in event:
            with self._ledger() as store:
                approvals.expire(store, run_of(context))
            self.process_trigger_event_error(event)
        invalid = self._invalid(context, event)
        answer = _answer(event)
        answer = dataclasses.replace(answer, known_as=self._known_as(answer.name, context["ti"].dag_id))
        with self._ledger() as store:
            self._describe(store, context)
            request = approvals.answer(store, run_of(context), answer, self._subject(self._now()), invalid)
        if request.outcome == approvals.REJECTED:
            return super().execute_complete(context, event)  # which skips what follows
        return self._go_on(context, request)

    def _invalid(self, context: Context, event: dict[str, Any]) -> str:
        """Return why the form could not have sent this answer, or nothing: the API takes anything as an answer."""
        try:
            HITLOperator.execute_complete(self, context, event)
            if len(event["chosen_options"]) != 1:
                raise ValueError(f"{len(event['chosen_options'])} options are chosen, expected one of {', '.join(self.options)}")
        except (ValueError, ParamValidationError) as error:
            return f"The answer does not fit the form: {' '.join(str(error).split())}"
        return ""

    def _describe(self, store: Store, context: Context) -> dict[str, Any]:
        """Put the question and its figures where people see them, from ledger and records, and return the version's description."""
        from airflow_mlops.registry.form import form, question
        from airflow_mlops.registry.registrations import evidence_of, registered

        (self.model,) = take(store, context, self.model)
        tags = registered(store, self.model["name"], self.model["version"])
        evidence = evidence_of(tags)
        self.subject, self.body = question(self.model), form(self.model, tags, evidence, self.policy)
        said = " ".join([self.subject, *self.model["questions"], f"{evidence.evaluation.headline()}."])
        tell_notifiers(context, approval_question=said)
        return {**tags, **self.model}

    def _go_on(self, context: Context, request: Request) -> Any:
        """Return the approval, or ask (again), or fail where no answer can help any more."""
        from airflow_mlops.ledger import approvals
        from airflow_mlops.ledger.store import now

        self.log.info("%s", request.progress())
        if request.outcome == approvals.GRANTED:
            answer = {"approved_by": list(request.approved_by), "binding": request.subject.binding, "headline": request.progress()}
            with self._ledger() as store:
                return hand_over(store, context, answer)
        if request.outcome is not None:
            with airflow_errors():
                raise NotApproved(f"The request is {request.outcome}. {request.problem} Clear this task to ask again.")
        tell_notifiers(context, approval_progress=request.progress())
        self.response_timeout = max(request.expires_at - now(), request.expires_at.resolution)
        return super().execute(context)

    def _check_approvers(self, policy: ApprovalPolicy, dag_id: str, authors: Sequence[str]) -> str:
        """Return what could not be found out about the approvers, empty for nothing.

        :raises NotApproved: there is no such user, or too few of them can approve: better now than when the time is over.
        """
        if not policy.approvers or not policy.num_approvals:
            return ""
        try:
            found = people(policy.approvers, dag_id)
        except UsersUnknown as error:
            self.log.warning("%s", error)
            return f"It could not be checked whether {', '.join(policy.approvers)} are users who may answer: see the log of {self.task_id}."
        if missing := [name for name in policy.approvers if name not in found]:
            raise NotApproved(
                f"Airflow has no active user who logs in as {' or '.join(missing)}, whom the policy names as approver. "
                "Expected names, not ids. Correct the policy, or create the user; then clear this task."
            )
        if shortage := policy.shortage({name: person.known_as for name, person in found.items() if person.may_answer}, authors):
            raise NotApproved(f"{shortage} Name more approvers, or give them a role that may answer; then clear this task.")
        return ""

    def _known_as(self, name: str, dag_id: str) -> tuple[str, ...]:
        """Return what else a user is known as, so that authors are recognised by the addresses that Git knows; nothing where Airflow does not say."""
        try:
            found = people([name], dag_id)
        except UsersUnknown as error:
            self.log.warning("%s is compared with the authors by this name alone. %s", name, error)
            return ()
        return found[name].known_as if name in found else ()

    def _subject(self, description: Any) -> Subject:
        from airflow_mlops.ledger.approvals import Subject

        return Subject.of(description, target(self.tf_serving_conn_id, self.version_label))

    def _now(self) -> dict[str, Any]:
        """Return the version's description as the registry has it now, with whom it would replace now."""
        from airflow_mlops.registry.promotion import reigning

        registry = MlflowHook(self.mlflow_conn_id).get_conn()
        with self._ledger() as store:
            name, version = self.model["name"], int(self.model["version"])
            champion = reigning(store, registry, name)
            replaces = champion.version if champion else None
            return {**registry.get(name, version).tags, "name": name, "version": version, "expected_champion": replaces}

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[Store]:
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            yield store


def _answer(event: dict[str, Any]) -> Answer:
    from airflow_mlops.ledger.approvals import Answer

    comment = (event["params_input"] or {}).get(COMMENT)
    return Answer(
        user_id=event["responded_by_user"]["id"],
        name=event["responded_by_user"]["name"],
        approve=event["chosen_options"] == [ApprovalOperator.APPROVE],
        at=event["responded_at"],
        comment=comment if isinstance(comment, str) else "",
    )
