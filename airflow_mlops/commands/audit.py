"""``airflow-mlops audit``: export and verify the audit trail and the tables it vouches for, and ask what served when, and why."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.commands import reproduction
from airflow_mlops.exceptions import SpecError

if TYPE_CHECKING:
    from airflow_mlops.ledger.store import Store


def add(commands: Any) -> None:
    """Add the group to the subparsers `commands`."""
    audit = commands.add_parser("audit", help="export and verify the audit trail, and ask it what served when, and why")
    questions = audit.add_subparsers(required=True, metavar="QUESTION")

    def ask(name: str, words: str, run: Callable[[argparse.Namespace], int], *, ledger: bool = True) -> argparse.ArgumentParser:
        question: argparse.ArgumentParser = questions.add_parser(name, help=words)
        question.add_argument("--ledger", required=ledger, help="the ledger: a SQLite file, or an SQLAlchemy URL")
        question.set_defaults(run=run)
        return question

    export = ask("export", "write the trail as JSON lines and print its anchor", _export)
    export.add_argument("--out", type=Path, required=True, help="file to write")
    verify = ask("verify", "find any edit, removal, insertion, cut or rewrite, and name the place", _verify, ledger=False)
    verify.add_argument("--trail", type=Path, help="an exported trail, instead of --ledger")
    verify.add_argument("--anchor", action="append", default=[], help="NUMBER:HASH as an export printed it; may be given several times")
    verify.add_argument("--anchors", type=Path, action="append", default=[], help="text that holds anchors: exported messages, the outbox")
    verify.add_argument("--tracking-uri", help="MLflow, whose versions have the anchor of their promotion as a tag")
    served = ask("who-served", "which version of a model served at a time", _who_served)
    served.add_argument("model")
    served.add_argument("--at", required=True, help="time in ISO format with its zone, for instance 2026-11-24T12:00:00+00:00")
    why = ask("why", "everything that explains why a version went live", _why)
    why.add_argument("version", help="MODEL@VERSION")


def _export(options: argparse.Namespace) -> int:
    from airflow_mlops.ledger.questions import export

    with open_ledger(options.ledger) as store:
        head = export(store, options.out)
    print(f"{head.number} events written to {options.out}. Keep this anchor somewhere else:\n{head}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from airflow_mlops.ledger import chain, rows
    from airflow_mlops.ledger.questions import anchors_in, verify_file

    anchors = [*map(chain.Head.parse, options.anchor), *(anchor for path in options.anchors for anchor in anchors_in(path))]
    if options.tracking_uri:
        from airflow_mlops.registry import anchors as noted
        from airflow_mlops.registry.mlflow import MlflowRegistry

        anchors += noted.anchors(MlflowRegistry(options.tracking_uri))
    if (options.trail is None) == (options.ledger is None):
        raise SpecError("Give either --trail FILE or --ledger URL: one trail is verified at a time.")
    if options.trail is not None:
        head, tables = verify_file(options.trail, anchors), "An exported trail says nothing of the ledger's tables: verify them with --ledger."
    else:
        with open_ledger(options.ledger) as store:
            head, tables = rows.verify(store, anchors), f"The rows of {len(rows.DECIDING)} tables are what it says. {_still_open(store)}"
    last = max((anchor.number for anchor in anchors), default=0)
    beyond = (
        f"events up to {last} are vouched for by {len(set(anchors))} anchors"
        if anchors
        else "without an anchor a trail that was cut off or rewritten looks whole"
    )
    print(f"{head.number} events, each as it was written; {beyond}. {tables}\n{head}")
    return 0


def _still_open(store: Store) -> str:
    """Say which effects lost their process, as far as that shows: a step that is under way is open, too."""
    from airflow_mlops.ledger import journal
    from airflow_mlops.ledger.store import now

    found = journal.open_effects(store, now())
    return f"Effects begun and not ended: {', '.join(found)}." if found else "No effect is open."


def _who_served(options: argparse.Namespace) -> int:
    from airflow_mlops.ledger.questions import who_served

    try:
        at = datetime.fromisoformat(options.at)
    except ValueError as error:
        raise SpecError(f"--at is {options.at!r}; expected a time in ISO format with its zone, for instance 2026-11-24T12:00:00+00:00.") from error
    with open_ledger(options.ledger) as store:
        answer = who_served(store, options.model, at)
    until = f"until {answer.until.at}, when {answer.until.subject} followed" if answer.until else "and still does"
    print(
        f"{answer.since.subject} served, since {answer.since.at} {until} (event {answer.since.number}, {answer.since.kind} by {answer.since.actor})"
    )
    return 0


def _why(options: argparse.Namespace) -> int:
    from airflow_mlops.ledger.questions import why

    model, version = reproduction.model_version(options.version)
    with open_ledger(options.ledger) as store:
        for event in why(store, model, version):
            print(f"{event.at}  event {event.number}: {event.kind} by {event.actor or 'unknown'}")
            for key, value in sorted(event.details.items()):
                print(f"    {key}: {value}")
    return 0


def open_ledger(where: str) -> Store:
    """Open a ledger that is there; asking questions must not make an empty one."""
    from airflow_mlops.ledger.store import Store

    url = where if "://" in where else f"sqlite:///{Path(where).absolute()}"
    if url.startswith("sqlite") and not Path(url.partition(":///")[2]).is_file():
        raise SpecError(f"{where} does not exist; expected the SQLite file of a ledger, or an SQLAlchemy URL.")
    return Store(url)
