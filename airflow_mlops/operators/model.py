"""Register a trained model, pick it up for release, and make it the champion."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mlops.exceptions import PromotionConflict, SpecError
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.signing import signature_tags
from airflow_mlops.hooks.workspace import prices, run_of, who_triggered
from airflow_mlops.records import ResultRef, evidence_digest, load, record_of
from airflow_mlops.registry.base import CANDIDATE
from airflow_mlops.results import EvaluationResult, TrainingResult, from_data
from airflow_mlops.splits import SPLIT_TAG

if TYPE_CHECKING:
    from airflow.sdk import Asset, Context

    from airflow_mlops.ledger.champions import Claim

NO_CHAMPION = "none"
EVIDENCE = ("airflow_run", "code_version", "dataset", "dataset_digest", "evaluated_against", "evidence_digest", "golden_digest", "saved_model_digest")


class MlflowRegisterModelOperator(BaseOperator):
    """Register the trained model, signed where ``[mlops] signing_key`` is set, with every gate as a tag and the alias ``candidate``.

    The same training registers once.

    :param model_name: the registered model.
    :param decision: the gate's answer with its evidence.
    :param candidate: asset whose event starts the release, with the version in its extra.
    """

    template_fields = ("decision",)
    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        model_name: str,
        decision: Any,
        candidate: Asset,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(outlets=[candidate], **kwargs)
        self.model_name = model_name
        self.decision = decision
        self.candidate = candidate
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.registry.nomination import nominate

        with airflow_errors():
            if not self.decision["released"]:
                raise SpecError(f"The gate did not let this model pass ({self.decision['headline']}); only one that passed is registered.")
            evidence = {stage: from_data(ResultRef, data, what="reference to a stage's result") for stage, data in self.decision["evidence"].items()}
            training = load(evidence["train"], TrainingResult)
            registry = MlflowHook(self.mlflow_conn_id).get_conn()
            tags = {**self._tags(training, evidence, context), **signature_tags(training.saved_model.path)}
            version = registry.register(self.model_name, training.mlflow_run_id, training.mlflow_source, tags=tags)
            nominated = nominate(registry, version, tags)
        if not nominated:  # skipped, so that no event starts a release
            raise AirflowSkipException(
                f"{self.model_name} version {version.version} is not offered: it is champion already, or a newer one is candidate or champion."
            )
        headline = f"{self.model_name} version {version.version} is the candidate"
        self.log.info("%s", headline)
        context["outlet_events"][self.candidate].extra = {"model": self.model_name, "version": version.version}
        return {"name": self.model_name, "version": version.version, "headline": headline}

    def _tags(self, training: TrainingResult, evidence: Mapping[str, ResultRef], context: Context) -> dict[str, str]:
        evaluation = load(evidence["evaluate"], EvaluationResult)
        return {
            "dataset": f"{training.dataset.dataset} {training.dataset.name}",
            "dataset_digest": training.dataset.digest,
            "code_version": training.code_version,
            "authors": "\n".join(sorted({*training.code_authors, *who_triggered(context)})),
            "model_digest": training.model.digest,
            "saved_model_digest": training.saved_model.digest,
            "golden_digest": training.golden.digest,
            **({"features_digest": training.features.digest} if training.features else {}),
            SPLIT_TAG: training.split.digest,
            "evidence": json.dumps({stage: {"uri": ref.uri, "digest": ref.digest} for stage, ref in sorted(evidence.items())}),
            "evidence_digest": evidence_digest(evidence),
            "evaluated_against": evaluation.champion_version or NO_CHAMPION,
            **_spent(evidence),
            "gate.validation": evidence["validate"].headline,
            "gate.evaluation": evidence["evaluate"].headline,
            "gate.robustness": evidence["robustness"].headline,
            "gate.decision": self.decision["headline"],
            "airflow_run": run_of(context),
        }


def _spent(evidence: Mapping[str, ResultRef]) -> dict[str, str]:
    """Return what each stage used and cost, as tags; older records do not say it."""
    records = {stage: record_of(ref) for stage, ref in evidence.items()}
    used = {f"usage.{stage}": record.usage.sentence(prices()) for stage, record in records.items() if record.usage is not None}
    return used | {f"image.{stage}": record.image for stage, record in records.items() if record.image}


class MlflowSelectCandidateOperator(BaseOperator):
    """Return the description of the version to release: the one that started the run, the one asked for, or the registry's candidate.

    :param model_name: the registered model.
    :param version: version number; empty for the one that started the run, or the alias ``candidate``.
    :raises PromotionConflict: the champion is no longer the one this version was compared with.
    """

    template_fields = ("version",)
    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        model_name: str,
        version: Any = None,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.version = version
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.registry.promotion import reigning

        with airflow_errors(), contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
            registry = MlflowHook(self.mlflow_conn_id).get_conn()
            wanted = self.version or self._triggering(context)
            model = registry.get(self.model_name, int(wanted)) if wanted else registry.get_by_alias(self.model_name, CANDIDATE)
            compared = model.tags.get("evaluated_against")
            if compared is None:
                raise SpecError(
                    f"{self.model_name} version {model.version} does not say what it was compared with: expected a version that a pipeline "
                    "registered after its gates. Choose such a version, or point the alias 'candidate' to one."
                )
            champion = reigning(store, registry, self.model_name)
            serving = str(champion.version) if champion else NO_CHAMPION
            if serving not in (compared, str(model.version)):
                raise PromotionConflict(
                    f"{self.model_name} version {model.version} was compared with champion {compared}, but the champion is now {serving}. "
                    f"Clear the task 'evaluate' of {model.tags.get('airflow_run', 'its run')} with all that follows, so that it is compared anew."
                )
        expected = champion.version if champion else None
        headline = f"{self.model_name} version {model.version}, to replace {f'version {expected}' if expected else 'nothing, it is the first'}"
        token = champion.token if champion else 0
        about = {"name": self.model_name, "version": model.version, "expected_champion": expected, "fencing_token": token}
        return {**model.tags, **about, "headline": headline}

    def _triggering(self, context: Context) -> int | None:
        events = [event for events in (context.get("triggering_asset_events") or {}).values() for event in events]
        versions = [int(event.extra["version"]) for event in events if event.extra.get("model") == self.model_name]
        return max(versions, default=None)


class MlflowPromoteModelOperator(BaseOperator):
    """Make a version that serves the champion, in the ledger and by the aliases ``champion`` and ``previous``; or find it so.

    :param model: description of the version, as `TFServingRolloutOperator` returns it.
    Returns the model's description with ``audit_head``, the audit trail's head, which is also noted as a tag of the version.
    :raises PromotionConflict: somebody else moved the champion meanwhile.
    """

    template_fields = ("model",)
    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        model: Any,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.ledger.journal import once, read_back
        from airflow_mlops.registry.anchors import anchor
        from airflow_mlops.registry.promotion import project, promote

        name, version, claim = self.model["name"], int(self.model["version"]), self._claim(context)
        request = {"model": name, "version": version, "run": claim.actor}

        def make_champion() -> dict[str, Any]:
            done = promote(store, registry, claim)
            return {"champion": done.champion, "previous": done.previous}

        with airflow_errors(), contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
            registry = MlflowHook(self.mlflow_conn_id).get_conn()
            # Each try looks again: a memory of an earlier one would be no proof that the aliases are still so.
            done = once(store, claim.intent, "promote", request, make_champion, again=True)
            read_back(store, claim.intent, lambda: project(store, registry, name))
            head = anchor(store, registry, name, version)
        kept = f"; version {done['previous']} is kept as previous" if done["previous"] else ""
        headline = f"{name} version {version} is the champion{kept}"
        self.log.info("%s", headline)
        return {**self.model, **done, "audit_head": str(head), "headline": headline}

    def _claim(self, context: Context) -> Claim:
        from airflow_mlops.ledger.champions import Claim

        model, ti = self.model, context["ti"]
        run, name, version = run_of(context), model["name"], int(model["version"])
        why = {key: model[key] for key in sorted(model) if key.startswith("gate.") or key in EVIDENCE}
        intent, expected = f"promote:{name}:{version}:{ti.dag_id}:{ti.run_id}", model["expected_champion"]
        return Claim(intent, name, version, expected, model.get("fencing_token"), model.get("model_digest"), actor=run, details=why)
