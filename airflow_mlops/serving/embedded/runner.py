"""Calls to answers: each is prepared, those that fit together are run as one, and each gets its own answer or its own error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np

from airflow_mlops.serving.embedded import batching, examples, requests
from airflow_mlops.serving.embedded.frames import Answer, Call, Kind
from airflow_mlops.serving.embedded.orders import BatchingParameters
from airflow_mlops.serving.embedded.refusal import Refusal, invalid
from airflow_mlops.serving.embedded.requests import Model, Outputs, Prepared, Run

log = logging.getLogger(__name__)
METHODS: dict[Kind, Callable[[Model, bytes], Prepared]] = {
    Kind.PREDICT: requests.predict,
    Kind.CLASSIFY: examples.classify,
    Kind.REGRESS: examples.regress,
    Kind.MULTI_INFERENCE: examples.multi_inference,
    Kind.REST_PREDICT: requests.rest_predict,
    Kind.REST_CLASSIFY: examples.rest_classify,
    Kind.REST_REGRESS: examples.rest_regress,
}


class Outcome(NamedTuple):
    """What the runs of one request gave: their outputs, or why there are none; and how long it took."""

    outputs: Sequence[Outputs] = ()
    error: Exception | None = None
    micros: int = 0


class Runner:
    """Answers calls with `model`, joined as `parameters` say (None: each by itself). May be used by several threads at once."""

    def __init__(self, model: Model, parameters: BatchingParameters | None) -> None:
        self._model = model
        self._parameters = parameters
        self._unlike: set[str] = set()  # signatures whose outputs do not have one row per input row
        self._began: dict[int, float] = {}

    def longest(self) -> float:
        """Return for how many seconds the longest run under way has been running."""
        now = time.monotonic()
        return max((now - began for began in list(self._began.values())), default=0.0)

    def answers(self, calls: Iterable[Call]) -> list[Answer]:
        """Return one answer per call, in any order; never raises."""
        answers: list[Answer] = []
        ready: list[tuple[Call, Prepared]] = []
        for call in calls:
            try:
                if 0 < call.deadline < time.monotonic():
                    raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "The request waited past its deadline")
                ready.append((call, METHODS[call.kind](self._model, call.payload)))
            except Exception as error:
                answers.append(self._refused(call, error, 0))
        for (call, prepared), outcome in zip(ready, self._outcomes([prepared for _, prepared in ready]), strict=True):
            answers.append(self._answered(call, prepared, outcome))
        return answers

    def _answered(self, call: Call, prepared: Prepared, outcome: Outcome) -> Answer:
        if outcome.error is not None:
            return self._refused(call, outcome.error, outcome.micros)
        try:
            return Answer(call.number, 0, outcome.micros, prepared.answer(outcome.outputs))
        except Exception as error:
            return self._refused(call, error, outcome.micros)

    def _refused(self, call: Call, error: Exception, micros: int) -> Answer:
        if not isinstance(error, Refusal):
            log.error("model %s version %s: %s failed", self._model.name, self._model.version, call.kind.name, exc_info=error)
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if isinstance(error, MemoryError) else grpc.StatusCode.INTERNAL
            words = "The request needs more memory than there is; send it in smaller parts" if isinstance(error, MemoryError) else ""
            error = Refusal(code, words or f"{type(error).__name__}: {error}")
        return Answer(call.number, error.code.value[0], micros, str(error).encode(errors="replace"))

    def _outcomes(self, prepared: Sequence[Prepared]) -> list[Outcome]:
        if self._parameters is None:
            return [self._alone(one.runs) for one in prepared]
        outcomes: dict[int, Outcome] = {}
        groups: dict[Any, list[int]] = {}
        for number, one in enumerate(prepared):
            run = one.runs[0] if len(one.runs) == 1 else None
            if run is None or run.signature in self._unlike or not batching.num_rows(run.inputs):
                outcomes[number] = self._alone(one.runs)
            else:
                alike = batching.likeness(run.inputs, self._parameters)
                groups.setdefault((run.signature, run.wanted, alike), []).append(number)
        for numbers in groups.values():
            try:
                found = self._grouped([prepared[number].runs[0] for number in numbers], self._parameters)
            except Exception as error:  # joining them takes memory
                found = [Outcome(error=error)] * len(numbers)
            outcomes.update(zip(numbers, found, strict=True))
        return [outcomes[number] for number in range(len(prepared))]

    def _grouped(self, runs: Sequence[Run], parameters: BatchingParameters) -> list[Outcome]:
        """Return the outcomes of alike runs, in batches of at most as many rows as the parameters allow."""
        rows = [batching.num_rows(run.inputs) or 0 for run in runs]
        outcomes: list[Outcome] = []
        for batch in batching.batches(rows, parameters.largest_run):
            members, sizes = [runs[number] for number in batch], [rows[number] for number in batch]
            if sizes[0] > parameters.largest_run:  # such a request is a batch of its own
                outcomes.append(self._large(members[0], sizes[0], parameters))
            else:
                outcomes += self._together(members, sizes, parameters)
        return outcomes

    def _large(self, run: Run, rows: int, parameters: BatchingParameters) -> Outcome:
        if not parameters.enable_large_batch_splitting:
            return Outcome(error=invalid(f"Task size {rows} is larger than maximum input batch size {parameters.max_batch_size}"))
        outputs: list[Outputs] = []
        micros = 0
        for inputs in batching.pieces(run.inputs, rows, parameters.largest_run):
            sizes = [batching.num_rows(inputs) or 0]
            padded = batching.joined([inputs], parameters)
            done = self._alone([run._replace(inputs=padded)])
            if done.error is not None:
                return done
            parts = batching.split(done.outputs[0], sizes, batching.num_rows(padded) or 0)
            if parts is None:
                words = f"A request of {rows} rows can not be split: signature {run.signature!r} does not answer row by row. Send at most "
                return Outcome(error=invalid(f"{words}{parameters.largest_run} rows"))
            outputs += parts
            micros += done.micros
        return Outcome([{name: np.concatenate([part[name] for part in outputs]) for name in run.wanted}], None, micros)

    def _together(self, runs: Sequence[Run], rows: Sequence[int], parameters: BatchingParameters) -> list[Outcome]:
        try:
            inputs = batching.joined([run.inputs for run in runs], parameters)
        except (ValueError, MemoryError):
            return [self._alone([run]) for run in runs]
        total = batching.num_rows(inputs) or 0
        done = self._alone([runs[0]._replace(inputs=inputs)])
        if done.error is None:
            if (parts := batching.split(done.outputs[0], rows, total)) is not None:
                return [Outcome([part], None, done.micros) for part in parts]
            self._unlike.add(runs[0].signature)
        if len(runs) == 1 and total == rows[0]:
            return [done]
        return [self._alone([run]) for run in runs]  # one bad request, or a signature that can not be joined, is nobody else's error

    def _alone(self, runs: Sequence[Run]) -> Outcome:
        thread, began = threading.get_ident(), time.monotonic()
        self._began[thread] = began
        outputs: list[Outputs] = []
        error: Exception | None = None
        try:
            outputs = [self._model.servable.run(*run) for run in runs]
        except Exception as problem:
            error = problem
        del self._began[thread]
        return Outcome(outputs, error, int((time.monotonic() - began) * 1e6))
