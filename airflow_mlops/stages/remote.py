"""A stage whose request and result go through an exchange: the body of ``airflow-mlops stage NAME --exchange URL --request NAME``."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import MlopsError, SpecError, StageError
from airflow_mlops.stages.checkpoint_sync import CheckpointSync
from airflow_mlops.stages.exchange import Exchange
from airflow_mlops.stages.runner import run_stage

log = logging.getLogger(__name__)


def open_exchange(url: str, options: Path | None) -> Exchange:
    """Return the exchange at `url`, with fsspec's options from a JSON file, or as the environment has them."""
    try:
        found = json.loads(options.read_bytes()) if options else {}
    except (OSError, ValueError) as error:
        raise SpecError(f"The options of the exchange cannot be read from {options}: {type(error).__name__}. Give a JSON file.") from None
    if not isinstance(found, dict):
        raise SpecError(f'{options} holds no JSON object; expected one such as {{"key": "...", "secret": "..."}}.')
    return Exchange(url, found)


def run_requested(name: str, request: str, exchange: Exchange, result_path: Path, *, worker: int = 0, **started: Any) -> int:
    """Take a request, run its stage with the newest checkpoint there is, send the result; return what `run_stage` does.

    Of several workers that were asked for the same, all have the checkpoints; `worker` 0 alone sends its own, and the result. `started` is what
    `run_stage` keeps in the record of how it was started.

    :raises SpecError: the request is of another stage.
    :raises StageError: the record was written and cannot be sent, so that it will not be believed.
    """
    wanted, spec = exchange.take_request(request)
    if wanted != name:
        raise SpecError(f"Request {request!r} is of stage {wanted!r}, this is {name!r}. Start it as what was asked for.")
    spec_path = result_path.with_name("spec.json")
    write_atomically(spec_path, canonical_json(spec))
    checkpoints = CheckpointSync(exchange.objects, Path(spec.get("checkpoints") or result_path.parent.parent / "checkpoints"))
    if num_brought := checkpoints.bring():
        log.info("%d checkpoint(s) of an earlier attempt brought from the exchange.", num_brought)
    with checkpoints if not worker else nullcontext():
        code = run_stage(name, spec_path, result_path, **started)
    if worker or not result_path.exists():
        return code
    try:
        exchange.send_result(request, result_path)
    except MlopsError as error:
        failure = StageError(f"Stage {name!r} ended, but its result cannot be sent, and nothing is believed without it. {error}")
        failure.retryable = error.retryable
        raise failure from error
    if code == 0:
        checkpoints.drop_if_cleared()
    return code
