"""Write down why a version went live, once it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import take
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import evidence_directory, report_url, run_of
from airflow_mlops.operators.links import REPORT_KEY, ReportLink

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.store import Store


class WriteEvidencePackOperator(BaseOperator):
    """Write the release's evidence pack below the workspace's ``evidence``, once per run, with its digest and score in the audit trail.

    What is missing is named in the pack and costs points of the ML Test Score; it fails nothing.

    :param model: description of the version, as `MlflowPromoteModelOperator` returns it.
    :param statements: JSON or TOML file of what people vouch for, by test of the rubric; empty for nothing.
    :raises EvidenceInvalid: the pack that this run wrote before is not as it was written.
    """

    template_fields = ("model", "statements")
    operator_extra_links = (ReportLink(),)
    ui_color = "#eef0f2"

    def __init__(self, *, model: Any, statements: str = "", ledger_conn_id: str = MlopsLedgerHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.statements = statements
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.ledger.evidence.pack import verify
        from airflow_mlops.ledger.journal import known

        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            (self.model,) = take(store, context, self.model)
            name, version, run = self.model["name"], self.model["version"], run_of(context)
            path, key = evidence_directory(context, name, version), f"evidence:{name}:{version}:{run}"
            context["ti"].xcom_push(key=REPORT_KEY, value=report_url(path / "index.html"))
            written = known(store, key)
            if written is None:
                written = self._write(store, key, path, run)
            else:  # by an earlier try: the trail goes on, and a new pack would be another one
                verify(path, written["digest"])
        self.log.info("%s", written["headline"])
        return {"name": name, "version": version, **written}

    def _write(self, store: Store, key: str, path: Path, run: str) -> dict[str, Any]:
        from airflow_mlops.ledger.chain import Event
        from airflow_mlops.ledger.evidence.facts import PACKED, Release, trail
        from airflow_mlops.ledger.evidence.pack import write
        from airflow_mlops.ledger.evidence.score import read_statements
        from airflow_mlops.ledger.journal import once
        from airflow_mlops.registry.registrations import registered

        name, version = self.model["name"], self.model["version"]
        tags = registered(store, name, version)
        statements = read_statements(Path(self.statements)) if self.statements else {}
        pack = write(Release(name, version, run, tags, trail(store, name, version)), path, statements)
        about = {"digest": pack.digest, "path": str(path), "score": pack.score.total, "sections": pack.score.sections}
        missing = f"; missing: {', '.join(sorted(pack.missing))}" if pack.missing else ""
        done = {
            **about,
            "previous": self.model.get("previous"),
            "headline": f"{pack.score.headline()}{missing}; evidence of {name} version {version} is at {path}",
        }
        event = Event(PACKED, f"{name}@{version}", run, {**about, "missing": dict(pack.missing)})
        return once(store, key, PACKED, {"model": name, "version": version, "run": run}, lambda: done, event=event)
