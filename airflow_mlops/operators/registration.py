"""Offer a trained model for release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mlops.exceptions import SpecError
from airflow_mlops.gates import ReleasePolicy
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import evidence_refs
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.signing import signature_tags
from airflow_mlops.hooks.workspace import prices, run_of, who_triggered
from airflow_mlops.records import ResultRef, evidence_digest, record_of, refs_text
from airflow_mlops.registry.base import NO_CHAMPION
from airflow_mlops.splits import SPLIT_TAG

if TYPE_CHECKING:
    from airflow.sdk import Asset, Context

    from airflow_mlops.ledger.store import Store
    from airflow_mlops.registry.registrations import Evidence


class MlflowRegisterModelOperator(BaseOperator):
    """Register the trained model, signed where ``[mlops] signing_key`` is set, with every gate as a tag and the alias ``candidate``.

    Decides by the policy itself, from the records behind the references, and writes into the audit trail what it registers; that, and not the
    tags, is what a release believes. The same training registers once.

    :param model_name: the registered model.
    :param evaluation: reference to the evaluation's result record.
    :param robustness: reference to the robustness campaign's result record.
    :param policy: the thresholds, as for `GateModelOperator`.
    :param candidate: asset whose event starts the release, with the version in its extra.
    """

    template_fields = ("evaluation", "robustness")
    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        model_name: str,
        evaluation: Any,
        robustness: Any,
        policy: ReleasePolicy,
        candidate: Asset,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(outlets=[candidate], **kwargs)
        self.model_name = model_name
        self.evaluation = evaluation
        self.robustness = robustness
        self.policy = policy
        self.candidate = candidate
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.registry.nomination import nominate
        from airflow_mlops.registry.registrations import Evidence, note

        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            refs = evidence_refs(store, context, self.evaluation, self.robustness)
            evidence = Evidence.of(refs)
            tags = self._tags(store, evidence, refs, context)
            registry, training = MlflowHook(self.mlflow_conn_id).get_conn(), evidence.training
            signed = {**tags, **signature_tags(training.saved_model.path)}
            version = registry.register(self.model_name, training.mlflow_run_id, training.mlflow_source, tags=signed)
            run, name = run_of(context), self.model_name
            nominated = nominate(registry, version, signed, lambda: note(store, name, version.version, run, tags))
        if not nominated:  # skipped, so that no event starts a release
            raise AirflowSkipException(
                f"{name} version {version.version} is not offered: it is champion already, or a newer one is candidate or champion."
            )
        headline = f"{self.model_name} version {version.version} is the candidate"
        self.log.info("%s", headline)
        context["outlet_events"][self.candidate].extra = {"model": self.model_name, "version": version.version}
        return {"name": self.model_name, "version": version.version, "headline": headline}

    def _tags(self, store: Store, evidence: Evidence, refs: Mapping[str, ResultRef], context: Context) -> dict[str, str]:
        from airflow_mlops.registry.registrations import authors_before

        training, decision = evidence.training, evidence.decision(self.policy)
        if not decision.released:
            raise SpecError(f"The policy does not let this model pass ({decision.headline()}); only one that passes is registered.")
        runs = {"airflow_run": run_of(context), "mlflow_run": training.mlflow_run_id}
        authors = {*training.code_authors, *who_triggered(context), *authors_before(store, self.model_name, runs)}
        return {
            **runs,
            "dataset": f"{training.dataset.dataset} {training.dataset.name}",
            "dataset_digest": training.dataset.digest,
            "code_version": training.code_version,
            "authors": "\n".join(sorted(authors)),
            "model_digest": training.model.digest,
            "saved_model_digest": training.saved_model.digest,
            "golden_digest": training.golden.digest,
            **({"features_digest": training.features.digest} if training.features else {}),
            SPLIT_TAG: training.split.digest,
            "evidence": refs_text(refs),
            "evidence_digest": evidence_digest(refs),
            "evaluated_against": evidence.evaluation.champion_version or NO_CHAMPION,
            **_spent(refs),
            "gate.validation": evidence.validation.headline(),
            "gate.evaluation": evidence.evaluation.headline(),
            "gate.robustness": evidence.robustness.headline(),
            "gate.decision": decision.headline(),
        }


def _spent(evidence: Mapping[str, ResultRef]) -> dict[str, str]:
    """Return what each stage used and cost, as tags; older records do not say it."""
    records = {stage: record_of(ref) for stage, ref in evidence.items()}
    used = {f"usage.{stage}": record.usage.sentence(prices()) for stage, record in records.items() if record.usage is not None}
    return used | {f"image.{stage}": record.image for stage, record in records.items() if record.image}
