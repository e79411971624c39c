"""The plumbing of every criterion; a member is only its idea of what an input touches."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from airflow_mlops.artifacts import bytes_digest, canonical_json
from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.models import Answers
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.stored import UNREADABLE, write_arrays

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Bits: TypeAlias = npt.NDArray[np.bool_]
# Activations looked at in one go: what is computed of them stays in the cache, and below 10 MB for a network of 27,000 neurons.
CHUNK = 1 << 15
MIN_ROWS = 8


@dataclass(frozen=True)
class CoverageOptions:
    """Options of the criteria; the defaults are those of the papers. Raises `SpecError` for impossible values.

    `nc_threshold`: scaled activation above which a neuron is covered. `kmnc_sections`: equal sections of each neuron's range.
    `boundary_deviations`: NBC and SNAC widen the range by this many standard deviations on both sides. `top_k`: neurons per layer that
    TKNC and BKNC count. `pattern_k`: neurons per layer in a TKNP pattern. `ann_threshold`: squared L2 distance of logits that is news.
    """

    nc_threshold: float = 0.75
    kmnc_sections: int = 1000
    boundary_deviations: float = 0.0
    top_k: int = 10
    pattern_k: int = 2
    ann_threshold: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.nc_threshold < 1.0:
            raise SpecError(f"nc_threshold is {self.nc_threshold}; expected a scaled activation in [0, 1), because nothing is above 1.")
        for name in ("kmnc_sections", "top_k", "pattern_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecError(f"{name} is {value}; expected a whole number from 1 on.")
        for name in ("boundary_deviations", "ann_threshold"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise SpecError(f"{name} is {getattr(self, name)}; expected a finite number from 0 on.")


class Criterion(ABC):
    """What a campaign calls new: it sees the answers to inputs and says how much of each was not seen before.

    `mergeable` criteria depend neither on order nor on how inputs are shared out over shards. `is_ratio`: `value` is a share of a known whole.
    """

    title: ClassVar[str]
    mergeable: ClassVar[bool] = True
    is_ratio: ClassVar[bool] = True

    def __init__(self, profile: Profile, options: CoverageOptions) -> None:
        self.profile = profile
        self.options = options
        ranges = [profile.low, profile.high, *([profile.std] if options.boundary_deviations else [])]
        self.identity: dict[str, Any] = {
            "criterion": type(self).__name__,
            "model": profile.model_digest,
            "neurons": bytes_digest(canonical_json([asdict(span) for span in profile.layers]) + b"".join(array.tobytes() for array in ranges)),
            "options": asdict(options),
        }

    @abstractmethod
    def observe(self, answers: Answers) -> npt.NDArray[np.intp]:
        """Take in the answers to N inputs; return (N,) how many new things each brought, as if they came one by one. NaN brings nothing."""

    @abstractmethod
    def value(self) -> float:
        """Return the coverage: a ratio in [0, 1], or a count where there is no denominator (TKNP, ANN)."""

    @abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything seen as compact arrays; equal for equal things seen."""

    @abstractmethod
    def absorb(self, arrays: Arrays) -> None:
        """Add what another criterion of the same `identity` has seen, given as its `arrays`; raise `ValueError` or `TypeError` if they are none."""

    def merge(self, other: Criterion) -> None:
        """Take over what another shard's criterion has seen; raise `RobustnessError` if it counted something else or cannot be merged."""
        if not self.mergeable:
            raise RobustnessError(
                f"{self.title} cannot be merged: what is new depends on the order of the inputs, so two shards do not add up to one run. "
                "Run the campaign as one island on one worker, or leave this criterion out."
            )
        if other.identity != self.identity:
            raise RobustnessError(f"Coverage of {self._difference(other.identity)} cannot be merged. Merge only shards of one campaign.")
        self.absorb(other.arrays())

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything seen as compact arrays with what they belong to, from which `restore` makes an equal criterion."""
        return {"identity": np.array(json.dumps(self.identity, sort_keys=True)), **self.arrays()}

    def restore(self, state: Arrays) -> None:
        """Replace what was seen by a `state`; raise `RobustnessError`, and change nothing, if it is none or belongs to something else."""
        try:
            theirs = json.loads(str(state["identity"]))
            if theirs != self.identity:
                raise RobustnessError(f"This state is of {self._difference(theirs)}. Load the state of this very campaign, or start anew.")
            fresh = type(self)(self.profile, self.options)
            fresh.absorb({name: array for name, array in state.items() if name != "identity"})
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RobustnessError(f"This is no state of {self.title} ({error!r}). Expected what `state` returned; start anew.") from error
        vars(self).update(vars(fresh))

    def save(self, path: Path) -> None:
        """Write the state as one .npz file, atomically."""
        write_arrays(path, self.state())

    def load(self, path: Path) -> None:
        """Replace what was seen by a file's, equal to the bit; raise `RobustnessError` if it is missing, half-written or of something else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
        except UNREADABLE as error:
            raise RobustnessError(f"{path} is no saved coverage ({error}). Expected a .npz file that Criterion.save wrote; start anew.") from error
        self.restore(state)

    def _difference(self, theirs: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {theirs.get(name)} instead of {mine}" for name, mine in self.identity.items() if theirs.get(name) != mine)

    def _check(self, answers: Answers) -> tuple[int, int]:
        num, width = answers.neurons.shape
        if width != len(self.profile.low):
            raise RobustnessError(f"The answers hold {width} neurons and the profile {len(self.profile.low)}. Use the profile of this very model.")
        return num, width

    def _chunks(self, answers: Answers) -> Iterator[tuple[slice, Floats]]:
        """Yield the neuron values of a few inputs at a time, so that memory is bounded whatever the batch."""
        num, width = self._check(answers)
        rows = max(MIN_ROWS, CHUNK // width)
        for start in range(0, num, rows):
            yield slice(start, start + rows), answers.neurons[start : start + rows]


class BitmapCriterion(Criterion):
    """A set of cells, each covered or not: monotone, independent of order, mergeable; a layer with NaN or infinity covers nothing.

    In memory a cell is a byte (packed bits take twice as long to look up), in a state a bit.
    """

    def __init__(self, profile: Profile, options: CoverageOptions) -> None:
        super().__init__(profile, options)
        self.layer, self.starts = bounds(profile)
        self.bitmap: Bits = np.zeros(self.num_cells(), dtype=np.bool_)

    @abstractmethod
    def num_cells(self) -> int:
        """Return the number of cells, which is the denominator of the ratio."""

    @abstractmethod
    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        """Return for (N, M) finite activations which entries cover a cell (N, M), and which cell that is, broadcastable to (N, M)."""

    def observe(self, answers: Answers) -> npt.NDArray[np.intp]:
        """Cover the cells of N inputs; return (N,) how many each input covered first, as if they came one by one."""
        gained = np.zeros(len(answers.neurons), dtype=np.intp)
        if not self.bitmap.all():
            for rows, activations in self._chunks(answers):
                gained[rows] = self._cover(activations)
        return gained

    def value(self) -> float:
        """Return covered cells / all cells, in [0, 1]."""
        return int(np.count_nonzero(self.bitmap)) / self.bitmap.size

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"bitmap": np.packbits(self.bitmap)}

    def absorb(self, arrays: Arrays) -> None:
        packed = arrays["bitmap"]
        if packed.shape != (-(-self.bitmap.size // 8),):
            raise ValueError(f"the bitmap has shape {packed.shape} for {self.bitmap.size} cells")
        self.bitmap |= np.unpackbits(packed, count=self.bitmap.size).view(np.bool_)

    def _cover(self, activations: Floats) -> npt.NDArray[np.intp]:
        finite = np.isfinite(activations)
        whole = None if finite.all() else np.logical_and.reduceat(finite, self.starts, axis=1)[:, self.layer]
        mask, cells = self.touched(activations if whole is None else np.where(whole, activations, 0))
        fresh = mask > self.bitmap[cells]
        if whole is not None:
            fresh &= whole
        places = np.flatnonzero(fresh)
        rows = places // fresh.shape[1]
        # Sorted by cell and then by row, every cell begins with the earliest input that covers it; sorting 32 bits takes half the time of 64.
        bits = len(activations).bit_length()
        claims = (np.broadcast_to(cells, fresh.shape).take(places) << bits) | rows
        claims = np.sort(claims.astype(np.int32 if self.bitmap.size << bits < 1 << 31 else np.int64))
        cell = claims >> bits
        first = np.diff(cell, prepend=-1) > 0
        self.bitmap[cell[first]] = True
        return np.bincount(claims[first] & ((1 << bits) - 1), minlength=len(activations))


def bounds(profile: Profile) -> tuple[Ints, Ints]:
    """Return for every neuron the index of its layer (M,), and for every layer its first neuron (L,)."""
    starts = np.array([span.start for span in profile.layers])
    widths = np.array([span.stop - span.start for span in profile.layers])
    return np.repeat(np.arange(len(starts)), widths), starts
