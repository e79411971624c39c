"""One pod under its one name, at an API server that may be busy, forgetful or against it. Importing this needs Kubernetes' client."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from airflow_mlops.exceptions import ClusterUnavailable, StageKilled
from airflow_mlops.hooks.container_log import ContainerLog
from airflow_mlops.stages.pod import ENDED, SPEC_ANNOTATION, dropped
from airflow_mlops.stages.pod_log import Position

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from kubernetes.client import ApiClient, CoreV1Api, V1Pod

T = TypeVar("T")
_connecting = threading.Lock()
PATIENCE_SECONDS = 600.0  # an API server that is replaced or overloaded is back by then; longer troubles are for the task's own retries
_BUSY = (410, 429)  # and everything from 500: the API server's trouble is nobody's failure
_LONGEST_PAUSE = 30.0
_PAUSE_SECONDS = 5.0
_LAST_READS = 3  # of the log of a pod that has ended, before what is missing of it is given up


def connected(hook: KubernetesHook) -> ApiClient:
    """Return a client of the hook's cluster, also where other threads connect to other clusters: the hook keeps what it is told of one in a place
    that all threads share, until a client is made of it.
    """
    with _connecting:
        return hook.get_conn()


def busy(error: ApiException | HTTPError) -> bool:
    """Whether the API server could not answer, as opposed to: refused."""
    return isinstance(error, HTTPError) or error.status in _BUSY or error.status >= 500 or not error.status


def patiently(call: Callable[[], T], warn: Callable[..., object], *, seconds: float = PATIENCE_SECONDS, pause: float = 1.0) -> T:
    """Return what `call` does, made again while the API server is busy, after longer and longer pauses.

    :param warn: told, as a logger is, of every answer that was none.
    :param seconds: for how long, at most.
    :param pause: the first pause, in seconds; each one is twice the one before, and shortened by chance, lest all workers ask at once.
    :raises ClusterUnavailable: it was busy all the time.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (ApiException, HTTPError) as error:
            if not busy(error):
                raise
            if time.monotonic() + pause > end:
                raise ClusterUnavailable(f"Kubernetes did not answer for {seconds:.0f} s: {_words(error)}. Look at its API server.") from error
            warn("Kubernetes answers %s; asking again.", _words(error))
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, _LONGEST_PAUSE)


def refusal(error: ApiException) -> Exception:
    """Return what to raise where Kubernetes refused: no retry helps, except where other pods have used up the quota."""
    body = str(error.body or "")[:500]
    if error.status == 403 and "exceeded quota" in body:
        return ClusterUnavailable(f"The namespace's quota has no room for this pod: {body} Ask for less, raise the quota, or retry later.")
    return AirflowFailException(f"Kubernetes refused: {error.status} {error.reason}: {body}")


@contextlib.contextmanager
def troubles(warn: Callable[..., object]) -> Iterator[None]:
    """Let what the pod and its record say decide, and not how following it ended; an API server in trouble is asked again later."""
    try:
        yield
    except AirflowFailException:
        raise
    except ApiException as error:
        if error.status != 404 and not busy(error):
            raise refusal(error) from error
        warn("Kubernetes answers %s %s; looking again.", error.status, error.reason)
        time.sleep(_PAUSE_SECONDS if busy(error) else 0.0)
    except (AirflowException, HTTPError) as error:
        warn("Following the pod ended: %s", error)


