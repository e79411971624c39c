"""Starting the model server: flags and files are checked first, because everything after that takes longer.

Only what is light is imported here: until `serve` has taken the signals over, Ctrl-C would print the import that it came upon.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import signal
import sys
from typing import Any, NoReturn

from airflow_mlops.exceptions import MlopsError

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(argv: list[str]) -> int:
    """Serve models until SIGTERM or SIGINT; return 0, 1 if the server could not start, 2 on flags it does not understand.

    A signal that comes before the server is there ends the process at once, with 128 and the signal's number.
    """
    with contextlib.ExitStack() as ending:
        _on_signals(functools.partial(_leave, ending))
        ending.callback(_on_signals, signal.SIG_IGN)  # the server is ending already
        _open_standard_streams()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        try:
            return _serve(argv, ending)
        except SystemExit as exit_:  # argparse has printed help (0) or usage (2)
            return int(exit_.code or 0)
        except MlopsError as error:
            log.error("%s", error)
            return 1


def _serve(argv: list[str], ending: contextlib.ExitStack) -> int:
    import uvloop

    from airflow_mlops.serving.embedded import flags
    from airflow_mlops.serving.embedded.processes import Zygote

    options = flags.parse(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection and each model needs one
    wanted, order = flags.initial_config(options), flags.order(options)
    zygote = Zygote()
    _start(zygote, ending)  # it prepares itself while this process does
    from airflow_mlops.serving.embedded import server

    uvloop.run(server.run(options, wanted, order, zygote))
    return 0


def _start(zygote: Any, ending: contextlib.ExitStack) -> None:
    """Start the zygote with the signals blocked, which it inherits: they may reach the whole group, and this process decides."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        ending.callback(zygote.stop)
        zygote.start()
        ending.callback(_on_signals, signal.SIG_IGN)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _leave(ending: contextlib.ExitStack, number: int, _: object) -> NoReturn:
    """End before there is anything to finish; an exception would be printed, or lost, by whatever import or library it came upon."""
    _on_signals(signal.SIG_IGN)
    ending.close()
    os._exit(128 + number)


def _on_signals(handler: Any) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _open_standard_streams() -> None:
    """Open what is closed of descriptors 0 to 2, or the next socket would be taken for standard error by whoever writes there."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
