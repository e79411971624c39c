"""Moving traffic to a new version: both versions loaded side by side, the new one proven, then one label moved.

`begin` -> (`decide` until the version is AVAILABLE) -> `verify` -> `switch`, and `revert` from any point. Each step writes the configuration
file first, because the server starts from it after a kill, and reloads the running server second. Each step may be run again after a crash
at any point. `decide` does no IO, so that the trigger can wait without holding a worker. Where there are several replicas, each is told,
waited for and proven, and a step that fails on one fails. All is asked by gRPC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from airflow_mlops.exceptions import RolloutFailed, ServingError, SpecError
from airflow_mlops.serving import availability, config
from airflow_mlops.serving.availability import Action, Observation
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.fleet import Replicas, ServingFleet
from airflow_mlops.serving.golden import check_answers, inputs_of, read_golden, rows_of
from airflow_mlops.serving.signatures import DEFAULT_SIGNATURE
from airflow_mlops.serving.tensors import Array


class Plan(NamedTuple):
    """A rollout as plain JSON values: `previous` is the version to go back to (None: nothing served before), `deadline` in epoch seconds.

    `proven` says that this rollout was complete before: the version answered rightly under its label.
    """

    model: str
    version: int
    previous: int | None
    base_path: str
    config_path: str
    deadline: float
    label: str = "stable"
    proven: bool = False

    @property
    def stands(self) -> bool:
        """Whether the version had the label before this attempt: then it keeps it, whatever happens now."""
        return self.proven or self.previous == self.version


def decide(plan: Plan, observation: Observation, now: float) -> Action:
    """Return whether to wait for the version, to verify it (`Available`), or to give it up, at `now` (epoch seconds)."""
    return availability.decide(observation, plan.version, now, plan.deadline)


def observe(client: Replicas, plan: Plan) -> Observation:
    """Return what each replica says of the model's versions, None for one that does not answer."""
    return ServingFleet(client.replicas).statuses(plan.model)


def labelled(config_path: Path, model: str, label: str) -> int | None:
    """Return the version that `label` serves, None if `model` is not configured; raise `SpecError` if it is, without the label."""
    served = config.read(config_path).get(model)
    if served is not None and label not in served.labels:
        raise SpecError(
            f"{config_path} serves model {model!r} (versions {list(served.versions) or 'by policy'}) without the label {label!r}: a rollout that "
            f'fails could not go back. Give the serving version the label first (`version_labels {{ key: "{label}" value: VERSION }}` in the '
            "entry), or remove an entry that nobody asks for; restart the server and try again. Nothing was changed."
        )
    return served.labels[label] if served else None


def begin(client: Replicas, plan: Plan) -> None:
    """Ask for the new version beside the previous one; the label stays where it is. Raises `SpecError` if another rollout moved it."""
    with config.exclusive(Path(plan.config_path)) as served:
        old = served.get(plan.model)
        labels = _own_labels(plan, old)
        if plan.previous is not None:
            labels.setdefault(plan.label, plan.previous)
        _apply(client, plan, served.with_model(_model(plan, old, labels)))


def verify(client: Replicas, plan: Plan, golden: Path, *, label: str | None = None) -> None:
    """Raise `RolloutFailed` unless every replica answers as the JSON file `golden` says, twice: what changes with every request passes once by luck.

    The version is asked by its number or, with `label`, by that label, which must lead to it.
    """
    expected = read_golden(golden, RolloutFailed)
    asked: dict[str, Any] = {"label": label} if label else {"version": plan.version}

    def answered(replica: ServingClient) -> list[tuple[int, Any]]:
        inputs = _inputs(replica, plan, golden, expected["inputs"], replica.signatures(plan.model, **asked).get(DEFAULT_SIGNATURE))
        answers = [replica.predict_tensors(plan.model, inputs, **asked) for _ in range(2)]
        return [(version, rows_of(outputs)) for version, outputs in answers]

    for address, answers in ServingFleet(client.replicas).ask_all(answered).items():
        for when, (version, outputs) in zip(("", ", asked again,"), answers, strict=True):
            if version != plan.version:
                raise RolloutFailed(
                    f"Version {version} of {plan.model!r} answered at {address}, not version {plan.version}. See who else changes labels."
                )
            check_answers(expected["outputs"], outputs, f"Version {version} of {plan.model!r} at {address}{when}")