class StagePod:
    """The pod of one attempt: made, looked at, followed and deleted by its name.

    :param warn: as of `patiently`.

    `position` is how far its log was told.
    """

    def __init__(self, client: CoreV1Api, namespace: str, name: str, warn: Callable[..., object]) -> None:
        self.namespace, self.name = namespace, name
        self.position = Position()
        self._client, self._warn, self._stopped = client, warn, False

    def create(self, request: V1Pod) -> V1Pod:
        """Make the pod, or find the one that was made for the same request before, by a worker that died or a call that got no answer.

        :raises StageKilled: it was told to stop.
        :raises AirflowFailException: Kubernetes refuses it, keeps only a part of it, or has one for another request.
        """
        try:
            made = patiently(lambda: self._create(request), self._warn)
        except ApiException as error:
            raise refusal(error) from error
        if self._stopped:  # while it was made
            self.stop()
            raise StageKilled(f"The task was stopped while pod {self.name} was made; it is told to end.")
        return made

    def seen(self) -> V1Pod | None:
        """Return the pod as Kubernetes has it, None when it is gone."""
        try:
            return patiently(lambda: self._client.read_namespaced_pod(self.name, self.namespace), self._warn)
        except ApiException as error:
            if error.status != 404:
                raise refusal(error) from error
            return None

    def events(self, uid: str) -> list[dict[str, Any]]:
        """Return Kubernetes' events about the pod of this uid as JSON; none where they may not be read, for they only say more than the pod does."""
        about = f"involvedObject.uid={uid}"
        try:
            found = patiently(lambda: self._client.list_namespaced_event(self.namespace, field_selector=about).items, self._warn)
        except ApiException as error:
            if error.status != 403:
                raise refusal(error) from error
            self._warn("Events may not be listed here, which would say what pod %s waits for; its Role has that as an option.", self.name)
            return []
        return list(self._client.api_client.sanitize_for_serialization(found))

    def goes_on(self) -> bool:
        """Whether the pod is there and has not ended."""
        seen = self.seen()
        return seen is not None and seen.status.phase not in ENDED

    def delete(self) -> None:
        """Take the pod away, after the time that it has for stopping."""
        try:
            patiently(self._delete, self._warn)
        except ApiException as error:
            raise refusal(error) from error

    def stop(self) -> None:
        """Delete the pod soon, for whoever asks is being stopped himself; and none is made from now on."""
        self._stopped = True
        patiently(self._delete, self._warn, seconds=10.0, pause=0.5)

    def follow(self, container: str | None, tell: Callable[[str], object], *, pause: float) -> V1Pod | None:
        """Wait until the pod has ended and return it, None when it is gone; meanwhile tell each line of a container's log once.

        :param pause: seconds between two looks at a pod whose log's connection ended, or is not wanted.
        """
        log = None if container is None else ContainerLog(self._client, self.namespace, self.name, container, self.position)
        last_reads = 0
        while True:
            seen = self.seen()
            ended = seen is None or seen.status.phase in ENDED
            read = log is None or self._tell_new(log, tell, ended=ended)
            last_reads += ended
            if ended and (read or last_reads == _LAST_READS):
                return seen
            time.sleep(pause)

    def _tell_new(self, log: ContainerLog, tell: Callable[[str], object], *, ended: bool) -> bool:
        try:
            return log.tell_new(tell, ended=ended, follow=not ended)
        except ApiException as error:
            raise refusal(error) from error

    def _create(self, request: V1Pod) -> V1Pod:
        if self._stopped:
            raise StageKilled(f"The task was stopped before pod {self.name} was made.")
        as_json = self._client.api_client.sanitize_for_serialization
        sent = as_json(request)
        try:
            made = self._client.create_namespaced_pod(self.namespace, sent)
        except ApiException as error:
            if error.status != 409:
                raise
            return self._found(sent["metadata"]["annotations"][SPEC_ANNOTATION])
        if lost := dropped(sent, as_json(made)):
            self._delete()
            raise AirflowFailException(
                f"Kubernetes drops {', '.join(lost)} of pod {self.name}: it is too old for that, or a webhook is against it. Leave it out."
            )
        return made

    def _found(self, spec_digest: str) -> V1Pod:
        found = self.seen()
        if found is None:
            raise ApiException(status=503, reason="its pod of this name vanished just now")  # so that it is asked again
        if (found.metadata.annotations or {}).get(SPEC_ANNOTATION) != spec_digest:
            raise AirflowFailException(f"Pod {self.name} is there for another request; delete it and clear this task.")
        self._warn("Pod %s is there already: going on with it.", self.name)
        return found

    def _delete(self) -> None:
        try:
            self._client.delete_namespaced_pod(self.name, self.namespace)
        except ApiException as error:
            if error.status != 404:
                raise


def waiting_seconds(pod: V1Pod | None) -> float:
    """Return for how many seconds the pod has been there, or has had its node."""
    if pod is None:
        return 0.0
    bound = [one.last_transition_time for one in pod.status.conditions or () if (one.type, one.status) == ("PodScheduled", "True")]
    since = next(filter(None, bound), pod.metadata.creation_timestamp)
    return time.time() - since.timestamp() if since else 0.0


def _words(error: ApiException | HTTPError) -> str:
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)
