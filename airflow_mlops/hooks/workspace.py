"""What a task is: whose run it belongs to, where it keeps its files, and the address under which its pages are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from airflow.sdk import conf

from airflow_mlops.names import file_name, text_of
from airflow_mlops.usage import Prices

if TYPE_CHECKING:
    from airflow.sdk import Context


def workspace() -> Path:
    """Return the directory of all runs: configuration ``[mlops] workspace``, shared by the workers and the API server."""
    return Path(conf.get("mlops", "workspace")).expanduser().absolute()


def task_directory(context: Context) -> Path:
    """Return the directory of this task in its run: another one for every DAG, run, task and map index, whatever they are called."""
    ti = context["ti"]
    task = workspace() / "runs" / file_name(ti.dag_id) / file_name(ti.run_id) / file_name(ti.task_id)
    return task / f"map-{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else task


def try_directory(context: Context) -> Path:
    """Return the directory of this try of this task, so that what an earlier try left is never taken for this one's."""
    return task_directory(context) / f"try-{context['ti'].try_number}"


def evidence_directory(context: Context, model: str, version: int) -> Path:
    """Return the directory of the evidence pack that this run writes about a version; it stays when the run's files are removed.

    The DAG is in it: who may read the DAG may read the pack.
    """
    ti = context["ti"]
    return workspace() / "evidence" / file_name(ti.dag_id) / file_name(model) / str(version) / file_name(ti.run_id)


def run_of(context: Context) -> str:
    """Return the run's name in the ledger: ``DAG id/run id``."""
    return f"{context['ti'].dag_id}/{context['ti'].run_id}"


def who_triggered(context: Context) -> tuple[str, ...]:
    """Return the name of the Airflow user, as they log in, who started the run by hand; empty for a run that a schedule or an asset started."""
    user = context["dag_run"].triggering_user_name
    return (user,) if user else ()


def tell_notifiers(context: Context, **words: Any) -> None:
    """Add `words` to the context, whose type lists only Airflow's own, so that the templates of this task's notifiers find them."""
    cast("dict[str, Any]", context).update(words)


def prices() -> Prices:
    """Return what an hour costs here: configuration ``[mlops] price_gpu_hour`` and its like; raise `SpecError` for an impossible price."""
    gpu, cpu, memory = (conf.getfloat("mlops", f"price_{name}", fallback=0.0) for name in ("gpu_hour", "cpu_hour", "memory_gib_hour"))
    return Prices(gpu, cpu, memory, conf.get("mlops", "currency", fallback=""))


def target(tf_serving_conn_id: str, version_label: str) -> str:
    """Return what a release changes, and people agree to: the label of a model server's connection."""
    return f"{tf_serving_conn_id}/{version_label}"


def task_url(context: Context) -> str | None:
    """Return the address of the task's page in Airflow below ``[api] base_url``, whatever path that has; None where it is not set."""
    ti = context["ti"]
    base_url = conf.get("api", "base_url", fallback="")
    if not base_url:
        return None
    run_id, mapped = quote(ti.run_id, safe=""), f"/mapped/{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    return f"{base_url.rstrip('/')}/dags/{quote(ti.dag_id, safe='')}/runs/{run_id}/tasks/{quote(ti.task_id, safe='')}{mapped}"


def report_url(page: Path) -> str:
    """Return the address under which the API server shows `page`, a file below the workspace."""
    area, folder, *rest = page.relative_to(workspace()).parts
    return f"{reports_url()}{'/'.join(quote(part, safe='') for part in (area, text_of(folder) or folder, *rest))}"


def reports_url() -> str:
    """Return what the address of every report begins with; it keeps the path of ``[api] base_url``."""
    prefix = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
    return f"{prefix}/mlops/reports/"
