"""A robustness campaign: a coverage-guided arm that looks for defects, and a random sample that alone says how frequent they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.results import DefectRate
from airflow_mlops.robustness import report
from airflow_mlops.robustness.config import CampaignConfig
from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.coverage import CRITERIA, BitmapCriterion
from airflow_mlops.robustness.loop import Arm, ArmPlan, explore
from airflow_mlops.robustness.models import Answers, Probe
from airflow_mlops.robustness.mutators import NAMES
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.recipes import Recipe, RecipeBook, inputs_digest, replay
from airflow_mlops.robustness.statistics import defect_rate

__all__ = ["CampaignConfig", "CampaignReport", "Control", "Recipe", "replay", "run_campaign"]

GUIDED, SAMPLE = 0, 1


@dataclass(frozen=True)
class Control:
    """Guided against unguided: distinct defects in the first `num_mutants` mutants of each arm."""

    num_mutants: int
    guided: int
    unguided: int


@dataclass(frozen=True)
class CampaignReport:
    """What a campaign found.

    `num_mutants`, the defects and `coverage` (ratios by criterion) are of the guided arm; `defect_rates` (by operator) and `sample` (over all) are of
    the random sample and alone may be gated on. `notes` are sentences that a reader of the figures should know.
    """

    model_digest: str
    num_seeds: int
    num_mutants: int
    num_defects: int
    num_distinct_defects: int
    coverage: Mapping[str, float]
    defect_rates: Mapping[str, DefectRate]
    sample: DefectRate
    control: Control
    defects: tuple[Recipe, ...]
    notes: tuple[str, ...]
    recipes: Path
    report: Path

    @property
    def sample_rate(self) -> float:
        return self.sample.rate


def run_campaign(
    model: keras.Model, inputs: Floats, labels: Ints, *, config: CampaignConfig, out_dir: Path, profile: Profile | None = None
) -> CampaignReport:
    """Fuzz a classifier and write ``recipes.jsonl`` and ``report.html`` into `out_dir`.

    `inputs` (N, H, W, C) within `config.value_range`, `labels` (N,) class numbers; those answered correctly are the seeds. `profile` is that of
    the training data; without it the ranges of `inputs` are used. Raises `RobustnessError` for unusable inputs, model or profile.
    """
    inputs, labels = _checked(inputs, labels, config)
    probe = Probe(model)
    probe.check(inputs)
    answers = list(probe.answer_all(inputs, config.batch_size))
    seeds = _seeds(answers, labels)
    used = profile or Profile.of(probe, inputs, batch_size=config.batch_size)
    used.check(probe)
    criteria = _criteria(used, np.concatenate([part.neurons for part in answers])[seeds], config)
    corpus = Corpus(inputs[seeds], seeds, labels[seeds])
    guided, sample = _arms(probe, corpus, list(criteria.values()), config)
    book = RecipeBook(probe.digest, inputs_digest(inputs), config.value_range, guided.recipes)
    result = CampaignReport(
        model_digest=probe.digest,
        num_seeds=len(seeds),
        num_mutants=len(guided.seed),
        num_defects=len(guided.recipes),
        num_distinct_defects=guided.num_distinct(),
        coverage={name: criterion.ratio() for name, criterion in criteria.items()},
        defect_rates=_rates(sample, config),
        sample=defect_rate(int(sample.defect.sum()), len(sample.defect)),
        control=_control(guided, sample),
        defects=guided.recipes,
        notes=tuple(_notes(guided, sample, corpus, config, own_profile=profile is None)),
        recipes=out_dir / "recipes.jsonl",
        report=out_dir / "report.html",
    )
    book.save(result.recipes)
    report.write(result, inputs, config)
    return result


def _checked(inputs: Floats, labels: Ints, config: CampaignConfig) -> tuple[Floats, Ints]:
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if inputs.ndim != 4 or inputs.shape[0] == 0 or not np.issubdtype(inputs.dtype, np.floating):
        raise RobustnessError(
            f"The inputs are {inputs.dtype} of shape {inputs.shape}; expected floating-point images of shape (N, height, width, channels), N >= 1. "
            "Convert and reshape them, for example images.astype('float32')[..., None]."
        )
    if labels.shape != inputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise RobustnessError(
            f"The labels are {labels.dtype} of shape {labels.shape}; expected one class number for each of the {len(inputs)} inputs. "
            "Turn one-hot rows into numbers with labels.argmax(axis=1)."
        )
    low, high = config.value_range
    # Written so that NaN fails too.
    if not bool(((inputs >= low) & (inputs <= high)).all()):
        raise RobustnessError(
            f"The inputs hold NaN or values outside value_range {config.value_range}: they span {inputs.min()} to {inputs.max()}. "
            "Scale them, or set value_range to what the model expects."
        )
    return inputs.astype(np.float32), labels.astype(np.int64)


def _seeds(answers: list[Answers], labels: Ints) -> Ints:
    """Return the rows that the model answers correctly."""
    prediction = np.concatenate([part.prediction for part in answers])
    if num_broken := np.count_nonzero(prediction == -1):
        raise RobustnessError(
            f"The model answers {num_broken} of {len(labels)} unchanged inputs with NaN or infinity. Train it again; a campaign would say nothing."
        )
    seeds = np.flatnonzero(prediction == labels)
    if len(seeds) == 0:
        raise RobustnessError(
            f"The model answers none of the {len(labels)} inputs correctly, and only such inputs can be seeds. "
            "Check that the labels belong to these inputs and that the inputs are preprocessed as in training."
        )
    return seeds


def _criteria(profile: Profile, activations: Floats, config: CampaignConfig) -> dict[str, BitmapCriterion]:
    """Return the chosen criteria, which already know the seeds' `activations` (N, M)."""
    criteria = {name: CRITERIA[name](profile, config.coverage_options) for name in config.criteria}
    for criterion in criteria.values():
        criterion.observe(activations)
    return criteria


