"""A defect is a line of text: the seed it came from, the steps that lead to it, what became of it. Replaying gives the same mutant, to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from airflow_mlops.artifacts import bytes_digest, canonical_json, write_atomically
from airflow_mlops.exceptions import RobustnessError, SpecError, unknown_name
from airflow_mlops.robustness.kinds import KINDS, InputKind

SCHEMA_VERSION = 3
CHAINS = ("chain", "minimal")  # the fields of a recipe that are steps


# With slots: a campaign has tens of thousands.
@dataclass(frozen=True, slots=True)
class Step:
    """One mutation: `severity` in [0, 1] of the mutator's range, `key` the 32-bit random key."""

    mutator: str
    severity: float
    key: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """A defect: input number `seed` of class `label`, changed by `chain`, is answered with `prediction` (-1: NaN) at `confidence` (0 to 1).

    `expected` is the answer that is right after the chain (``~label``: any answer but the label); `oracle` is which one spoke; `l0` places of the
    input changed, none by more than `linf` of the legal span (Eq. 2). `minimal` is the smallest chain that was found to fail in the same way,
    `cluster` the number of the group of defects it belongs to; both are None for defects that were not examined. `minimal` is None as well for one
    that was no defect when replayed.
    """

    seed: int
    chain: tuple[Step, ...]
    label: int
    expected: int
    prediction: int
    confidence: float
    l0: int
    linf: float
    oracle: str
    cluster: int | None = None
    minimal: tuple[Step, ...] | None = None

    @property
    def id(self) -> str:
        """12 hex digits that name this mutant of this seed, in whatever campaign it is found again."""
        steps = "".join(f" {step.mutator} {step.severity!r} {step.key}" for step in self.chain)
        return hashlib.sha256(f"{self.seed}{steps}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RecipeBook:
    """Recipes together with what they hold for: the digests of the model and of the inputs that `seed` counts in, the kind, the mutators."""

    model_digest: str
    inputs_digest: str
    kind: InputKind
    mutators: tuple[str, ...]
    recipes: tuple[Recipe, ...]

    def save(self, path: Path) -> None:
        """Write JSON lines atomically: a header, then one recipe per line."""
        header = {"schema_version": SCHEMA_VERSION, "model_digest": self.model_digest, "inputs_digest": self.inputs_digest}
        header |= {"kind": kind_data(self.kind), "mutators": self.mutators, "num_recipes": len(self.recipes)}
        line = json.JSONEncoder(separators=(",", ":")).encode
        write_atomically(path, "".join(f"{line(item)}\n" for item in (header, *map(_data, self.recipes))).encode())

    @classmethod
    def load(cls, path: Path) -> RecipeBook:
        """Read a recipes file; raise `RobustnessError` if it is missing, half-written or of another schema."""
        try:
            header, *lines = (json.loads(line) for line in Path(path).read_text().splitlines())
            if header.pop("schema_version") != SCHEMA_VERSION:
                raise RobustnessError(f"{path} has another schema version than {SCHEMA_VERSION}. Read it with the version that wrote it.")
            if (num := header.pop("num_recipes")) != len(lines):
                raise ValueError(f"it has {len(lines)} recipes, expected {num}")
            kind = kind_of(header.pop("kind"))
            return cls(**{**header, "mutators": tuple(header["mutators"])}, kind=kind, recipes=tuple(map(_recipe, lines)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RobustnessError(
                f"{path} is no whole recipes file ({error!r}). Run the campaign again with the same seed to write it anew."
            ) from error

    def replay(self, inputs: npt.NDArray[Any], *, minimal: bool = False, batch_size: int = 1_024) -> npt.NDArray[Any]:
        """Return the defects' inputs (D, ...), or those of their smallest form; raise `RobustnessError` if `inputs` are not the campaign's."""
        inputs = self.kind.checked(inputs)
        if (found := inputs_digest(inputs)) != self.inputs_digest:
            raise RobustnessError(f"These recipes were written for inputs {self.inputs_digest} and got {found}. Pass the campaign's inputs.")
        chains = [recipe.minimal if minimal and recipe.minimal is not None else recipe.chain for recipe in self.recipes]
        seeds = np.array([recipe.seed for recipe in self.recipes], dtype=np.intp)
        return replay(chains, inputs[seeds], kind=self.kind, mutators=self.mutators, batch_size=batch_size)


def replay(
    chains: Sequence[Sequence[Step]], seeds: npt.NDArray[Any], *, kind: InputKind, mutators: Sequence[str], batch_size: int = 1_024
) -> npt.NDArray[Any]:
    """Return D mutants: row i is ``seeds[i]`` changed by ``chains[i]``. `batch_size` bounds memory and changes no bit.

    `mutators` are those of the campaign. Raises `RobustnessError` for a step of an unknown one.
    """
    inputs = seeds.copy()
    for start in range(0, len(chains), batch_size):
        part = slice(start, start + batch_size)
        inputs[part] = _replay_batch(chains[part], inputs[part], kind, mutators)
    return inputs


def inputs_digest(inputs: npt.NDArray[Any]) -> str:
    """Return ``sha256:<hex>`` of the inputs as the campaign sees them: shape and values."""
    data = canonical_json(inputs.tolist()) if inputs.dtype.kind in "OUS" else np.ascontiguousarray(inputs, dtype=np.float32).tobytes()
    return bytes_digest(f"{inputs.shape}".encode() + data)


def kind_data(kind: InputKind) -> dict[str, Any]:
    """Return a kind and its options as JSON data."""
    return {"name": kind.name, **asdict(kind)}


def kind_of(data: Mapping[str, Any]) -> InputKind:
    """Return the kind that `kind_data` described; raise `SpecError` for an unknown one, and for unknown or impossible options."""
    name = data.get("name") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        raise SpecError(f"The kind of inputs is {data!r}; expected an object with a name, such as {{'name': 'images', 'value_range': [0, 1]}}.")
    if name not in KINDS:
        raise unknown_name("kind of inputs", name, KINDS)
    options = {key: value for key, value in data.items() if key != "name"}
    known = {field.name for field in fields(KINDS[name])}
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name}", str(option), known)
    try:
        return TypeAdapter(KINDS[name]).validate_python(options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise SpecError(f"These are no options of inputs of kind {name!r}: {wrong}. Use those that its class documents.") from error


def _replay_batch(chains: Sequence[Sequence[Step]], inputs: npt.NDArray[Any], kind: InputKind, mutators: Sequence[str]) -> npt.NDArray[Any]:
    position = {name: number for number, name in enumerate(mutators)}
    for depth in range(max(map(len, chains))):
        rows = [row for row, chain in enumerate(chains) if len(chain) > depth]
        steps = [chains[row][depth] for row in rows]
        for step in steps:
            if step.mutator not in position:
                raise unknown_name("mutator", step.mutator, mutators)
        severity = np.array([step.severity for step in steps], dtype=np.float32)
        key = np.array([step.key for step in steps], dtype=np.uint32)
        inputs[rows] = kind.mutate(inputs[rows], np.array([position[step.mutator] for step in steps]), severity, key, names=mutators)
    return inputs


def _data(recipe: Recipe) -> dict[str, Any]:
    # Not `asdict`, which copies every step deeply.
    data = {name: value for name in Recipe.__slots__ if (value := getattr(recipe, name)) is not None}
    return {**data, **{name: [(step.mutator, step.severity, step.key) for step in data[name]] for name in CHAINS if name in data}}


def _recipe(data: Mapping[str, Any]) -> Recipe:
    chains = {name: tuple(Step(*step) for step in data[name]) for name in CHAINS if name in data}
    return Recipe(**{**data, **chains})
