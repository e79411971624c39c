"""The fuzzing loop: propose, mutate, check, ask the model, keep what is new. Every step works on a whole batch; nothing loops over mutants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.config import CampaignConfig
from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.coverage import BitmapCriterion
from airflow_mlops.robustness.draw import AFFINE, Proposals, generator, propose
from airflow_mlops.robustness.models import Probe
from airflow_mlops.robustness.mutators import NAMES, mutate
from airflow_mlops.robustness.mutators.base import Floats, Ints, ValueRange
from airflow_mlops.robustness.recipes import Recipe, Step
from airflow_mlops.robustness.schedules import SCHEDULES

MAX_TRIES = 50


@dataclass(frozen=True)
class ArmPlan:
    """One arm of a campaign: `stream` keeps its random numbers apart from the other arms'."""

    schedule: str
    budget: int
    mutants_per_parent: int
    stream: int


@dataclass(frozen=True)
class Arm:
    """What an arm found: (N,) columns over its valid mutants in order, recipes of its defects, candidates tried, mutants new to a criterion."""

    seed: Ints
    mutator: Ints
    prediction: Ints
    defect: Ints
    recipes: tuple[Recipe, ...]
    num_candidates: int
    num_new: int

    def num_distinct(self, first: int | None = None) -> int:
        """Return the number of different (seed, wrong answer) pairs among the `first` mutants, or among all."""
        pairs = np.stack([self.seed, self.prediction], axis=1)[:first]
        return len(np.unique(pairs[self.defect[:first]], axis=0))


@dataclass(frozen=True)
class _Candidates:
    """Mutants (N, H, W, C) with what Eq. 2 has accumulated for each (N,): in total, and up to their reference."""

    images: Floats
    l0: Ints
    linf: Floats
    l0_reference: Ints
    linf_reference: Floats


def explore(probe: Probe, corpus: Corpus, criteria: Sequence[BitmapCriterion], *, config: CampaignConfig, plan: ArmPlan) -> Arm:
    """Make `plan.budget` valid mutants, growing `corpus` and `criteria`; raise `RobustnessError` if Eq. 1 admits hardly any."""
    rows: list[tuple[Ints, Ints, Ints, Ints]] = []
    recipes: list[Recipe] = []
    num_mutants = num_candidates = num_new = step = 0
    while num_mutants < plan.budget:
        if num_candidates >= MAX_TRIES * plan.budget:
            raise _exhausted(num_mutants, num_candidates, config)
        num = min(config.batch_size, plan.budget - num_mutants)
        random = generator(config.seed, plan.stream, step)
        schedule = SCHEDULES[plan.schedule]
        proposals = propose(corpus, num, names=config.mutator_names, schedule=schedule, mutants_per_parent=plan.mutants_per_parent, random=random)
        proposals, mutants = _valid(proposals, corpus, config.value_range)
        step, num_candidates, num_mutants = step + 1, num_candidates + num, num_mutants + len(mutants.images)
        if len(mutants.images) == 0:
            continue
        answers = probe.answer(mutants.images)
        seed, label = corpus["seed"][proposals.parent], corpus["label"][proposals.parent]
        defect = answers.prediction != label
        rows.append((seed, proposals.mutator, answers.prediction, defect))
        recipes += [
            _recipe(corpus, proposals, row, int(answers.prediction[row]), float(answers.confidence[row])) for row in map(int, np.flatnonzero(defect))
        ]
        # Every criterion sees every mutant: coverage says what was run, whether the answer was right or wrong.
        new = sum((criterion.observe(answers.neurons) for criterion in criteria), start=np.zeros(len(label), dtype=np.intp)) > 0
        num_new += int(np.count_nonzero(new))
        _keep(corpus, proposals, mutants, np.flatnonzero(new & ~defect), config)
    seed, mutator, prediction, defect = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Arm(seed, mutator, prediction, defect, tuple(recipes), num_candidates, num_new)


def _valid(proposals: Proposals, corpus: Corpus, value_range: ValueRange) -> tuple[Proposals, _Candidates]:
    """Mutate the parents and drop what breaks Eq. 1; an affine mutant becomes its own reference, and Eq. 2 carries on what was spent before."""
    parent, affine = proposals.parent, proposals.affine
    images = mutate(corpus.images[parent], proposals.mutator, proposals.severity, proposals.key, value_range=value_range)
    reference = corpus.images[corpus["reference"][parent]]
    reference[affine] = images[affine]
    l0_reference = np.where(affine, corpus["l0"][parent], corpus["l0_reference"][parent])
    linf_reference = np.where(affine, corpus["linf"][parent], corpus["linf_reference"][parent])
    l0, linf = constraints.accumulated(*constraints.distances(reference, images), l0_reference, linf_reference)
    valid = constraints.satisfied(l0, linf, size=images[0].size, span=value_range[1] - value_range[0])
    kept = Proposals(parent[valid], proposals.mutator[valid], proposals.severity[valid], proposals.key[valid])
    return kept, _Candidates(images[valid], l0[valid], linf[valid], l0_reference[valid], linf_reference[valid])


def _keep(corpus: Corpus, proposals: Proposals, mutants: _Candidates, rows: Ints, config: CampaignConfig) -> None:
    """Add mutants to the corpus as long as it has room; without pixel mutators, nothing can follow an affine step."""
    if AFFINE[[NAMES.index(name) for name in config.mutator_names]].all():
        rows = rows[:0]
    rows = rows[: max(0, config.max_corpus - len(corpus))]
    parent, affine = proposals.parent[rows], proposals.affine[rows]
    own_entry = len(corpus) + np.arange(len(rows))
    inherited = {name: corpus[name][parent] for name in ("seed", "label")}
    made = {name: getattr(proposals, name)[rows] for name in ("parent", "mutator", "severity", "key")}
    spent = {name: getattr(mutants, name)[rows] for name in ("l0", "linf", "l0_reference", "linf_reference")}
    chain = {
        "reference": np.where(affine, own_entry, corpus["reference"][parent]),
        "depth": corpus["depth"][parent] + 1,
        "affine": corpus["affine"][parent] | affine,
        "times_fuzzed": 0,
    }
    corpus.append(mutants.images[rows], {**inherited, **made, **spent, **chain})


def _recipe(corpus: Corpus, proposals: Proposals, row: int, prediction: int, confidence: float) -> Recipe:
    parent = int(proposals.parent[row])
    last = Step(NAMES[proposals.mutator[row]], float(proposals.severity[row]), int(proposals.key[row]))
    return Recipe(int(corpus["seed"][parent]), (*corpus.chain(parent), last), int(corpus["label"][parent]), prediction, confidence)


def _exhausted(num_mutants: int, num_candidates: int, config: CampaignConfig) -> RobustnessError:
    return RobustnessError(
        f"Only {num_mutants} of {num_candidates} candidates satisfied the constraint (Eq. 1); expected at least one in {MAX_TRIES}. "
        f"Use gentler mutators than {', '.join(config.mutator_names)}, or check that value_range {config.value_range} is that of the inputs."
    )
