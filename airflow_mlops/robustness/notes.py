"""What a reader of a campaign's figures should know, as sentences: above all where a good figure says less than it seems to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from airflow_mlops.robustness.arm import Arm
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.recipes import Recipe

BLIND = ("bandit", "unguided")  # schedules that coverage does not guide


def notes(lab: Lab, guided: Sequence[Arm], sample: Sequence[Arm], examined: Sequence[Recipe]) -> tuple[str, ...]:
    """Return the notes on a campaign whose distinct defects are `examined`."""
    return (*_of_seeds(lab), *_of_search(lab, guided), *_of_mutants(lab, guided, sample), *_of_defects(guided, sample, examined))


def _of_seeds(lab: Lab) -> Iterator[str]:
    if blind := lab.probe.uncounted:
        yield (
            f"Coverage says nothing of the layers {', '.join(blind)}: recurrent, attention and embedding layers have no neurons here, and it is that "
            f"of the {lab.probe.num_neurons:,} neurons of the other layers alone."
        )
    if lab.own_profile:
        yield "No profile of the training data was given: neuron ranges are those of the campaign's own inputs."
    if lab.num_objected:
        oracles = ", ".join(lab.config.oracles)
        yield f"{lab.num_objected:,} inputs are answered correctly and are no seeds: an oracle ({oracles}) objects to them as they are."
    num_inputs, num_seeds = len(lab.labels), len(lab.seeds)
    if 2 * num_seeds < num_inputs:
        yield f"Only {num_seeds:,} of {num_inputs:,} inputs are seeds: rates are those of the few inputs that the model answers correctly."
    classes, tried = np.unique(lab.labels), np.unique(lab.labels[lab.seeds])
    if len(tried) == 1 < len(classes):
        yield (
            f"All seeds are of class {tried[0]}, and the inputs are of {len(classes)} classes: a model that always gives this answer looks robust, "
            "because no change of an input can move it. Look at its accuracy first."
        )
    elif missing := np.setdiff1d(classes, tried).tolist():
        yield f"No seed is of class {', '.join(map(str, missing))}: the model answers none of their inputs correctly, and nothing is known of them."
    if len(np.unique(lab.outputs, axis=0)) == 1 < num_seeds:
        yield "The model gives exactly the same probabilities for every seed: it does not look at its input."


def _of_search(lab: Lab, guided: Sequence[Arm]) -> Iterator[str]:
    num_mutants, num_new = sum(arm.num_mutants for arm in guided), sum(arm.num_new for arm in guided)
    if num_new > num_mutants / 2 and lab.config.schedule not in BLIND:
        yield (
            f"{num_new / num_mutants:.0%} of the guided mutants counted as new coverage, so coverage hardly chose between them. "
            "Use fewer kmnc_sections."
        )
    if dropped := sum(arm.num_dropped for arm in guided):
        yield f"The corpus was full at {lab.config.max_corpus:,} entries; {dropped:,} mutants that should have been parents were not kept."


def _of_mutants(lab: Lab, guided: Sequence[Arm], sample: Sequence[Arm]) -> Iterator[str]:
    arms = (*guided, *sample)
    tried, valid = sum(arm.num_candidates for arm in arms), sum(arm.num_mutants for arm in arms)
    yield (
        f"{tried - valid:,} of {tried:,} candidates are not counted as mutants: they changed nothing, more than this kind of input allows, or had "
        "spent their limits."
    )
    drawn, counted = sum(arm.num_mutants for arm in sample), sum(int(arm.tallies[0].sum()) for arm in sample)
    if counted < drawn:
        yield (
            f"{drawn - counted:,} of {drawn:,} mutants of the random sample were drawn before, to the bit, and are left out of the rates: an input "
            "that was seen twice is no second observation."
        )
    made = np.sum([arm.tallies[0] for arm in arms], axis=(0, 2))
    if idle := [name for name, num in zip(lab.config.mutator_names, made, strict=True) if num == 0]:
        yield f"Nothing is known of {', '.join(idle)}: no candidate was a valid mutant, because these inputs hold nothing to change by it."


def _of_defects(guided: Sequence[Arm], sample: Sequence[Arm], examined: Sequence[Recipe]) -> Iterator[str]:
    if lost := [recipe for recipe in examined if recipe.minimal is None]:
        names = ", ".join(sorted({step.mutator for recipe in lost for step in recipe.chain}))
        yield f"{len(lost):,} distinct defects were none when replayed: one of {names} depends on more than the row's own severity and key."
    if num_broken := sum(int(np.count_nonzero(arm.defects()["prediction"] == -1)) for arm in (*guided, *sample)):
        yield f"{num_broken:,} mutants were answered with NaN or infinity; they count as defects."
