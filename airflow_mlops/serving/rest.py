"""The REST interface of one model server: JSON questions that change nothing, so they may be asked again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from airflow_mlops.exceptions import ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving import retry
from airflow_mlops.serving.tls import Tls, distrusted, untrusted

_UNAVAILABLE = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
_Answer = tuple[int, bytes]


class _Left(dict[str, float]):
    """The seconds left until `end`, whenever a step of a request asks for its timeout: httpx limits every step alone, not their sum."""

    def __init__(self, left: float) -> None:
        super().__init__(dict.fromkeys(("connect", "read", "write", "pool"), left))
        self.end = time.monotonic() + left

    def get(self, key: str, default: Any = None) -> float:
        return max(self.end - time.monotonic(), 0.001)


class RestClient:
    """Asks the REST interface at `url`; each answer comes within `deadline_seconds`, or `ServingUnavailable` is raised.

    With `tls`, a URL of http:// is refused unless `plain_allowed`. Raises `SpecError` as `check_url`.
    """

    def __init__(self, url: str, deadline_seconds: float, tls: Tls | None, *, plain_allowed: bool = False) -> None:
        check_url("The REST URL", url, encrypted=tls is not None and not plain_allowed)
        self.url = url.rstrip("/")
        self.deadline_seconds = deadline_seconds
        self._server_name = {"sni_hostname": tls.server_name} if tls and tls.server_name else {}
        plain = url.lower().startswith("http:")  # needs no public authorities, which take longer to read than a server to answer
        self._http = httpx.Client(verify=tls.context() if tls else not plain, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Return the server's JSON object; raise `ServingError` with its words if it refuses."""
        status, content = self._asked(method, path, lambda: retry.call(lambda left: self._send(method, path, body, left), self.deadline_seconds))
        try:
            data = json.loads(content)
        except ValueError as error:
            raise ServingError(f"{self.url}{path} answered {status} and no JSON: {content[:200]!r}. Is it a model server?") from error
        if status != httpx.codes.OK or not isinstance(data, dict):
            words = data.get("error", data) if isinstance(data, dict) else data
            raise ServingError(f"The model server at {self.url} refused {method} {path} ({status}): {words}")
        return data

    def check(self) -> None:
        """Raise `ServingUnavailable` if nothing answers, whatever it would say."""
        path = "/v1/models/ready"
        self._asked("GET", path, lambda: self._send("GET", path, None, self.deadline_seconds))

    def _asked(self, method: str, path: str, ask: Callable[[], _Answer]) -> _Answer:
        """Return the answer; raise what the transport says in this package's words."""
        try:
            return ask()
        except httpx.HTTPStatusError as error:
            words = error.response.content.decode(errors="replace")[:500]
            raise ServingUnavailable(f"The model server at {self.url} is not available for {path}: {words}. Retry when it is.") from error
        except httpx.RequestError as error:
            detail = str(error) or type(error).__name__
            if distrusted(detail):
                raise untrusted(self.url, detail) from error
            raise ServingUnavailable(
                f"The model server at {self.url} did not answer {method} {path}: {detail} (deadline {self.deadline_seconds:g} s). "
                "Check that it runs, then retry."
            ) from error

    def _send(self, method: str, path: str, body: bytes | None, left: float) -> _Answer:
        timeout = _Left(left)
        content = bytearray()
        with self._http.stream(
            method,
            self.url + path,
            content=body,
            headers={"Content-Type": "application/json"},
            extensions={"timeout": timeout, **self._server_name},
        ) as answer:
            for chunk in answer.iter_bytes():
                content += chunk
                if time.monotonic() > timeout.end:
                    raise httpx.ReadTimeout("the answer took too long")
        if answer.status_code in _UNAVAILABLE:
            said = httpx.Response(answer.status_code, content=bytes(content))
            raise httpx.HTTPStatusError("the server is not available", request=answer.request, response=said)
        return answer.status_code, bytes(content)


def check_url(field: str, url: str, *, encrypted: bool) -> None:
    """Raise `SpecError` about `field` unless `url` leads to a REST interface, `encrypted` if that is wanted."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:  # whose words may show a part of what was meant as a password
        raise SpecError(f"{field} is no URL; expected for instance http://serving:8501. Correct it.") from None
    if parts.username is not None or ("@" in url and not host):
        raise SpecError(f"{field} holds a user or a password, which a model server does not ask for; expected for instance http://serving:8501.")
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment:
        raise SpecError(f"{field} is {url!r}; expected for instance http://serving:8501. Correct it.")
    if encrypted and parts.scheme != "https":
        raise SpecError(
            f"{field} is {url!r}, but TLS is on: inputs and answers would travel in the clear. Write https:// and the port of a proxy, for "
            "TensorFlow Serving's own REST port speaks no TLS; or leave it out, for releases ask by gRPC; or set plain_rest_allowed if the network "
            "is trusted."
        )


def model_path(model: str, version: int | None, label: str | None) -> str:
    """Return the path of a model, of one version or of a label; raise `SpecError` if both are given."""
    one_of(model, version, label)
    part = "" if version is None else f"/versions/{version}"
    part = part if label is None else f"/labels/{quote(label, safe='')}"
    return f"/v1/models/{quote(model, safe='')}{part}"


def one_of(model: str, version: int | None, label: str | None) -> None:
    """Raise `SpecError` if a version and a label are asked for at once."""
    if version is not None and label is not None:
        raise SpecError(f"Both version {version} and label {label!r} of model {model!r} were asked for; give one of them.")
