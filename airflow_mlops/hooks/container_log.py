"""The log of one container, told line by line as it grows. Importing this needs Kubernetes' client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from airflow_mlops.stages.pod_log import Position, new_lines

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

READ_SECONDS = 60.0  # a log that says nothing for so long may have lost its connection: it is asked for again
_REFUSED = (401, 403)
_NOT_THERE = (400, 404)  # its container has not begun, or is no more


class ContainerLog:
    """Tells each line of a container's log once, whatever becomes of the connections.

    :param position: how far the log was told before; it moves along.
    """

    def __init__(self, client: CoreV1Api, namespace: str, pod: str, container: str, position: Position) -> None:
        self.position = position
        self._client, self._namespace, self._pod, self._container = client, namespace, pod, container

    def tell_new(self, tell: Callable[[str], object], *, ended: bool, follow: bool = False) -> bool:
        """Tell each line that was not told before; return whether there is no more for now.

        :param ended: the container has ended: its last line is whole, also without a line end.
        :param follow: go on until the connection ends.
        :raises ApiException: the log may not be read, 401 or 403.
        """
        try:
            for line in new_lines(self._chunks(follow=follow), self.position, ended=ended):
                tell(line)
        except ApiException as error:
            if error.status in _REFUSED:
                raise
            return error.status in _NOT_THERE
        except HTTPError:  # the connection broke: what is missing comes when it is asked for again
            return False
        return True

    def _chunks(self, *, follow: bool) -> Iterable[bytes]:
        """Return the log with timestamps from the position on, a time in RFC 3339, which the client's own method cannot say."""
        query: list[tuple[str, Any]] = [("container", self._container), ("follow", "true" if follow else "false"), ("timestamps", "true")]
        response = self._client.api_client.call_api(
            "/api/v1/namespaces/{namespace}/pods/{name}/log",
            "GET",
            {"namespace": self._namespace, "name": self._pod},
            [*query, *([("sinceTime", self.position.since)] if self.position.since else [])],
            {"Accept": "*/*"},
            response_types_map={200: "str"},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=(READ_SECONDS, READ_SECONDS),
        )
        try:
            yield from response.stream(1 << 16)
        finally:
            response.close()  # it was not read to its end: nobody else may get this connection
            response.release_conn()
