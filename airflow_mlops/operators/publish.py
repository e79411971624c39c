"""Bring the files of an approved model version to where the model server finds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.exceptions import MlopsError, PromotionConflict
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, hand_over, take
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.signing import check_signature
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.hooks.workspace import run_of, target, try_directory

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.store import Store
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion
    from airflow_mlops.serving.retention import RetentionPolicy


class PublishSavedModelOperator(BaseOperator, HandsOver):
    """Copy a registered version's SavedModel, verified by its digest, to the model server's base path, and take old versions away.

    The base path is that of the connection: a directory, or the URL of an object store. The server warms the version up on the rows of the golden
    answers. A version whose graph would run Python or reach files is refused, unless the connection allows it, and an unsigned one, or one
    signed with another key, where ``[mlops] verification_key`` is set. Digests are those in the ledger. Returns the model's description with
    ``golden``, the path of the offline answers that the served ones must equal, and their digest.

    :param model: description of the version, as `MlflowSelectCandidateOperator` returns it.
    :param version_label: version label that clients ask for: the version that has it decides which signatures must stay as they are.
    :param signature_change_allowed: publish a version that clients of the serving one could not ask; only ``True`` allows it, no text does.
    :param keep_versions: how many published versions stay below the base path, at least. What the server's configuration names stays too, and
        so do the version before the serving one and what was not published from here. 3 are the serving one, its way back and a candidate.
    :param approval_required: whether the ledger must hold an approval of this run, by `ApproveReleaseOperator`, for exactly this version.
    :raises NotApproved: it holds none; nothing was touched.
    :raises PromotionConflict: the champion changed while the version waited for its approval; nothing was touched.
    """

    template_fields = ("model", "signature_change_allowed")
    ui_color = "#e2f4e4"

    def __init__(
        self,
        *,
        model: Any,
        version_label: str = "stable",
        signature_change_allowed: bool = False,
        keep_versions: int = 3,
        approval_required: bool = True,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        tf_serving_conn_id: str = TFServingHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.version_label = version_label
        self.signature_change_allowed = signature_change_allowed
        self.keep_versions = keep_versions
        self.approval_required = approval_required
        self.mlflow_conn_id = mlflow_conn_id
        self.tf_serving_conn_id = tf_serving_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.registry.files import fetch
        from airflow_mlops.registry.registrations import verified
        from airflow_mlops.serving.retention import RetentionPolicy

        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            (self.model,) = take(store, context, self.model)
            name, version = self.model["name"], self.model["version"]
            policy = RetentionPolicy(self.keep_versions)
            registry = MlflowHook(self.mlflow_conn_id).get_conn()
            registered = registry.get(name, version)
            tags = verified(store, registered)
            self._check(store, registry, tags, context)
            out_dir = try_directory(context)
            golden = fetch(registry, registered, "golden.json", out_dir / "golden.json", tags["golden_digest"])
            registry.download(registered, "saved_model", out_dir / "saved_model")
            path = self._publish(registered, out_dir, tags["saved_model_digest"], policy)
            files = {"golden": str(golden), "golden_digest": tags["golden_digest"], "path": path}
            headline = f"{name} version {version} is published at {path}"
            self.log.info("%s", headline)
            return dict(hand_over(store, context, {**self.model, **files, "headline": headline}))

    def _check(self, store: Store, registry: ModelRegistry, tags: Mapping[str, str], context: Context) -> None:
        from airflow_mlops.ledger.approvals import Subject, require
        from airflow_mlops.registry.promotion import reigning

        name, version, expected = self.model["name"], self.model["version"], self.model["expected_champion"]
        if self.approval_required:
            require(store, run_of(context), Subject.of({**tags, **self.model}, target(self.tf_serving_conn_id, self.version_label)))
        champion = reigning(store, registry, name)
        found = champion.version if champion else None
        if found not in (expected, version):  # its own version: a finished release that is run again
            raise PromotionConflict(
                f"The champion of {name!r} was {expected or 'nobody'} when version {version} was selected and is {found or 'nobody'} now. "
                "Clear the task 'evaluate' of the run that trained it with all that follows, so that it is compared again. Nothing was published."
            )

    def _publish(self, registered: ModelVersion, files: Path, digest: str, policy: RetentionPolicy) -> str:
        """Publish, remove old versions, and return the place."""
        hook = TFServingHook(self.tf_serving_conn_id)
        allowed = self.signature_change_allowed is True
        path = publish(hook, registered, files, digest, version_label=self.version_label, signature_change_allowed=allowed)
        self._retain(hook, policy)
        return path

    def _retain(self, hook: TFServingHook, policy: RetentionPolicy) -> None:
        """Take old versions away; when that fails the release goes on, and the next one tries again."""
        from airflow_mlops.serving.retention import retain

        version, base_path, options = self.model["version"], hook.base_path(self.model["name"]), hook.storage_options()
        config_file = Path(hook.extra("config_path"))
        try:
            removed = retain(base_path, policy, config_file, version=version, label=self.version_label, storage_options=options)
        except MlopsError as error:
            self.log.warning("Old versions below %s stay where they are: %s", base_path, error)
        else:
            self.log.info("Old versions removed: %s", removed or "none")


def publish(
    hook: TFServingHook, registered: ModelVersion, files: Path, digest: str, *, version_label: str, signature_change_allowed: bool = False
) -> str:
    """Publish the SavedModel of this digest that was downloaded to `files`; return the place.

    The golden answers there are what the server warms up on. A version that is published already must be as it was published.
    """
    from airflow_mlops.serving import config
    from airflow_mlops.serving.publish import inspect_saved_model, publish_saved_model
    from airflow_mlops.serving.usage import Usage

    base_path, saved_model = hook.base_path(registered.name), files / "saved_model"
    check_signature(registered, saved_model)
    inspect_saved_model(saved_model, digest, code_allowed=hook.unsafe_models_allowed())
    return publish_saved_model(
        saved_model,
        base_path,
        registered.version,
        digest,
        golden=files / "golden.json",
        usage=Usage.of(config.read(Path(hook.extra("config_path"))), base_path, version_label),
        signature_change_allowed=signature_change_allowed,
        storage_options=hook.storage_options(),
    )
