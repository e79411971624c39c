"""Two trainings that should be the same: what each did step by step, and where they part.

A trace is a file of JSON lines, one for each step that was looked at: ``{"step": 7, "digests": {"dense/kernel": "<hex>", ...}}``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from airflow_mlops.exceptions import SpecError


class Divergence(NamedTuple):
    """The first step seen (from 1) after which `tensor` differed, and the last one after which all was the same (0: the first one seen)."""

    step: int
    tensor: str
    last_same: int

    def sentence(self) -> str:
        """Return where the two part, for a person."""
        window = f"step {self.step}" if self.step == self.last_same + 1 else f"one of the steps {self.last_same + 1} to {self.step}"
        return f"They part in {window}: the first tensor that differs is {self.tensor!r}."


def first_divergence(first: Path, second: Path) -> Divergence | None:
    """Return where two traces part, None if they are the same; a trace that ends earlier parts from the other there."""
    last_same = 0
    ones, others = (path.read_text().splitlines() for path in (first, second))
    for one, other in zip(ones, others, strict=False):
        step, digests = _read(one)
        other_step, other_digests = _read(other)
        names = [name for name in {**digests, **other_digests} if digests.get(name) != other_digests.get(name)]
        if names or step != other_step:
            return Divergence(min(step, other_step), names[0] if names else "(the number of steps)", last_same)
        last_same = step
    if len(ones) == len(others):
        return None
    longer = ones if len(ones) > len(others) else others
    return Divergence(_read(longer[min(len(ones), len(others))])[0], "(the number of steps)", last_same)


def _read(line: str) -> tuple[int, dict[str, str]]:
    data = json.loads(line)
    return int(data["step"]), data["digests"]


@contextlib.contextmanager
def traced(path: Path, every: int) -> Iterator[None]:
    """Write the digest of every weight after each `every`-th step of any ``model.fit`` inside the block to the trace `path`.

    Steps count from 1 through all calls of ``fit``; a training loop of its own leaves an empty trace. Raises `SpecError` for `every` < 1.
    """
    if every < 1:
        raise SpecError(f"every is {every}; give 1, for each step, or more.")
    import keras

    original = keras.Model.fit
    signature = inspect.signature(original)
    with path.open("w") as trace:
        looker = _looker(trace, every)

        @functools.wraps(original)
        def fit(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments.get("callbacks")
            if isinstance(given, keras.callbacks.CallbackList):
                given.append(looker)
            else:
                bound.arguments["callbacks"] = [*(given if isinstance(given, list | tuple) else [given] if given else []), looker]
            return original(*bound.args, **bound.kwargs)

        keras.Model.fit = fit
        try:
            yield
        finally:
            keras.Model.fit = original


def _looker(trace: IO[str], every: int) -> Any:
    import keras

    class Looker(keras.callbacks.Callback):  # type: ignore[misc]
        """Looks at the weights and leaves them as they are."""

        step = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.step += 1
            if self.step % every == 0:
                digests = {weight.path: hashlib.blake2b(weight.numpy().tobytes(), digest_size=16).hexdigest() for weight in self.model.weights}
                trace.write(json.dumps({"step": self.step, "digests": digests}) + "\n")

    return Looker()
