"""All replicas of a model server as one: what is not true on every one of them is not true."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from airflow_mlops.exceptions import ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving.availability import VersionStatus, worst
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.tensors import Array

T = TypeVar("T")


class ServingFleet:
    """Several replicas with the methods of one `ServingClient`; all are asked at once, so the slowest sets the time, not their sum.

    Raises `SpecError` if there is none, or one twice. The fleet closes its replicas.
    """

    def __init__(self, replicas: Iterable[ServingClient]) -> None:
        self.replicas = tuple(replicas)
        addresses = [replica.grpc_address for replica in self.replicas]
        if not addresses or len(set(addresses)) < len(addresses):
            raise SpecError(f"The replicas are {addresses}; expected at least one, each address once. Correct the list.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to all replicas."""
        for replica in self.replicas:
            replica.close()

    def status(self, model: str) -> dict[int, VersionStatus]:
        """Return for each version of `model` its worst state over all replicas, START where one does not know it; an error names its replica.

        Raises `ServingUnavailable` if one of them does not answer; `statuses` shows the others all the same.
        """
        return worst(self.ask_all(lambda replica: replica.status(model)))

    def statuses(self, model: str) -> dict[str, dict[int, VersionStatus] | None]:
        """Return by the replica's address the state of every version that it knows of `model`; None if it does not answer."""
        outcomes = self._outcomes(lambda replica: replica.status(model))
        for outcome in outcomes.values():
            if isinstance(outcome, ServingError) and not isinstance(outcome, ServingUnavailable):
                raise outcome
        return {address: None if isinstance(outcome, ServingError) else outcome for address, outcome in outcomes.items()}

    def reload(self, config: ServerConfig) -> None:
        """Make every replica serve exactly `config`; each is told once.

        If one fails, the others may have taken it: the error says what happened to each, and whoever asked sends this configuration again or the
        previous one, which he has in its file; no server can say what it had. It is `ServingUnavailable` if none refused and some did not
        answer, else `ServingError`.
        """
        outcomes = self._outcomes(lambda replica: replica.reload(config))
        failed = [outcome for outcome in outcomes.values() if outcome is not None]
        if not failed:
            return
        if len(outcomes) == 1:
            raise failed[0]
        kind = ServingUnavailable if all(isinstance(error, ServingUnavailable) for error in failed) else ServingError
        taken = [address for address, outcome in outcomes.items() if outcome is None]
        said = " ".join(f"{str(error).rstrip('.')}." for error in failed)
        raise kind(
            f"{len(taken)} of {len(outcomes)} replicas took a new configuration ({', '.join(taken) or 'none'}). {said} "
            "The replicas may differ until all have the same: send this one again, or the previous one."
        ) from failed[0]

    def predict(
        self,
        model: str,
        instances: Sequence[Any],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str | None = None,
    ) -> list[Any]:
        """Return what the first replica that answers predicts, as `ServingClient.predict`; by `ask_all` each can be asked."""
        return self._first(lambda replica: replica.predict(model, instances, version=version, label=label, signature_name=signature_name))

    def predict_tensors(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str | None = None,
        output_filter: Sequence[str] = (),
    ) -> tuple[int, dict[str, Array]]:
        """Return what the first replica that answers predicts, as `ServingClient.predict_tensors`."""
        asked: dict[str, Any] = {"version": version, "label": label, "signature_name": signature_name, "output_filter": output_filter}
        return self._first(lambda replica: replica.predict_tensors(model, inputs, **asked))

    def signatures(self, model: str, *, version: int | None = None, label: str | None = None) -> dict[str, Any]:
        """Return what the first replica that answers says of one version, as `ServingClient.signatures`."""
        return self._first(lambda replica: replica.signatures(model, version=version, label=label))

    def ready(self) -> bool:
        """Return whether every replica answers now, by gRPC and REST, whichever models it serves."""
        return all(self.ask_all(lambda replica: replica.ready()).values())

    def ask_all(self, ask: Callable[[ServingClient], T]) -> dict[str, T]:
        """Return what `ask` gets from each replica, by the replica's address; raise the first `ServingError`, which names its replica."""
        answers = {}
        for address, outcome in self._outcomes(ask).items():
            if isinstance(outcome, ServingError):
                raise outcome
            answers[address] = outcome
        return answers

    def _outcomes(self, ask: Callable[[ServingClient], T]) -> dict[str, T | ServingError]:
        def outcome(replica: ServingClient) -> T | ServingError:
            try:
                return ask(replica)
            except ServingError as error:
                return error

        if len(self.replicas) == 1:  # no thread for the most common fleet
            return {self.replicas[0].grpc_address: outcome(self.replicas[0])}
        with ThreadPoolExecutor(len(self.replicas)) as pool:
            return dict(zip((replica.grpc_address for replica in self.replicas), pool.map(outcome, self.replicas), strict=True))

    def _first(self, ask: Callable[[ServingClient], T]) -> T:
        silent = []
        for replica in self.replicas:
            try:
                return ask(replica)
            except ServingUnavailable as error:
                silent.append(error)
        raise silent[0]


Replicas = ServingClient | ServingFleet  # what one of them can do, so can the other
