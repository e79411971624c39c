"""The range of every neuron over the training data, bound to the one model it was taken of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.artifacts import bytes_digest
from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.models import LayerSpan, Probe
from airflow_mlops.robustness.mutators.base import Floats
from airflow_mlops.robustness.stored import UNREADABLE, write_arrays

MICRO_BATCHES = 4  # looked at in one go; always as many, because sums are rounded by how they are grouped
ARRAYS = ("low", "high", "mean", "std")


@dataclass(frozen=True, eq=False)
class Profile:
    """`low`, `high`, `mean` and `std` (each (M,) float64) of M neurons over `num_inputs` inputs of the model with `model_digest`.

    Taken again of the same model and inputs with the same micro-batch, it is the same to the bit.
    """

    model_digest: str
    layers: tuple[LayerSpan, ...]
    num_inputs: int
    low: Floats
    high: Floats
    mean: Floats
    std: Floats

    @classmethod
    def of(cls, probe: Probe, inputs: npt.NDArray[Any]) -> Profile:
        """Measure the neurons over `inputs` (N, ...), which should be the training data.

        Raises `RobustnessError` for no input, and where the model answers NaN or infinity or has such neurons.
        """
        if len(inputs) == 0:
            raise RobustnessError("A neuron profile needs at least one input and got none. Pass the training data.")
        low, high = np.full(probe.num_neurons, np.inf), np.full(probe.num_neurons, -np.inf)
        total, squares = np.zeros(probe.num_neurons), np.zeros(probe.num_neurons)
        # Sums of (value - shift): the variance of a nearly constant neuron would drown in its own square otherwise.
        shift = probe.answer(inputs[:1]).neurons[0].astype(np.float64)
        for answers in probe.answer_all(inputs, MICRO_BATCHES * probe.micro_batch):
            num_broken = np.count_nonzero((answers.prediction == -1) | ~np.isfinite(answers.neurons).all(axis=1))
            if num_broken:
                raise RobustnessError(
                    f"The model answers {num_broken} of {len(answers.prediction)} training inputs with NaN or infinity, or some neurons are so. "
                    "Train it again; a campaign would say nothing."
                )
            neurons = answers.neurons.astype(np.float64)
            low, high = np.minimum(low, neurons.min(axis=0)), np.maximum(high, neurons.max(axis=0))
            total += (neurons - shift).sum(axis=0)
            squares += ((neurons - shift) ** 2).sum(axis=0)
        mean = total / len(inputs)
        std = np.sqrt(np.maximum(squares / len(inputs) - mean**2, 0.0))
        return cls(probe.digest, probe.layers, len(inputs), low, high, mean + shift, std)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of everything in it."""
        return bytes_digest(self._meta().encode() + b"".join(getattr(self, name).tobytes() for name in ARRAYS))

    def part(self, layers: tuple[LayerSpan, ...]) -> Profile:
        """Return the profile of some `layers` that stand one after the other."""
        start, stop = layers[0].start, layers[-1].stop
        moved = tuple(LayerSpan(span.name, span.start - start, span.stop - start) for span in layers)
        return Profile(self.model_digest, moved, self.num_inputs, *(getattr(self, name)[start:stop] for name in ARRAYS))

    def check(self, probe: Probe) -> None:
        """Raise `RobustnessError` unless this profile was taken of exactly this model."""
        if (self.model_digest, self.layers) != (probe.digest, probe.layers):
            raise RobustnessError(
                f"This neuron profile belongs to model {self.model_digest} and was used with {probe.digest}. "
                "Sections of another model's ranges mean nothing: take a new profile of this model over its training data."
            )

    def save(self, path: Path) -> None:
        """Write the profile as one .npz file, atomically."""
        write_arrays(path, {"meta": np.array(self._meta()), **{name: getattr(self, name) for name in ARRAYS}})

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile back, equal to the bit; raise `RobustnessError` for a file that is missing or no profile."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                meta = json.loads(str(stored["meta"]))
                layers = tuple(LayerSpan(**span) for span in meta["layers"])
                arrays = [stored[name] for name in ARRAYS]
                if any(array.dtype != np.float64 or array.shape != (layers[-1].stop,) for array in arrays):
                    raise ValueError(f"its arrays are not of {layers[-1].stop} neurons")
                return cls(meta["model_digest"], layers, meta["num_inputs"], *arrays)
        except UNREADABLE as error:
            raise RobustnessError(
                f"{path} is no neuron profile ({error}). Expected a .npz file that Profile.save wrote; take a new profile."
            ) from error

    def _meta(self) -> str:
        return json.dumps({"model_digest": self.model_digest, "num_inputs": self.num_inputs, "layers": [asdict(span) for span in self.layers]})