def switch(client: Replicas, plan: Plan, golden: Path) -> None:
    """Move the label, unless another rollout did (`SpecError`), keep the previous version loaded, and verify what the label answers."""
    with config.exclusive(Path(plan.config_path)) as served:
        old = served.get(plan.model)
        labels = {**_own_labels(plan, old), plan.label: plan.version}
        _apply(client, plan, served.with_model(_model(plan, old, labels)))
    verify(client, plan, golden, label=plan.label)


def revert(client: Replicas, plan: Plan, reason: str) -> NoReturn:
    """Serve the previous version again and raise `RolloutFailed` naming it and the `reason`; a version that stands is left alone."""
    if plan.stands:
        raise RolloutFailed(
            f"Version {plan.version} of {plan.model!r} had label {plan.label!r} before and keeps it, but now: {reason.rstrip('.')}. "
            "Nothing was taken out of service; see to the model server, then try again."
        )
    with config.exclusive(Path(plan.config_path)) as served:
        before = _before(plan, served.get(plan.model))
        wanted = served.with_model(before) if before else served.without_model(plan.model)
        config.write(Path(plan.config_path), wanted)
        when = "now"
        try:
            client.reload(wanted)
        except ServingError as error:
            when = f"when the server starts again; the running one was not told: {error}"
    serving = f"Version {before.labels[plan.label]} serves" if before and plan.label in before.labels else "No version serves"
    raise RolloutFailed(f"Version {plan.version} of {plan.model!r} was not rolled out: {reason.rstrip('.')}. {serving} {plan.label!r} {when}.")


def _inputs(replica: ServingClient, plan: Plan, golden: Path, rows: list[Any], signature: Any) -> dict[str, Array]:
    """Return golden rows as the tensors that the served version takes, whose default `signature` is None where it has none."""
    try:
        if signature is None:
            raise ValueError("it has no such signature")
        return inputs_of(rows, signature)
    except ValueError as error:
        raise RolloutFailed(
            f"Version {plan.version} of {plan.model!r} at {replica.grpc_address} cannot be asked the golden inputs {golden} by its signature "
            f"{DEFAULT_SIGNATURE!r}: {error}. Compare the published SavedModel's signature with the training's."
        ) from error


def _apply(client: Replicas, plan: Plan, wanted: ServerConfig) -> None:
    config.write(Path(plan.config_path), wanted)
    client.reload(wanted)


def _own_labels(plan: Plan, old: ModelConfig | None) -> dict[str, int]:
    """Return the model's labels; raise `SpecError` if this rollout's label is where only another rollout can have put it."""
    labels = dict(old.labels) if old else {}
    now = labels.get(plan.label)
    if now not in ((plan.version,) if plan.stands else (None, plan.previous, plan.version)):
        raise SpecError(
            f"Label {plan.label!r} of model {plan.model!r} is on {'no version' if now is None else f'version {now}'}; this rollout of version "
            f"{plan.version} was {'complete before' if plan.stands else f'planned when it was on {plan.previous}'}. "
            "Another rollout came between: start a new run. Nothing was changed."
        )
    return labels


def _model(plan: Plan, old: ModelConfig | None, labels: Mapping[str, int]) -> ModelConfig:
    """Return the configuration with this rollout's versions and all that a label points at; others are no longer needed."""
    versions = {plan.version, *labels.values()} | ({plan.previous} if plan.previous is not None else set())
    if plan.stands and old:
        versions |= set(old.versions)  # nothing is replaced: the way back of the rollout that brought it stays loaded
    return _changed(plan, old, tuple(sorted(versions)), labels)


def _before(plan: Plan, old: ModelConfig | None) -> ModelConfig | None:
    """Return the configuration without the new version, or None if no version is left."""
    labels = {label: version for label, version in (old.labels if old else {}).items() if version != plan.version}
    if plan.previous is not None:
        labels.setdefault(plan.label, plan.previous)  # unless another rollout gave it away meanwhile
    return _changed(plan, old, tuple(sorted(set(labels.values()))), labels) if labels else None


def _changed(plan: Plan, old: ModelConfig | None, versions: tuple[int, ...], labels: Mapping[str, int]) -> ModelConfig:
    if old is None:
        return ModelConfig(plan.model, plan.base_path, versions, labels)
    return dataclasses.replace(old, base_path=plan.base_path, versions=versions, labels=labels)
