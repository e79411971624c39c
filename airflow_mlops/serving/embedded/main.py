"""Starting the model server: flags and files are checked first, because everything after that takes longer."""

from __future__ import annotations

import logging
import os
import resource
import sys

import uvloop

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.serving.embedded import flags
from airflow_mlops.serving.embedded.processes import Zygote

log = logging.getLogger(__name__)


def _open_standard_streams() -> None:
    """Open what is closed of descriptors 0 to 2, or the next socket would be taken for standard error by whoever writes there."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def serve(argv: list[str]) -> int:
    """Serve models until SIGTERM or SIGINT; return 0, 1 if the server could not start, 2 on flags it does not understand."""
    _open_standard_streams()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        options = flags.parse(argv)
    except SystemExit as exit_:  # argparse has printed help (0) or usage (2)
        return int(exit_.code or 0)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection and each model needs one
    zygote = Zygote()
    try:
        wanted, order = flags.initial_config(options), flags.order(options)
        zygote.start()  # it prepares itself while this process does
        from airflow_mlops.serving.embedded import server

        uvloop.run(server.run(options, wanted, order, zygote))
    except MlopsError as error:
        log.error("%s", error)
        return 1
    finally:
        zygote.stop()
    return 0
