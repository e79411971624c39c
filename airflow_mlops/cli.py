"""The command ``airflow-mlops``: run one stage, serve models, ask the audit trail and the evidence, bring an old registry along, or run the demo."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from airflow_mlops.commands import audit, doctor, exchange, reproduction, rollback
from airflow_mlops.exceptions import MlopsError, SpecError


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit code: 0 done, 1 failed, 2 not understood."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["serve"]:  # the model server has the flags of TensorFlow Serving, parsed in its own room
        from airflow_mlops.serving.embedded.main import serve

        return serve(arguments[1:])
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for talkative in ("httpx", "great_expectations"):  # the second logs a line for each of its 200 methods
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        return int(options.run(options))
    except MlopsError as error:
        print(f"airflow-mlops: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airflow-mlops", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    stage = commands.add_parser("stage", help="run one stage of a pipeline and write its result record")
    stage.add_argument("name", help="validate, train, evaluate or robustness")
    wanted = stage.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--spec", type=Path, help="JSON file that says what to do")
    wanted.add_argument("--request", help="name of a request in the exchange, which says what to do and brings what is needed")
    stage.add_argument("--exchange", help="URL of the object storage between workers and pods, for instance s3://bucket/exchange")
    stage.add_argument("--exchange-options", type=Path, help="JSON file with fsspec's options for it, such as a mounted secret")
    stage.add_argument("--worker", type=int, default=0, help="number of this one among several that were asked for the same; 0 alone answers")
    stage.add_argument("--result", type=Path, required=True, help="file the result record is written to; artefacts go beside it")
    stage.add_argument("--lifeline", type=int, help="file descriptor of a pipe; when its other end closes, the stage ends")
    stage.add_argument("--image", help="the image it runs in, with its digest, which the record keeps")
    stage.add_argument("--gpus", type=int, default=0, help="how many GPUs were asked for; the record says when there were fewer")
    stage.set_defaults(run=_stage)

    commands.add_parser("serve", help="serve models over TensorFlow Serving's protocol; its flags: airflow-mlops serve --help")

    demo = commands.add_parser("demo", help="run the whole pipeline on this machine, on real handwritten digits")
    demo.add_argument("--home", type=Path, default=Path(".demo"), help="where it keeps everything (default: %(default)s)")
    demo.set_defaults(run=_demo)

    stop = commands.add_parser("stop", help="end every process the demo started")
    stop.add_argument("--home", type=Path, default=Path(".demo"), help="the demo's directory (default: %(default)s)")
    stop.set_defaults(run=_stop)
    _add_evidence(commands.add_parser("evidence", help="verify the evidence pack of a release, and print its ML Test Score"))
    audit.add(commands)
    rollback.add(commands)
    doctor.add(commands)
    reproduction.add(commands)
    exchange.add(commands)
    _add_registry(commands.add_parser("registry", help="what is done to a model registry once"))
    return parser


def _add_registry(registry: argparse.ArgumentParser) -> None:
    migrate = registry.add_subparsers(required=True, metavar="COMMAND").add_parser("migrate-stages", help="give versions the aliases of their stages")
    migrate.add_argument("--tracking-uri", required=True, help="MLflow's address, for instance http://mlflow:5000 or sqlite:////srv/mlflow.db")
    migrate.add_argument("--model", help="only this model (default: every one)")
    migrate.add_argument("--dry-run", action="store_true", help="only say what would be done")
    migrate.set_defaults(run=_migrate_stages)


def _add_evidence(evidence: argparse.ArgumentParser) -> None:
    questions = evidence.add_subparsers(required=True, metavar="QUESTION")
    verify = questions.add_parser("verify", help="find every file that changed, is missing or was added, and print the pack's digest")
    verify.add_argument("path", type=Path, help="directory of the pack")
    verify.add_argument("--digest", help="what 'airflow-mlops audit why' says of the pack; without it one that was forged whole looks whole")
    verify.set_defaults(run=_verify_pack)
    score = questions.add_parser("score", help="verify, then print the 28 tests of the ML Test Score with their reasons")
    score.add_argument("path", type=Path, help="directory of the pack")
    score.set_defaults(run=_score)


def _migrate_stages(options: argparse.Namespace) -> int:
    from airflow_mlops.registry.mlflow import MlflowRegistry
    from airflow_mlops.registry.stages import migrate

    registry = MlflowRegistry(options.tracking_uri)
    for model in [options.model] if options.model else registry.models():
        for line in migrate(registry, model, dry_run=options.dry_run):
            print(f"{model}: {line}")
    return 0


def _verify_pack(options: argparse.Namespace) -> int:
    from airflow_mlops.ledger.evidence.pack import verify

    found = verify(options.path, options.digest)
    print(f"Every file is as it was written{'' if options.digest else '; without --digest a pack that was forged whole looks whole'}.\n{found}")
    return 0


def _score(options: argparse.Namespace) -> int:
    from airflow_mlops.ledger.evidence.pack import read_score

    found = read_score(options.path)
    for section in dict.fromkeys(test["section"] for test in found["tests"]):
        print(f"{section}: {found['sections'][section]:g} of 7")
        for test in (test for test in found["tests"] if test["section"] == section):
            print(f"  {test['points']:<4g}{test['test']}: {test['reason']}" + (f" To do: {test['remedy']}" if test["remedy"] else ""))
    print(f"ML Test Score {found['score']:g}, the smallest of the four: {found['meaning']}.")
    return 0


def _stage(options: argparse.Namespace) -> int:
    from airflow_mlops.stages.process import die_with_parent
    from airflow_mlops.stages.runner import run_stage
    from airflow_mlops.stages.stop import ended_when_told

    if options.lifeline is not None:
        die_with_parent(options.lifeline)
    if bool(options.exchange) != bool(options.request):
        raise SpecError("--exchange and --request belong together: the URL of the object storage, and what is asked for there.")
    with ended_when_told():
        if not options.request:
            return run_stage(options.name, options.spec, options.result, image=options.image, gpus=options.gpus)
        from airflow_mlops.stages.remote import open_exchange, run_requested

        opened = open_exchange(options.exchange, options.exchange_options)
        started = {"image": options.image, "gpus": options.gpus}
        return run_requested(options.name, options.request, opened, options.result, worker=options.worker, **started)


def _demo(options: argparse.Namespace) -> int:
    from airflow_mlops.local.demo import run_demo

    return run_demo(options.home.absolute())


def _stop(options: argparse.Namespace) -> int:
    from airflow_mlops.local.deployment import stop

    return stop(options.home.absolute())
