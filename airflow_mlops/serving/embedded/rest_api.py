"""The REST interface: ``/v1/models/NAME[/versions/N|/labels/L]`` with ``:predict`` by POST, status and ``/metadata`` by GET."""

from __future__ import annotations

import json
import logging
import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded import json_tensors
from airflow_mlops.serving.embedded.engine import DEFAULT_SIGNATURE, Servable
from airflow_mlops.serving.embedded.grpc_api import signature_map, status_response
from airflow_mlops.serving.embedded.manager import VersionManager
from airflow_mlops.serving.embedded.refusal import Refusal, invalid

log = logging.getLogger(__name__)
_CHOICE = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
# The path ignores case, the method word does not (http_rest_api_util.cc).
_PREDICT = re.compile(rf"(?i:/v1/models)/(?P<name>[^/:]+)(?i:{_CHOICE}):predict", re.ASCII)
_LOOK = re.compile(rf"(?i:/v1/models)(?:/(?P<name>[^/:]+))?(?i:{_CHOICE})(?P<metadata>(?i:/metadata))?", re.ASCII)


class Target(NamedTuple):
    """What a path asks for: at most one of `version` and `label`."""

    name: str
    version: int | None
    label: str | None


class RestApi:
    """Answers (HTTP status, JSON body) for a method, a raw path and a body."""

    def __init__(self, manager: VersionManager) -> None:
        self._manager = manager

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON body; never raises."""
        try:
            return 200, json.dumps(self._answer(method, path, body)).encode()
        except Refusal as refusal:
            return refusal.http_status, _error(str(refusal))
        except Exception as error:
            log.exception("%s %s failed", method, path)
            return 500, _error(f"{type(error).__name__}: {error}")

    def _answer(self, method: str, path: str, body: bytes) -> Any:
        if method == "POST" and (match := _PREDICT.fullmatch(path)):
            return self._predict(_target(match), body)
        if method == "GET" and (match := _LOOK.fullmatch(path)):
            target = _target(match)
            return self._metadata(target) if match["metadata"] else self._status(target)
        raise invalid(f"Malformed request: {method} {path}")

    def _predict(self, target: Target, body: bytes) -> Any:
        document = json_tensors.parse(body)
        signature = document.get("signature_name", "")
        if not isinstance(signature, str):
            raise invalid("'signature_name' key must be a string value.")
        signature = signature or DEFAULT_SIGNATURE
        _, servable = self._resolve(target)
        if signature not in servable.signatures:
            raise invalid(f'Serving signature name: "{signature}" not found in signature def')
        inputs, as_rows = json_tensors.inputs_of(document, servable.input_types(signature))
        return json_tensors.answer(servable.run(signature, inputs), as_rows=as_rows)

    def _status(self, target: Target) -> Any:
        response = status_response(self._manager, target.name, target.version)
        return protos.json_format.MessageToDict(response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)

    def _metadata(self, target: Target) -> Any:
        number, servable = self._resolve(target)
        signatures = protos.json_format.MessageToDict(
            signature_map(servable), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        spec = {"name": target.name, "signature_name": "", "version": str(number)}
        return {"model_spec": spec, "metadata": {"signature_def": signatures}}

    def _resolve(self, target: Target) -> tuple[int, Servable]:
        return self._manager.resolve(target.name, target.version, target.label)


def application(manager: VersionManager) -> ASGIApp:
    """Return the ASGI application; models run in worker threads, so that one slow model holds up no status request."""
    api = RestApi(manager)

    async def everything(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if path.lower().startswith("/v1/"):
            status, body = await run_in_threadpool(api.answer, request.method, path, await request.body())
        else:
            status, body = 404, _error(f"Not found: {request.method} {path}. Models are under /v1/models/.")
        await Response(body, status, media_type="application/json")(scope, receive, send)

    return everything


def _target(match: re.Match[str]) -> Target:
    name, version, label = match["name"], match["version"], match["label"]
    if not name:
        raise invalid("Missing model name in request.")
    if version is not None and (len(version) > 19 or int(version) >= 2**63):
        raise invalid(f"Failed to convert version: {version} to numeric.")
    return Target(unquote(name), None if version is None else int(version), None if label is None else unquote(label))


def _error(words: str) -> bytes:
    return json.dumps({"error": words}).encode()
