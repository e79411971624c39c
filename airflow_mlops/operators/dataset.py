"""Take the dataset version a run works on, so that no other run of the same pipeline does.

An event is delivered at least once, the work on its version is done once: a run whose versions all belong to other runs is skipped. An event is
a hint: whoever may write asset events can have written it, so a version counts only as the ledger or its own manifest has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mlops.exceptions import DatasetAlreadyClaimed, DatasetError, DatasetNotFound, ResultInvalid, SpecError
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, hand_over
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.names import shown
from airflow_mlops.results import DatasetVersion, to_data
from airflow_mlops.triggers.dataset import version_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.store import Store


MAX_TEXT = 4096  # characters of a field: as long as a path may be


class ClaimDatasetOperator(BaseOperator, HandsOver):
    """Return the dataset version of this run, claimed in the ledger and its files verified.

    The version is the newest of the asset events that started the run and that no other run has (older ones are claimed with it: they are
    superseded), else the one called `version`, else the newest complete one in the inbox that validation has not rejected and no other run
    has. The newest is the one whose manifest the ledger saw last. A run that is cleared keeps its version.

    :param dataset: name of the dataset, as in the manifests.
    :param inbox: directory with one directory per version; what is not in it is refused.
    :param version: name of the version's directory, also of a rejected one; None or empty for the newest.
    :param repeat: work on the version although another run has it, for instance every night.
    """

    template_fields = ("dataset", "inbox", "version", "repeat")
    ui_color = "#fdf3d8"

    def __init__(
        self,
        *,
        dataset: str,
        inbox: str,
        version: str | None = None,
        repeat: bool = False,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.inbox = inbox
        self.version = version
        self.repeat = repeat
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.data.snapshot import read_manifest, verify
        from airflow_mlops.ledger import datasets

        run_id, dag_id = context["ti"].run_id, context["ti"].dag_id
        purpose = f"{dag_id}/{run_id}" if self.repeat else dag_id
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            if arrived := self._arrived(store, context):
                # Claimed first: an announced version that stays unclaimed, because it cannot be used, would hold up all later ones.
                version = self._take(store, arrived, purpose, run_id)
                self._require_dataset(read_manifest(verify(version)).dataset, version.uri)
            else:
                version = self._named(self.version) if self.version else self._newest(store, purpose, run_id)
                datasets.claim(store, version, purpose=purpose, run_id=run_id, of_event=False)
            self.log.info("This run works on %s %s (%s) in %s.", version.dataset, version.name, version.digest, version.uri)
            return dict(hand_over(store, context, to_data(version)))

    def _arrived(self, store: Store, context: Context) -> list[DatasetVersion]:
        """Return the versions of the asset events, oldest first; raise `SpecError` if there are events of versions and none is to be believed."""
        from airflow_mlops.ledger import datasets

        events = [event for events in (context.get("triggering_asset_events") or {}).values() for event in events]
        extras = [event.extra for event in sorted(events, key=lambda event: event.timestamp) if isinstance(event.extra, Mapping)]
        versions: dict[str, DatasetVersion] = {}
        refusals: list[str] = []
        for payload in (extra["payload"] for extra in extras if "payload" in extra):
            try:
                version = self._plain(version_of(payload))
                with datasets.turn_even_if_refused(store, version, purpose=context["ti"].dag_id, run_id=context["ti"].run_id):
                    self._require_believable(store, version)
                versions[version.digest] = version
            except (SpecError, ResultInvalid) as error:
                refusals.append(str(error))
                self.log.error("Refused: %s", error)
        if refusals and not versions:
            raise SpecError(" ".join(dict.fromkeys(refusals)))
        numbers = datasets.see(store, self.dataset, versions)
        return sorted(versions.values(), key=lambda version: numbers[version.digest])

    def _plain(self, version: DatasetVersion) -> DatasetVersion:
        """Return `version` if its fields are plain, so that a ledger may be asked for it; raise `SpecError` otherwise."""
        for field, text in to_data(version).items():
            if not text.isprintable() or len(text) > MAX_TEXT:
                raise SpecError(f"An asset event has the {field} {shown(repr(text))}: expected at most {MAX_TEXT} characters that print.")
        return version

    def _require_believable(self, store: Store, version: DatasetVersion) -> None:
        """Raise `SpecError` unless the ledger announced the `version` that an event names, or its manifest says the same."""
        from airflow_mlops.data.snapshot import read_manifest
        from airflow_mlops.ledger import datasets

        self._require_dataset(version.dataset, f"The asset event of {shown(version.uri)}")
        place = self._directory(version.name)
        if (Path(version.uri).parent.resolve(), Path(version.uri).name) != (place.parent.resolve(), place.name):
            raise SpecError(
                f"An asset event says that {version.name!r} lies in {shown(version.uri)}: expected {place}. "
                "Watch the inbox that this task reads, and start no run with an event of another place."
            )
        if datasets.announced_as(store, version) == version.name:
            return  # even if it was altered since, which this run then reports
        try:
            manifest = read_manifest(place)
            found = f"its manifest is of {manifest.dataset} {manifest.digest}"
        except DatasetError as error:
            found = str(error)
        else:
            if (manifest.dataset, manifest.digest) == (version.dataset, version.digest):
                return
        raise SpecError(
            f"An asset event says that {version.name!r} is {version.dataset} {shown(version.digest)}, which the ledger has not announced; {found}. "
            "Expected an event of the trigger, or one that says what the manifest says. Start a run with the version's name instead."
        )

    def _take(self, store: Store, arrived: list[DatasetVersion], purpose: str, run_id: str) -> DatasetVersion:
        """Claim every version that no other run has and return the newest; skip the run when there is none."""
        from airflow_mlops.ledger import datasets

        taken: list[DatasetVersion] = []
        refusals: list[str] = []
        for version in reversed(arrived):
            try:
                datasets.claim(store, version, purpose=purpose, run_id=run_id)
                taken.append(version)
            except DatasetAlreadyClaimed as error:
                refusals.append(str(error))
        if not taken:
            raise AirflowSkipException(f"Nothing is left to do, this event came twice: {' '.join(refusals)}")
        for refusal in refusals:
            self.log.info("Left to its run: %s", refusal)
        for version in taken[1:]:
            self.log.info("%s %s is superseded by %s, which arrived before this run began.", self.dataset, version.name, taken[0].name)
        return taken[0]

    def _named(self, name: str) -> DatasetVersion:
        from airflow_mlops.data.snapshot import open_version

        version = open_version(self._directory(name))
        self._require_dataset(version.dataset, version.uri)
        return version

    def _newest(self, store: Store, purpose: str, run_id: str) -> DatasetVersion:
        from airflow_mlops.ledger import datasets

        owners, rejected = datasets.claimed(store, self.dataset, purpose=purpose), datasets.rejected(store, self.dataset)
        own = {digest for digest, owner in owners.items() if owner == run_id}
        version = self._newest_of(store, own.__contains__) if own else None
        version = version or self._newest_of(store, lambda digest: digest not in owners and digest not in rejected)
        if version is None:
            raise DatasetNotFound(
                f"{self.inbox} holds no complete version of {self.dataset!r} that is left to work on: validation has rejected {len(rejected)} "
                f"so far, other runs have {len(owners.keys() - own)}. Publish another, or choose one by its name, with 'repeat' if a run has it."
            )
        return version

    def _newest_of(self, store: Store, fits: Callable[[str], bool]) -> DatasetVersion | None:
        from airflow_mlops.data.inbox import Inbox, in_order

        inbox = Inbox(Path(self.inbox))
        found = (inbox.examine([one]) for one, heading in reversed(in_order(store, inbox.listed(), self.dataset)) if fits(heading.digest))
        return next((candidate.version for candidates in found for candidate in candidates if candidate.version), None)

    def _directory(self, name: str) -> Path:
        from airflow_mlops.data.manifest import is_version_name

        if not is_version_name(name):
            raise SpecError(f"{shown(repr(name))} is no version's name: expected the plain name of a directory in {self.inbox}. Correct it.")
        return Path(self.inbox) / name

    def _require_dataset(self, dataset: str, what: str) -> None:
        if dataset != self.dataset:
            raise SpecError(f"{what} is of the dataset {dataset!r}: expected {self.dataset!r}. Choose a version of that dataset.")
