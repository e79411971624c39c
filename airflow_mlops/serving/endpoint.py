"""Where the replicas of a model server are and how to talk to them: the fields of a connection, checked before anything is opened."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from airflow_mlops.exceptions import SpecError, nearest
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.fleet import ServingFleet
from airflow_mlops.serving.rest import check_url
from airflow_mlops.serving.tls import Tls

EXAMPLE = '[{"grpc": "serving-0:8500", "rest": "http://serving-0:8501"}]'
_CERTIFICATES = ("ca_cert", "client_cert", "client_key")
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]@?#]+):(\d{1,5})")


class Replica(NamedTuple):
    """The addresses of one model server: `grpc` is ``host:port``, `rest` a URL, or None if nobody asks it by REST."""

    grpc: str
    rest: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """All replicas of a model server, the seconds that each call may take, and TLS, if they speak it, with or without their REST interfaces."""

    replicas: tuple[Replica, ...]
    deadline_seconds: float = 10.0
    tls: Tls | None = None
    plain_rest_allowed: bool = False

    def open(self) -> ServingFleet:
        """Return clients for all replicas; they connect when they are first asked."""
        asked: dict[str, Any] = {"tls": self.tls, "plain_rest_allowed": self.plain_rest_allowed}
        return ServingFleet(ServingClient(replica.grpc, replica.rest, self.deadline_seconds, **asked) for replica in self.replicas)


class ConnectionFields(NamedTuple):
    """What a connection says: `host` and `port` of a single replica's gRPC interface, and all else in `extra`; `name` is what errors call it."""

    name: str
    host: str | None
    port: int | None
    extra: Mapping[str, Any]

    def endpoint(self) -> Endpoint:
        """Return what the fields mean; raise `SpecError` naming the field that is missing or wrong, and what to write."""
        tls, plain_rest_allowed = self._tls(), self.switch("plain_rest_allowed")
        replicas = tuple(self._replicas(tls is not None and not plain_rest_allowed))
        if twice := sorted({replica.grpc for replica in replicas if [other.grpc for other in replicas].count(replica.grpc) > 1}):
            raise SpecError(f"{self.name} names the replica {', '.join(twice)} more than once in 'replicas'. Name each once.")
        return Endpoint(replicas, self._deadline(), tls, plain_rest_allowed)

    def options(self, field: str) -> dict[str, Any]:
        """Return a JSON object, empty if the field is; raise `SpecError` if it is something else. Its values may be secret: no error shows them."""
        value = self._json(field)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise SpecError(f'{self.name} has an extra {field!r} that is no JSON object; write one, for instance {{"key": "value"}}.')
        return value

    def required(self, field: str) -> Any:
        """Return an extra; raise `SpecError` if it is not set."""
        value = self._given(field)
        if value is None:
            raise SpecError(f"{self.name} has no extra {field!r}; set it in Airflow's connection form.")
        return value

    def _replicas(self, encrypted: bool) -> Iterator[Replica]:
        listed = self._json("replicas")
        if listed is None:
            yield self._single(encrypted)
            return
        if self.host or self.port or self._given("rest_url"):
            raise SpecError(f"{self.name} has a host, port or rest_url and the extra 'replicas' as well. Put that replica into the list alone.")
        if not isinstance(listed, list) or not listed:
            raise SpecError(f"{self.name} has an extra 'replicas' that is no list of objects; write for instance {EXAMPLE}.")
        for index, entry in enumerate(listed):
            yield self._listed(f"replicas[{index}]", entry, encrypted)

    def _single(self, encrypted: bool) -> Replica:
        for field, value in (("host", self.host), ("port", self.port)):
            if not value:
                raise SpecError(
                    f"{self.name} has no {field}; give the model server's gRPC address, host and port, or all addresses in the extra 'replicas'."
                )
        bare = str(self.host)
        host = f"[{bare}]" if ":" in bare and re.fullmatch(r"[0-9A-Fa-f:.%]+", bare) else bare
        return Replica(self._address("host and port", f"{host}:{self.port}"), self._url("rest_url", self._given("rest_url"), encrypted))

    def _listed(self, where: str, entry: Any, encrypted: bool) -> Replica:
        if not isinstance(entry, dict):
            raise SpecError(f"{self.name}: {where} is no object; write the list as {EXAMPLE}.")
        for key in entry.keys() - set(Replica._fields):
            raise SpecError(f"{self.name}: {where} has the unknown key {key!r}.{nearest(key, Replica._fields)} Write the list as {EXAMPLE}.")
        if "grpc" not in entry:
            raise SpecError(f"{self.name}: {where} has no 'grpc'; write the list as {EXAMPLE}.")
        return Replica(self._address(f"{where}.grpc", entry["grpc"]), self._url(f"{where}.rest", entry.get("rest") or None, encrypted))

    def _address(self, field: str, value: Any) -> str:
        parts = _ADDRESS.fullmatch(str(value))
        if "@" in str(value):  # what stands before it was meant as a user and a password
            value = f"***@{str(value).rpartition('@')[2]}"
        if not parts or not 0 < int(parts[2]) < 2**16:
            raise SpecError(f"{self.name}: {field} is {value!r}; expected HOST:PORT without a scheme, the port from 1 to 65535. Correct it.")
        return str(value)

    def _url(self, field: str, value: Any, encrypted: bool) -> str | None:
        if value is None:
            return None
        check_url(f"{self.name}: {field}", str(value), encrypted=encrypted)
        return str(value)

    def _deadline(self) -> float:
        value = self._given("deadline_seconds")
        if value is None:
            return Endpoint.deadline_seconds
        try:
            seconds = math.nan if isinstance(value, bool) else float(str(value))
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise SpecError(f"{self.name}: deadline_seconds is {value!r}; expected a positive number of seconds. Write one, for instance 10.")
        return seconds

    def _tls(self) -> Tls | None:
        switch = self.switch("tls")
        given = [field for field in (*_CERTIFICATES, "tls_server_name") if self._given(field) is not None]
        if given and not switch:
            raise SpecError(f"{self.name} has {' and '.join(given)}, but TLS is off: nothing would be verified. Set tls to true, or remove them.")
        if not switch:
            return None
        certificates = {field: self._pem(field) for field in _CERTIFICATES}
        try:
            return Tls(**certificates, server_name=self._given("tls_server_name"))
        except SpecError as error:
            raise SpecError(f"{self.name}: {error}") from error

    def switch(self, field: str) -> bool:
        """Return a bool extra, False if it is not set; raise `SpecError` if it is something else."""
        value = self._given(field)
        switch = {"none": False, "false": False, "true": True}.get(str(value).strip().lower())
        if switch is None:
            raise SpecError(f"{self.name}: {field} is {value!r}; expected true or false. Write one of them.")
        return switch

    def _pem(self, field: str) -> str | None:
        value = self._given(field)
        if value is None:
            return None
        if "-----BEGIN" not in str(value):
            value = self._file(field, str(value))
        # A form's one-line field takes the line ends away, a shell may have written them out.
        blocks = [(kind, re.sub(r"\\n|\s", "", body)) for kind, body in _PEM.findall(value)]
        if not blocks:
            raise SpecError(f"{self.name}: {field} holds no PEM block; give -----BEGIN ... -----END ... whole, or the path of such a file.")
        return "".join(f"-----BEGIN {kind}-----\n{textwrap.fill(body, 64)}\n-----END {kind}-----\n" for kind, body in blocks)

    def _file(self, field: str, path: str) -> str:
        try:
            return Path(path).read_text()
        except (OSError, ValueError) as error:
            # What was meant as a secret and is none must not be shown; neither does the cause show it.
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SpecError(
                f"{self.name}: {field} is neither PEM text nor the path of a file that this process can read ({reason}). Give one of them."
            ) from None

    def _json(self, field: str) -> Any:
        value = self._given(field)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:  # which holds the whole text, secrets and all
            raise SpecError(f"{self.name} has an extra {field!r} that is no JSON (line {error.lineno}, column {error.colno}). Correct it.") from None

    def _given(self, field: str) -> Any:
        """Return an extra, None where it is not set: a form leaves its empty fields behind."""
        value = self.extra.get(field)
        value = value.strip() if isinstance(value, str) else value
        return None if value in ("", [], {}) else value
