"""The one error inside the server that both interfaces translate: a gRPC status code and words for the client."""

from __future__ import annotations

from http import HTTPStatus

import grpc

from airflow_mlops.exceptions import ServingError

# http_server.cc of TensorFlow Serving; every other code is 500.
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

MAX_WORDS = 2000  # gRPC sends an error's words in its headers, which have a limit
CODES = {code.value[0]: code for code in grpc.StatusCode}  # by number, which TensorFlow shares


class Refusal(ServingError):
    """A request that is answered with `code` (a `grpc.StatusCode`) and `message`."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def http_status(self) -> int:
        return int(HTTP_STATUS.get(self.code, HTTPStatus.INTERNAL_SERVER_ERROR))


class Shortage(Refusal):
    """Processes, descriptors or memory are short: no fault of the model's, and it may pass."""


def invalid(message: str) -> Refusal:
    """Return the refusal of a request that is wrong whatever the server serves."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> Refusal:
    """Return the refusal of a request for a model or version that is not served."""
    return Refusal(grpc.StatusCode.NOT_FOUND, message)


def precondition(message: str) -> Refusal:
    """Return the refusal of a request that the server's present state does not allow."""
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
