"""A defect is about a hundred bytes: the seed it came from and the steps that lead to it. Replaying them gives the same picture, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airflow_mlops.artifacts import bytes_digest, write_atomically
from airflow_mlops.exceptions import RobustnessError, unknown_name
from airflow_mlops.robustness.mutators import NAMES, mutate
from airflow_mlops.robustness.mutators.base import Floats, ValueRange

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Step:
    """One mutation: `severity` is in the mutator's unit, `key` is the 32-bit random key."""

    mutator: str
    severity: float
    key: int


@dataclass(frozen=True)
class Recipe:
    """A defect: input number `seed` of class `label`, changed by `chain`, is answered with `prediction` (-1: NaN) at `confidence` (0 to 1)."""

    seed: int
    chain: tuple[Step, ...]
    label: int
    prediction: int
    confidence: float


@dataclass(frozen=True)
class RecipeBook:
    """Recipes together with what they hold for: the digests of the model and of the inputs that `seed` counts in, and the value range."""

    model_digest: str
    inputs_digest: str
    value_range: ValueRange
    recipes: tuple[Recipe, ...]

    def save(self, path: Path) -> None:
        """Write JSON lines atomically: a header, then one recipe per line."""
        header = {"schema_version": SCHEMA_VERSION, **{key: value for key, value in vars(self).items() if key != "recipes"}}
        lines = [json.dumps(item, separators=(",", ":")) for item in (header, *map(asdict, self.recipes))]
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())

    @classmethod
    def load(cls, path: Path) -> RecipeBook:
        """Read a recipes file; raise `RobustnessError` if it is missing, half-written or of another schema."""
        try:
            header, *lines = (json.loads(line) for line in path.read_text().splitlines())
            if header.pop("schema_version") != SCHEMA_VERSION:
                raise RobustnessError(f"{path} has another schema version than {SCHEMA_VERSION}. Read it with the version that wrote it.")
            header["value_range"] = tuple(header["value_range"])
            return cls(**header, recipes=tuple(map(_recipe, lines)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RobustnessError(
                f"{path} is no whole recipes file ({error!r}). Run the campaign again with the same seed to write it anew."
            ) from error

    def replay(self, inputs: Floats, *, batch_size: int = 1_024) -> Floats:
        """Return the defects' pictures (D, H, W, C); raise `RobustnessError` if `inputs` are not those of the campaign."""
        if (found := inputs_digest(inputs)) != self.inputs_digest:
            raise RobustnessError(f"These recipes were written for inputs {self.inputs_digest} and got {found}. Pass the campaign's inputs.")
        return replay(self.recipes, inputs, value_range=self.value_range, batch_size=batch_size)


def replay(recipes: Recipe | Sequence[Recipe], inputs: Floats, *, value_range: ValueRange = (0.0, 1.0), batch_size: int = 1_024) -> Floats:
    """Return the pictures (D, H, W, C) float32 of D recipes; `batch_size` bounds memory and changes no bit."""
    recipes = (recipes,) if isinstance(recipes, Recipe) else recipes
    if outside := [recipe.seed for recipe in recipes if not 0 <= recipe.seed < len(inputs)]:
        raise RobustnessError(f"A recipe starts from input {outside[0]}, and there are {len(inputs)} inputs. Pass the campaign's inputs.")
    images = inputs[[recipe.seed for recipe in recipes]].astype(np.float32)
    for start in range(0, len(recipes), batch_size):
        part = slice(start, start + batch_size)
        images[part] = _replay_batch(recipes[part], images[part], value_range)
    return images


def inputs_digest(inputs: Floats) -> str:
    """Return ``sha256:<hex>`` of the inputs as the campaign sees them: shape and float32 values."""
    return bytes_digest(f"{inputs.shape}".encode() + np.ascontiguousarray(inputs, dtype=np.float32).tobytes())


def _replay_batch(recipes: Sequence[Recipe], images: Floats, value_range: ValueRange) -> Floats:
    for depth in range(max(len(recipe.chain) for recipe in recipes)):
        rows = [row for row, recipe in enumerate(recipes) if len(recipe.chain) > depth]
        steps = [recipes[row].chain[depth] for row in rows]
        mutator = np.array([_position(step.mutator) for step in steps])
        severity = np.array([step.severity for step in steps], dtype=np.float32)
        key = np.array([step.key for step in steps], dtype=np.uint32)
        images[rows] = mutate(images[rows], mutator, severity, key, value_range=value_range)
    return images


def _position(name: str) -> int:
    if name not in NAMES:
        raise unknown_name("mutator", name, NAMES)
    return NAMES.index(name)


def _recipe(data: Mapping[str, Any]) -> Recipe:
    return Recipe(**{**data, "chain": tuple(Step(**step) for step in data["chain"])})
