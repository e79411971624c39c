"""The range of every neuron over the training data, bound to the one model it was taken of."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.models import LayerSpan, Probe
from airflow_mlops.robustness.mutators.base import Floats


@dataclass(frozen=True, eq=False)
class Profile:
    """`low`, `high`, `mean` and `std` (each (M,) float64) of M neurons over `num_inputs` inputs of the model with `model_digest`."""

    model_digest: str
    layers: tuple[LayerSpan, ...]
    num_inputs: int
    low: Floats
    high: Floats
    mean: Floats
    std: Floats

    @classmethod
    def of(cls, probe: Probe, inputs: Floats, *, batch_size: int = 1024) -> Profile:
        """Measure the neurons over `inputs` (N, H, W, C), which should be the training data; raise `RobustnessError` for NaN or no input."""
        if len(inputs) == 0:
            raise RobustnessError("A neuron profile needs at least one input and got none. Pass the training data.")
        low, high = np.full(probe.num_neurons, np.inf), np.full(probe.num_neurons, -np.inf)
        total, squares = np.zeros(probe.num_neurons), np.zeros(probe.num_neurons)
        # Sums of (value - shift): the variance of a nearly constant neuron would drown in its own square otherwise.
        shift = probe.answer(inputs[:1]).neurons[0].astype(np.float64)
        for answers in probe.answer_all(inputs, batch_size):
            neurons = answers.neurons.astype(np.float64)
            low, high = np.minimum(low, neurons.min(axis=0)), np.maximum(high, neurons.max(axis=0))
            total += (neurons - shift).sum(axis=0)
            squares += ((neurons - shift) ** 2).sum(axis=0)
        if not np.isfinite(squares).all():
            raise RobustnessError("The model has NaN or infinite activations on its training data. Train it again; a campaign would say nothing.")
        mean = total / len(inputs)
        std = np.sqrt(np.maximum(squares / len(inputs) - mean**2, 0.0))
        return cls(probe.digest, probe.layers, len(inputs), low, high, mean + shift, std)

    def check(self, probe: Probe) -> None:
        """Raise `RobustnessError` unless this profile was taken of exactly this model."""
        if (self.model_digest, self.layers) != (probe.digest, probe.layers):
            raise RobustnessError(
                f"This neuron profile belongs to model {self.model_digest} and was used with {probe.digest}. "
                "Sections of another model's ranges mean nothing: take a new profile of this model over its training data."
            )

    def save(self, path: Path) -> None:
        """Write the profile as one .npz file, atomically."""
        meta = json.dumps({"model_digest": self.model_digest, "num_inputs": self.num_inputs, "layers": [asdict(span) for span in self.layers]})
        stream = io.BytesIO()
        np.savez(stream, meta=np.array(meta), low=self.low, high=self.high, mean=self.mean, std=self.std)
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile back, equal to the bit; raise `RobustnessError` for a file that is missing or no profile."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                meta = json.loads(str(stored["meta"]))
                layers = tuple(LayerSpan(**span) for span in meta["layers"])
                arrays = (stored[name] for name in ("low", "high", "mean", "std"))
                return cls(meta["model_digest"], layers, meta["num_inputs"], *arrays)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise RobustnessError(
                f"{path} is no neuron profile ({error}). Expected a .npz file that Profile.save wrote; take a new profile."
            ) from error
