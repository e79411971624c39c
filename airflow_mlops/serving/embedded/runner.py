"""Calls to answers: each is prepared, those that fit together are run as one, and each gets its own answer or its own error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np

from airflow_mlops.serving.embedded import batching, engine, examples, requests
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


class Asked(NamedTuple):
    """One call, ready to be run."""

    call: Call
    prepared: Prepared


class Runner:
    """Answers calls with `model`, joined as `parameters` say (None: each by itself). May be used by several threads at once.

    A call whose number is in `left`, or whose deadline has passed, is not run: its client is gone. A run that has begun cannot be ended.
    `work` is told which thread works on which call, and 0 when it no longer does.
    """

    def __init__(
        self, model: Model, parameters: BatchingParameters | None, left: Container[int] = (), work: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._left = left
        self._work = work
        self._unlike: set[str] = set()  # signatures whose outputs do not have one row per input row
        self._began: dict[int, float] = {}

    def longest(self) -> tuple[float, int]:
        """Return for how many seconds the longest run under way has been running, and in which thread."""
        now = time.monotonic()
        return max(((now - began, thread) for thread, began in list(self._began.items())), default=(0.0, 0))

    def answers(self, calls: Iterable[Call]) -> list[Answer]:
        """Return one answer per call, in any order; never raises."""
        answers: list[Answer] = []
        ready: list[Asked] = []
        for call in calls:
            try:
                self._check_awaited(call)
                self._work(call.number, threading.get_ident())
                ready.append(Asked(call, METHODS[call.kind](self._model, call.payload)))
            except Exception as error:
                answers.append(self._refused(call, error, 0))
            finally:
                self._work(call.number, 0)
        for asked, outcome in zip(ready, self._outcomes(ready), strict=True):
            answers.append(self._answered(asked, outcome))
        return answers

    def _check_awaited(self, call: Call) -> None:
        """Raise `Refusal` if nobody waits for the answer any more."""
        if 0 < call.deadline < time.monotonic():
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "The request waited past its deadline")
        if call.number in self._left:
            raise Refusal(grpc.StatusCode.CANCELLED, "The client went away")

    def _answered(self, asked: Asked, outcome: Outcome) -> Answer:
        call, prepared = asked
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

    def _outcomes(self, ready: Sequence[Asked]) -> list[Outcome]:
        if self._parameters is None:
            return [self._alone(call, one.runs) for call, one in ready]
        outcomes: dict[int, Outcome] = {}
        groups: dict[Any, list[int]] = {}
        for number, (call, one) in enumerate(ready):
            run = one.runs[0] if len(one.runs) == 1 and not call.alone else None
            if run is None or run.signature in self._unlike or not batching.num_rows(run.inputs):
                outcomes[number] = self._alone(call, one.runs)
            elif (wrong := self._wrong(run)) is not None:  # padding could make it fit
                outcomes[number] = Outcome(error=wrong)
            else:
                alike = batching.likeness(run.inputs, self._parameters)
                groups.setdefault((run.signature, run.wanted, alike), []).append(number)
        for numbers in groups.values():
            try:
                found = self._grouped([ready[number] for number in numbers], self._parameters)
            except Exception as error:  # joining them takes memory
                found = [Outcome(error=error)] * len(numbers)
            outcomes.update(zip(numbers, found, strict=True))
        return [outcomes[number] for number in range(len(ready))]

    def _grouped(self, ready: Sequence[Asked], parameters: BatchingParameters) -> list[Outcome]:
        """Return the outcomes of alike runs, in batches of at most as many rows as the parameters allow."""
        rows = [batching.num_rows(one.prepared.runs[0].inputs) or 0 for one in ready]
        outcomes: list[Outcome] = []
        for batch in batching.batches(rows, parameters.largest_run):
            members, sizes = [ready[number] for number in batch], [rows[number] for number in batch]
            if sizes[0] > parameters.largest_run:  # such a request is a batch of its own
                outcomes.append(self._large(members[0], sizes[0], parameters))
            else:
                outcomes += self._awaited(members, sizes, parameters)
        return outcomes

    def _large(self, asked: Asked, rows: int, parameters: BatchingParameters) -> Outcome:
        if not parameters.enable_large_batch_splitting:
            return Outcome(error=invalid(f"Task size {rows} is larger than maximum input batch size {parameters.max_batch_size}"))
        run = asked.prepared.runs[0]
        outputs: list[Outputs] = []
        micros = 0
        for inputs in batching.pieces(run.inputs, rows, parameters.largest_run):
            sizes = [batching.num_rows(inputs) or 0]
            padded = batching.joined([inputs], parameters)
            done = self._alone(asked.call, [run._replace(inputs=padded)])
            if done.error is not None:
                return done
            parts = batching.split(done.outputs[0], sizes, batching.num_rows(padded) or 0)
            if parts is None:
                words = f"A request of {rows} rows cannot be split: signature {run.signature!r} does not answer row by row. Send at most "
                return Outcome(error=invalid(f"{words}{parameters.largest_run} rows"))
            outputs += parts
            micros += done.micros
        return Outcome([{name: np.concatenate([part[name] for part in outputs]) for name in run.wanted}], None, micros)

    def _awaited(self, members: Sequence[Asked], rows: Sequence[int], parameters: BatchingParameters) -> list[Outcome]:
        """Return the outcomes of one batch, without those whose clients went away while the batch before it was run."""
        outcomes: list[Outcome | None] = [self._left_behind(one.call) for one in members]
        awaited = [number for number, outcome in enumerate(outcomes) if outcome is None]
        found = iter(self._together([members[number] for number in awaited], [rows[number] for number in awaited], parameters) if awaited else ())
        return [next(found) if outcome is None else outcome for outcome in outcomes]

    def _together(self, members: Sequence[Asked], rows: Sequence[int], parameters: BatchingParameters) -> list[Outcome]:
        runs = [one.prepared.runs[0] for one in members]
        try:
            inputs = batching.joined([run.inputs for run in runs], parameters)
        except (ValueError, MemoryError):
            return [self._alone(member.call, member.prepared.runs) for member in members]
        total = batching.num_rows(inputs) or 0
        done = self._run([member.call for member in members], [runs[0]._replace(inputs=inputs)])
        if done.error is None:
            if (parts := batching.split(done.outputs[0], rows, total)) is not None:
                return [Outcome([part], None, done.micros) for part in parts]
            self._unlike.add(runs[0].signature)
        if len(runs) == 1 and total == rows[0]:
            return [done]
        # One bad request, or a signature that cannot be joined, must not fail the others.
        return [self._alone(member.call, member.prepared.runs) for member in members]

    def _left_behind(self, call: Call) -> Outcome | None:
        try:
            self._check_awaited(call)
        except Refusal as refusal:
            return Outcome(error=refusal)
        return None

    def _alone(self, call: Call, runs: Sequence[Run]) -> Outcome:
        return self._left_behind(call) or self._run([call], runs)

    def _wrong(self, run: Run) -> Refusal | None:
        try:
            engine.check(self._model.servable.signatures[run.signature], run.inputs)
        except Refusal as refusal:
            return refusal
        return None

    def _run(self, calls: Sequence[Call], runs: Sequence[Run]) -> Outcome:
        thread, began = threading.get_ident(), time.monotonic()
        self._began[thread] = began
        for call in calls:
            self._work(call.number, thread)
        outputs: list[Outputs] = []
        error: Exception | None = None
        try:
            outputs = [self._model.servable.run(*run) for run in runs]
        except Exception as problem:
            error = problem
        for call in calls:
            self._work(call.number, 0)
        del self._began[thread]
        return Outcome(outputs, error, int((time.monotonic() - began) * 1e6))
