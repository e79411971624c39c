"""Every error of the package, in one tree.

    MlopsError                      retryable = False unless a leaf says otherwise
    ├── SpecError (ValueError)      the request itself is impossible
    ├── DatasetError
    │   ├── DatasetNotFound         retryable: it may still arrive
    │   ├── ManifestInvalid         the manifest is unreadable, unsafe or empty
    │   ├── ManifestMismatch        a file is missing, truncated or altered
    │   ├── DatasetRejected         a critical expectation failed
    │   └── DatasetAlreadyClaimed   another run works, or worked, on this version
    ├── TrainingError
    │   ├── RepositoryUnavailable   retryable: the repository of the user's code did not answer
    │   ├── TrainFunctionError      the user's function raised or returned something unusable
    │   ├── TrainingTimeout         the user's function went on though its time was over
    │   ├── CheckpointError         a checkpoint cannot be written
    │   ├── CheckpointMismatch      the checkpoint is of another request or another model
    │   ├── NonFiniteModel          NaN or Inf in weights or metrics
    │   └── WorkerLost              retryable: another worker of the same training is gone
    ├── EvaluationError
    │   └── NotComparable           challenger and champion take other inputs, or held out no row in common
    ├── UnsafeModel                 its files bring code of their own, or are none that Keras or TensorFlow wrote
    ├── RobustnessError
    ├── RegistryError
    │   ├── RegistryUnavailable     retryable
    │   ├── ModelNotFound
    │   ├── PromotionConflict       the champion changed since the evaluation
    │   └── RollbackRefused         the version is not an earlier champion
    ├── ServingError
    │   ├── ServingUnavailable      retryable
    │   ├── PublishError
    │   └── RolloutFailed           says to which version it went back
    ├── LedgerError
    │   ├── LedgerUnavailable       retryable
    │   ├── NotApproved             nobody agreed to this release, or to something else
    │   ├── NotHandedOver           an XCom differs from what the task before handed over, or that task did nothing
    │   ├── UsersUnknown            retryable: Airflow's API server does not say who its users are
    │   ├── EvidenceInvalid         an evidence pack is not as it was written, or another one is in its place
    │   ├── AuditTrailBroken        an event was altered, removed, inserted, or the trail cut off or rewritten
    │   └── LedgerAltered           a row of the ledger is not what the audit trail says
    └── StageError
        ├── StageKilled             retryable: the stage's process died without a result
        ├── StageStopped            retryable: the stage was told to stop, and did
        ├── ClusterUnavailable      retryable: Kubernetes did not answer for a long time, or has no room for another pod
        ├── ExchangeUnavailable     retryable: the object storage between workers and pods did not answer
        └── ResultInvalid           the result record is missing, half-written or its digests do not hold

Wording: what happened, what was expected, what to do. `retryable` is the one bit that an orchestrator needs; operators map
``retryable = False`` to Airflow's ``AirflowFailException`` in one place (`airflow_mlops.hooks.errors`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MlopsError(Exception):
    """Root of all errors of this package; `retryable` says whether the same request may succeed later."""

    retryable: bool = False


class SpecError(MlopsError, ValueError):
    """The request is impossible as written; no retry helps."""


class DatasetError(MlopsError):
    """A dataset version cannot be used."""


class DatasetNotFound(DatasetError):
    """There is no such dataset version (yet)."""

    retryable = True


class ManifestInvalid(DatasetError):
    """The manifest is unreadable, names unsafe paths, or names no file."""


class ManifestMismatch(DatasetError):
    """A file is missing, has another size or another digest than the manifest says."""


class DatasetRejected(DatasetError):
    """A critical expectation failed on the data."""


class DatasetAlreadyClaimed(DatasetError):
    """Another run works, or worked, on this dataset version."""


class TrainingError(MlopsError):
    """Training did not end in a usable model."""


class RepositoryUnavailable(TrainingError):
    """The repository of the user's code did not answer."""

    retryable = True


class TrainFunctionError(TrainingError):
    """The user's train function raised, or returned something that is no model."""


class TrainingTimeout(TrainingError):
    """The user's train function went on long after its time was over: it hangs, or does not look."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written: the disk is full or read-only."""


class CheckpointMismatch(TrainingError):
    """A checkpoint is of another request or of another model; the message says what differs."""


class NonFiniteModel(TrainingError):
    """NaN or infinity in the weights or the metrics."""


class WorkerLost(TrainingError):
    """Another worker of the same training is gone, and without it there is no next step."""

    retryable = True


class EvaluationError(MlopsError):
    """The challenger could not be measured."""


class NotComparable(EvaluationError):
    """Challenger and champion take other inputs, or held out no row in common; the message says which."""


class UnsafeModel(MlopsError):
    """A model's files would run code of their own, or are not what Keras or TensorFlow writes; the message names the layer or the file."""


class RobustnessError(MlopsError):
    """The robustness campaign could not run."""


class RegistryError(MlopsError):
    """The model registry refused or lacks something."""


class RegistryUnavailable(RegistryError):
    """The model registry did not answer."""

    retryable = True


class ModelNotFound(RegistryError):
    """The registry has no such model, version or alias."""


class PromotionConflict(RegistryError):
    """The champion is no longer the one the challenger was evaluated against."""


class RollbackRefused(RegistryError):
    """There is no such earlier champion to go back to, or nothing that proves which files it had."""


class ServingError(MlopsError):
    """The model server refused, or serves something else than expected."""


class ServingUnavailable(ServingError):
    """The model server did not answer."""

    retryable = True


class PublishError(ServingError):
    """A SavedModel could not be placed under the server's base path."""


class RolloutFailed(ServingError):
    """The new version does not serve; the message names the version that serves instead."""


class LedgerError(MlopsError):
    """The ledger refused a transition."""


class LedgerUnavailable(LedgerError):
    """The ledger's database did not answer."""

    retryable = True


class NotApproved(LedgerError):
    """Nobody agreed to this release in time, or what was agreed to is not what would be released."""


class NotHandedOver(LedgerError):
    """An XCom differs from what, by the ledger, an earlier task of the run handed over; the message names the task."""


class UsersUnknown(LedgerError):
    """Airflow's API server does not say who its users are."""

    retryable = True


class EvidenceInvalid(LedgerError):
    """A file of an evidence pack changed, is missing or was added, or another pack is in its place; the message names it."""


class AuditTrailBroken(LedgerError):
    """The audit trail is not as it was written; the message names the place."""


class LedgerAltered(LedgerError):
    """A row of the ledger differs from the audit trail; the message names it and what was expected."""


class StageError(MlopsError):
    """A stage did not deliver a result that can be believed."""


class StageKilled(StageError):
    """The stage's process died without writing a result."""

    retryable = True


class ClusterUnavailable(StageError):
    """Kubernetes did not answer for a long time, or its quota is used up."""

    retryable = True


class ExchangeUnavailable(StageError):
    """The object storage between workers and pods did not answer."""

    retryable = True


class StageStopped(StageError):
    """The stage was told to stop before it was done; what it had learned is in its checkpoints."""

    retryable = True


class ResultInvalid(StageError):
    """The result record is missing, half-written, of another request, or its digests do not hold."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SpecError:
    """Return the error for a name that is not in `known`, suggesting the nearest known one."""
    names = sorted(known)
    return SpecError(f"Unknown {kind} {name!r}.{nearest(name, names)} Known: {', '.join(names) or 'none'}.")