def _arms(probe: Probe, corpus: Corpus, criteria: list[BitmapCriterion], config: CampaignConfig) -> tuple[Arm, Arm]:
    """Return the guided arm, which grows `corpus`, and the random sample, which starts from the same seeds and keeps nothing."""
    seeds_only = Corpus(corpus.images, corpus["seed"], corpus["label"])
    guided_plan = ArmPlan(config.schedule, config.max_mutants, config.mutants_per_parent, GUIDED)
    guided = explore(probe, corpus, criteria, config=config, plan=guided_plan)
    # One mutant per parent: twenty of one seed would not be independent, and the exact interval would be too narrow.
    sample_plan = ArmPlan("unguided", config.sample_mutants, 1, SAMPLE)
    return guided, explore(probe, seeds_only, [], config=config, plan=sample_plan)


def _rates(sample: Arm, config: CampaignConfig) -> dict[str, DefectRate]:
    num_mutants = np.bincount(sample.mutator, minlength=len(NAMES))
    num_defects = np.bincount(sample.mutator[sample.defect], minlength=len(NAMES))
    positions = {name: NAMES.index(name) for name in config.mutator_names}
    return {name: defect_rate(int(num_defects[at]), int(num_mutants[at])) for name, at in positions.items()}


def _control(guided: Arm, sample: Arm) -> Control:
    budget = min(len(guided.seed), len(sample.seed))
    return Control(budget, guided.num_distinct(budget), sample.num_distinct(budget))


def _notes(guided: Arm, sample: Arm, corpus: Corpus, config: CampaignConfig, *, own_profile: bool) -> list[str]:
    """Return what a reader of the figures should know, as sentences."""
    notes = []
    if own_profile:
        notes.append("No profile of the training data was given: neuron ranges are those of the campaign's own inputs.")
    if guided.num_new > len(guided.seed) / 2:
        share = guided.num_new / len(guided.seed)
        notes.append(f"{share:.0%} of the guided mutants counted as new coverage, so coverage hardly chose between them. Use fewer kmnc_sections.")
    if len(corpus) >= config.max_corpus:
        notes.append(f"The corpus was full at {len(corpus):,} entries; later mutants with new coverage were not kept.")
    tried, valid = guided.num_candidates + sample.num_candidates, len(guided.seed) + len(sample.seed)
    notes.append(f"{tried - valid:,} of {tried:,} candidates changed too much (Eq. 1) and are not counted as mutants.")
    num_broken = np.count_nonzero(guided.prediction == -1) + np.count_nonzero(sample.prediction == -1)
    if num_broken:
        notes.append(f"{num_broken:,} mutants were answered with NaN or infinity; they count as defects.")
    return notes
