"""The command ``airflow-mlops``: run one stage, serve models on one machine, or run the demo."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from airflow_mlops.exceptions import MlopsError


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit code: 0 done, 1 failed, 2 not understood."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["serve"]:  # the model server has the flags of TensorFlow Serving, parsed in its own room
        from airflow_mlops.serving.embedded.main import serve

        return serve(arguments[1:])
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
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
    stage.add_argument("--spec", type=Path, required=True, help="JSON file that says what to do")
    stage.add_argument("--result", type=Path, required=True, help="file the result record is written to; artefacts go beside it")
    stage.add_argument("--lifeline", type=int, help="file descriptor of a pipe; when its other end closes, the stage ends")
    stage.set_defaults(run=_stage)

    commands.add_parser("serve", help="serve models over TensorFlow Serving's protocol; its flags: airflow-mlops serve --help")

    demo = commands.add_parser("demo", help="run the whole pipeline on this machine, on real handwritten digits")
    demo.add_argument("--home", type=Path, default=Path(".demo"), help="where it keeps everything (default: %(default)s)")
    demo.set_defaults(run=_demo)

    stop = commands.add_parser("stop", help="end every process the demo started")
    stop.add_argument("--home", type=Path, default=Path(".demo"), help="the demo's directory (default: %(default)s)")
    stop.set_defaults(run=_stop)
    return parser


def _stage(options: argparse.Namespace) -> int:
    from airflow_mlops.stages.process import die_with_parent
    from airflow_mlops.stages.runner import run_stage

    if options.lifeline is not None:
        die_with_parent(options.lifeline)
    return run_stage(options.name, options.spec, options.result)


def _demo(options: argparse.Namespace) -> int:
    from airflow_mlops.local.demo import run_demo

    return run_demo(options.home.absolute())


def _stop(options: argparse.Namespace) -> int:
    from airflow_mlops.local.deployment import stop

    return stop(options.home.absolute())
