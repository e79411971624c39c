"""The campaign as one self-contained HTML file: figures, rates with their intervals, and pictures of what the model got wrong."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2
import numpy as np
import tensorflow as tf

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.robustness.mutators import MUTATORS
from airflow_mlops.robustness.mutators.base import Floats, ValueRange
from airflow_mlops.robustness.recipes import Recipe, Step, replay

if TYPE_CHECKING:
    from airflow_mlops.robustness.campaign import CampaignReport
    from airflow_mlops.robustness.config import CampaignConfig

MAX_PICTURES = 24
CRITERION_TITLES = {"nc": "Neuron coverage", "kmnc": "k-multisection neuron coverage"}


@dataclass(frozen=True)
class Pair:
    """A defect to look at: data URIs of the seed and of the mutant, and what happened between them."""

    original: str
    mutant: str
    steps: tuple[str, ...]
    recipe: Recipe

    @property
    def answer(self) -> str:
        return "NaN" if self.recipe.prediction < 0 else str(self.recipe.prediction)


def write(result: CampaignReport, inputs: Floats, config: CampaignConfig) -> None:
    """Write ``result.report``; `inputs` (N, H, W, C) are those of the campaign."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("airflow_mlops.robustness"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    recipes = pick(result.defects, MAX_PICTURES)
    rates = sorted(result.defect_rates.items(), key=lambda item: (-item[1].rate, item[0]))
    page = environment.get_template("report.html").render(
        result=result,
        config=config,
        mutators=MUTATORS,
        rates=rates,
        # Bars share one scale that ends just above the longest interval.
        scale=min(1.0, max([rate.high for _, rate in rates if rate.num_mutants] + [0.01]) * 1.05),
        coverage={CRITERION_TITLES.get(name, name): ratio for name, ratio in result.coverage.items()},
        pairs=_pairs(recipes, inputs, config.value_range),
    )
    write_atomically(result.report, page.encode())


def pick(defects: tuple[Recipe, ...], num: int) -> list[Recipe]:
    """Return up to `num` defects worth a look: one per (seed, wrong answer), in turn from every operator, shortest chain and surest answer first."""
    ranked = sorted(defects, key=lambda recipe: (len(recipe.chain), -recipe.confidence, recipe.seed))
    queues: dict[str, list[Recipe]] = {}
    seen: set[tuple[int, int]] = set()
    for recipe in ranked:
        if (recipe.seed, recipe.prediction) not in seen:
            seen.add((recipe.seed, recipe.prediction))
            queues.setdefault(recipe.chain[-1].mutator, []).append(recipe)
    rounds = range(max(map(len, queues.values()), default=0))
    return [queue[turn] for turn in rounds for _, queue in sorted(queues.items()) if turn < len(queue)][:num]


def _pairs(recipes: list[Recipe], inputs: Floats, value_range: ValueRange) -> list[Pair]:
    mutants = replay(recipes, inputs, value_range=value_range)
    return [
        Pair(_png(inputs[recipe.seed], value_range), _png(mutant, value_range), tuple(map(_describe, recipe.chain)), recipe)
        for recipe, mutant in zip(recipes, mutants, strict=True)
    ]


def _describe(step: Step) -> str:
    """For example ``rotation -7.9 degrees``."""
    return f"{step.mutator.replace('_', ' ')} {step.severity:.2g} {MUTATORS[step.mutator].unit}"


def _png(image: Floats, value_range: ValueRange) -> str:
    """Return (H, W, C) as a PNG data URI, `value_range` as black to white; other than 3 channels are averaged to grey."""
    low, high = value_range
    shown = image if image.shape[-1] == 3 else image.mean(axis=-1, keepdims=True)
    pixels = np.rint((shown - low) / (high - low) * 255.0).clip(0, 255).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
