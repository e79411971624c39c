"""Pick up a registered model for release, and make it the champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.exceptions import PromotionConflict, SpecError
from airflow_mlops.gates import ReleasePolicy
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, hand_over, take
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.workspace import run_of, tell_notifiers
from airflow_mlops.registry.base import CANDIDATE, NO_CHAMPION

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.champions import Claim
    from airflow_mlops.ledger.store import Store
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion

EVIDENCE = ("airflow_run", "code_version", "dataset", "dataset_digest", "evaluated_against", "evidence_digest", "golden_digest", "saved_model_digest")


class MlflowSelectCandidateOperator(BaseOperator, HandsOver):
    """Return which version to release and whom it replaces: the one asked for, the one that started the run, or the registry's candidate.

    A version is what the ledger says of it, and the policy is applied again to the records it was registered with.

    :param model_name: the registered model.
    :param policy: the thresholds.
    :param version: version number; empty for the one that started the run, or the alias ``candidate``.
    :raises PromotionConflict: the champion is no longer the one this version was compared with.
    """

    template_fields = ("version",)
    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        model_name: str,
        policy: ReleasePolicy,
        version: Any = None,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.policy = policy
        self.version = version
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.registry.registrations import evidence_of, verified

        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            registry = MlflowHook(self.mlflow_conn_id).get_conn()
            model = self._chosen(store, registry, context)
            tags = verified(store, model)
            decision = evidence_of(tags).decision(self.policy)
            if not decision.released:
                raise SpecError(f"{self.model_name} version {model.version} is not to be released by today's policy ({decision.headline()}).")
            expected, token = self._champion(store, registry, model, tags)
            about = {"name": self.model_name, "version": model.version, "expected_champion": expected, "fencing_token": token}
            headline = f"{self.model_name} version {model.version}, to replace {f'version {expected}' if expected else 'nothing, it is the first'}"
            said = {"decision": decision.headline(), "questions": list(decision.questions), "headline": headline}
            return dict(hand_over(store, context, {**about, **said}))

    def _chosen(self, store: Store, registry: ModelRegistry, context: Context) -> ModelVersion:
        from airflow_mlops.registry.aliases import version_of
        from airflow_mlops.registry.registrations import registered

        wanted = version_of(self.version)
        if wanted is None:
            wanted = self._triggering(store, context)
        if wanted is None:
            return registry.get_by_alias(self.model_name, CANDIDATE)
        registered(store, self.model_name, wanted)  # before the registry is asked for an arbitrary number
        return registry.get(self.model_name, wanted)

    def _triggering(self, store: Store, context: Context) -> int | None:
        """Return the newest version that the asset events name and the ledger knows; whoever may write asset events may write anything."""
        from airflow_mlops.registry.registrations import is_registered

        found = []
        for event in (event for events in (context.get("triggering_asset_events") or {}).values() for event in events):
            extra = event.extra if isinstance(event.extra, Mapping) else {}
            version = extra.get("version")
            if extra.get("model") == self.model_name and type(version) is int and is_registered(store, self.model_name, version):
                found.append(version)
            else:
                self.log.warning("An asset event with %r names no registered version of %s. It is not used.", event.extra, self.model_name)
        return max(found, default=None)

    def _champion(self, store: Store, registry: ModelRegistry, model: ModelVersion, tags: Mapping[str, str]) -> tuple[int | None, int]:
        """Return who is to be replaced, and its fencing token: the one that the version was compared with, or itself."""
        from airflow_mlops.registry.promotion import reigning

        champion = reigning(store, registry, self.model_name)
        serving = str(champion.version) if champion else NO_CHAMPION
        if serving not in (tags["evaluated_against"], str(model.version)):
            raise PromotionConflict(
                f"{self.model_name} version {model.version} was compared with champion {tags['evaluated_against']}, but the champion is now "
                f"{serving}. {_todo(store, model, tags['airflow_run'])}"
            )
        return (champion.version, champion.token) if champion else (None, 0)


def _todo(store: Store, model: ModelVersion, run: str) -> str:
    """Return what to do with a version that was compared with another champion than the present one."""
    from airflow_mlops.registry.promotion import way_back
    from airflow_mlops.registry.rollback import was_champion

    if was_champion(store, model.name, model.version):
        return f"It was champion before. {way_back(model.name, model.version)}"
    return f"Clear the task 'evaluate' of {run} with all that follows, so that it is compared again."


class MlflowPromoteModelOperator(BaseOperator, HandsOver):
    """Make a version that serves the champion, in the ledger and by the aliases ``champion`` and ``previous``; or find it so.

    Returns the model's description with ``audit_head``, the audit trail's head, which is also noted as a tag of the version; notifiers find both
    in ``promoted``.

    :param model: description of the version, as `TFServingRolloutOperator` returns it.
    :raises PromotionConflict: the champion was moved meanwhile.
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

        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            (model,) = take(store, context, self.model)
            registry = MlflowHook(self.mlflow_conn_id).get_conn()
            claim = _claim(store, registry, model, context)
            name, version = claim.model, claim.version

            def make_champion() -> dict[str, Any]:
                done = promote(store, registry, claim)
                return {"champion": done.champion, "previous": done.previous}

            # Each try looks again: a memory of an earlier one would be no proof that the aliases are still so.
            done = once(store, claim.intent, "promote", {"model": name, "version": version, "run": claim.actor}, make_champion, again=True)
            read_back(store, claim.intent, lambda: project(store, registry, name))
            kept = f"; version {done['previous']} is kept as previous" if done["previous"] else ""
            headline = f"{name} version {version} is the champion{kept}"
            answer = {**model, **done, "audit_head": str(anchor(store, registry, name, version)), "headline": headline}
            tell_notifiers(context, promoted=answer)
            self.log.info("%s", headline)
            return dict(hand_over(store, context, answer))


def _claim(store: Store, registry: ModelRegistry, model: Mapping[str, Any], context: Context) -> Claim:
    from airflow_mlops.ledger.champions import Claim
    from airflow_mlops.registry.registrations import verified

    ti, run, name, version = context["ti"], run_of(context), model["name"], int(model["version"])
    tags = verified(store, registry.get(name, version))
    why = {key: tags[key] for key in sorted(tags) if key.startswith("gate.") or key in EVIDENCE}
    intent = f"promote:{name}:{version}:{ti.dag_id}:{ti.run_id}"
    return Claim(intent, name, version, model["expected_champion"], model["fencing_token"], tags["model_digest"], actor=run, details=why)
