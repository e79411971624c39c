"""What a model has learned from, and how a dataset's columns became its inputs: written down by its training, read by every later step.

A row's side follows from its own values alone. Whoever knows the fraction and the names of the columns can say of any row of any version whether
a model has learned from it, years later too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated

from pydantic import ConfigDict, Field, with_config

from airflow_mlops.artifacts import bytes_digest, canonical_json

SPLIT_TAG = "split_digest"  # of a registered version: the digest of its `SplitDefinition`
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class SplitDefinition:
    """Split and layout of one training.

    * `columns`: of the inputs, in the order in which they fill `input_shape`; values are multiplied by `scale`.
    * `label_column`: holds integers in ``0 .. num_classes - 1``.
    * `held_out_fraction`: the share of rows that this training held out.
    * `unseen_fraction`: the smallest share that it, or any training whose weights it started from, held out: only these rows were never learned
      from, because a larger fraction holds out every row that a smaller one does.
    * `unknown`: why it is not known what else it has learned from; None where it is.
    """

    columns: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_classes: int
    label_column: str
    scale: float
    held_out_fraction: Fraction
    unseen_fraction: Fraction
    unknown: str | None = None

    @property
    def digest(self) -> str:
        """``sha256:<64 hex digits>`` of the canonical JSON, by which a registered version is bound to it."""
        return bytes_digest(canonical_json(asdict(self)))

    def after(self, start: SplitDefinition | None, name: str) -> SplitDefinition:
        """Return this definition for a training that started from the weights of model `name` with the definition `start`, None if unknown."""
        if start is None:
            return replace(self, unknown=f"it started from {name}, which has no record of the rows it learned from")
        return replace(self, unseen_fraction=min(self.unseen_fraction, start.unseen_fraction), unknown=start.unknown)

    def differences(self, other: SplitDefinition) -> list[str]:
        """Return how the inputs of `other` differ from these, in words; empty where one model can take the other's."""
        found = [f"{name} {getattr(self, name)!r} and {getattr(other, name)!r}" for name in _LAYOUT if getattr(self, name) != getattr(other, name)]
        for here, there, which in ((self, other, "the first"), (other, self, "the second")):
            if only := [column for column in here.columns if column not in set(there.columns)]:
                found.append(f"columns that {which} alone takes: {listed(only)}")
        return found


_LAYOUT = ("input_shape", "label_column", "scale")
_SHOWN = 10


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Return names for a sentence: quoted, because a blank may be the whole difference, and not more than a person reads."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class JudgedRows:
    """How many rows of a version may judge a model: `num_held_out` that the challenger never learned from, `champion_num_held_out` the champion.

    The second is None without a champion and where its record does not say it. `unknown` says of which model it is not known what it has learned
    from, as sentences.
    """

    num_held_out: int
    champion_num_held_out: int | None = None
    unknown: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """``recorded``, or ``unknown`` where rows may be among the judged ones that a model has learned from."""
        return "unknown" if self.unknown else "recorded"

    def sentence(self) -> str:
        """Return what a reader of the figures must know of the rows behind them, or nothing."""
        return f"split: unknown, {'; '.join(self.unknown)}" if self.unknown else ""
