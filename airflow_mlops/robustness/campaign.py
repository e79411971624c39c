"""A robustness campaign: a guided arm that looks for defects, and an unguided one that alone says how frequent they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from airflow_mlops.artifacts import clear_abandoned
from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.results import DefectRate
from airflow_mlops.robustness import report
from airflow_mlops.robustness.arm import Arm
from airflow_mlops.robustness.clusters import Cluster, clustered
from airflow_mlops.robustness.config import CampaignConfig
from airflow_mlops.robustness.coverage.base import Criterion
from airflow_mlops.robustness.findings import Curve, curve_of, distinct_within, recipes_of
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.minimize import minimized
from airflow_mlops.robustness.mutators.base import Ints
from airflow_mlops.robustness.notes import notes
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.recipes import Recipe, RecipeBook, inputs_digest, replay
from airflow_mlops.robustness.shards import GUIDED, SAMPLE, SHARD_FILE, Islands, arm_of, read_islands, run_shard
from airflow_mlops.robustness.statistics import defect_rate
from airflow_mlops.robustness.stored import part_of

__all__ = ["CampaignConfig", "CampaignReport", "Control", "Lab", "Recipe", "RecipeBook", "finish", "replay", "run_campaign", "run_shard"]


@dataclass(frozen=True)
class Control:
    """Guided against unguided: distinct defects in the first `num_mutants` mutants of each arm, on every island the same number.

    The curves are of all mutants of each arm, and either may have more.
    """

    num_mutants: int
    guided: int
    unguided: int
    guided_curve: Curve
    unguided_curve: Curve


@dataclass(frozen=True)
class CampaignReport:
    """What a campaign found.

    `num_seeds` of `num_inputs` are answered correctly. `num_mutants`, the defects and `coverage` (by criterion) are of the guided arm;
    `defect_rates` (by operator) and `sample` (over all) are of the random sample, in which a mutant that was drawn twice counts once, and alone may
    be gated on. `defects` are the distinct ones, minimised and clustered; `defect_ids` name all, in order.
    `ledger_hash` is a digest of everything that both arms found, equal for every number of shards, every batch size and after every
    interruption. `notes` are sentences that a reader of the figures should know.
    """

    model_digest: str
    ledger_hash: str
    num_inputs: int
    num_seeds: int
    num_mutants: int
    num_defects: int
    num_distinct_defects: int
    coverage: Mapping[str, float]
    defect_rates: Mapping[str, DefectRate]
    sample: DefectRate
    control: Control
    defects: tuple[Recipe, ...]
    defect_ids: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    notes: tuple[str, ...]
    recipes: Path
    report: Path

    @property
    def sample_rate(self) -> float:
        return self.sample.rate


def run_campaign(
    model: keras.Model,
    inputs: npt.NDArray[Any],
    labels: Ints,
    *,
    config: CampaignConfig,
    out_dir: Path,
    profile: Profile | None = None,
    reference: keras.Model | None = None,
    earlier: Sequence[Path] = (),
) -> CampaignReport:
    """Fuzz a classifier and write ``recipes.jsonl`` and ``report.html`` into `out_dir`; an interrupted campaign there is gone on with.

    `inputs` (N, ...) are of `config.kind`, `labels` (N,) class numbers; those answered correctly are the seeds. `profile` is that of the training
    data; without it the ranges of `inputs` are used. `reference` is the independent model of the oracle ``disagrees``; `earlier` are
    ``islands.npz`` files that interrupted runs left elsewhere. Raises `RobustnessError` for unusable inputs, model or profile, `SpecError` for a
    configuration that does not fit them.
    """
    lab, out_dir = Lab.of(model, inputs, labels, config, profile, reference), Path(out_dir)
    run_shard(lab, out_dir / SHARD_FILE, earlier=earlier)
    return finish(lab, [out_dir / SHARD_FILE], out_dir)


def finish(lab: Lab, files: Sequence[Path], out_dir: Path) -> CampaignReport:
    """Merge the islands in the `files` of all shards into the report, which does not depend on how many there are.

    Raises `RobustnessError` unless they hold every island of this campaign to its end.
    """
    islands: Islands = {}
    for file in files:
        islands |= read_islands(file, lab.fingerprint)
    guided, sample = ([_restored(lab, islands, island, name) for island in range(lab.num_islands)] for name in (GUIDED, SAMPLE))
    criteria = _merged_criteria(lab, islands)
    found = [recipe for arm in guided for recipe in recipes_of(arm)]
    distinct = np.flatnonzero(np.concatenate([arm.defects()["distinct"] for arm in guided]))
    examined, clusters = clustered(lab, minimized(lab, [found[at] for at in distinct]))
    for at, recipe in zip(distinct, examined, strict=True):
        found[at] = recipe
    result = CampaignReport(
        model_digest=lab.probe.digest,
        ledger_hash=_ledger_hash(lab, (*guided, *sample), criteria),
        num_inputs=len(lab.labels),
        num_seeds=len(lab.seeds),
        num_mutants=sum(arm.num_mutants for arm in guided),
        num_defects=len(found),
        num_distinct_defects=len(examined),
        coverage={name: criterion.value() for name, criterion in criteria.items()},
        defect_rates=_rates(lab, sample),
        sample=defect_rate(*(sum(int(arm.tallies[which].sum()) for arm in sample) for which in (1, 0))),
        control=_control(guided, sample),
        defects=tuple(examined),
        defect_ids=tuple(recipe.id for recipe in found),
        clusters=clusters,
        notes=notes(lab, guided, sample, examined),
        recipes=out_dir / "recipes.jsonl",
        report=out_dir / "report.html",
    )
    _write(result, tuple(found), lab)
    return result


def _write(result: CampaignReport, recipes: tuple[Recipe, ...], lab: Lab) -> None:
    book = RecipeBook(lab.probe.digest, inputs_digest(lab.inputs), lab.config.kind, lab.config.mutator_names, recipes)
    try:
        for path in (result.recipes, result.report):
            clear_abandoned(path)
        book.save(result.recipes)
        report.write(result, lab)
    except OSError as error:
        raise RobustnessError(
            f"The campaign's results cannot be written to {result.report.parent}: {error}. Make room, or a directory that can be written to, and "
            "start it again: what was found is kept, and nothing is searched anew."
        ) from error


def _merged_criteria(lab: Lab, islands: Islands) -> dict[str, Criterion]:
    """Return the criteria with what all islands have seen; one island's at a time, because a large network's take much memory."""
    merged = lab.criteria()
    for island in range(lab.num_islands):
        for name, criterion in lab.criteria().items():
            criterion.restore(part_of(islands[island][GUIDED], f"criteria.{name}"))
            if criterion.mergeable:
                merged[name].merge(criterion)
            else:  # then this island is the only one
                merged[name] = criterion
    return merged


def _restored(lab: Lab, islands: Islands, island: int, name: str) -> Arm:
    state = islands.get(island, {}).get(name)
    arm = arm_of(lab, island, name, watched=False)
    if state is not None:
        arm.restore(state, going_on=False)
    if not arm.done:
        raise RobustnessError(
            f"Island {island} of {lab.num_islands} is missing or unfinished in its {name} arm ({arm.num_mutants} of {arm.budget} mutants). "
            "Run the shard that it belongs to to its end, and pass the files of all shards."
        )
    return arm


def _ledger_hash(lab: Lab, arms: Sequence[Arm], criteria: Mapping[str, Criterion]) -> str:
    digest = hashlib.sha256(lab.fingerprint.encode())
    for arm in arms:
        digest.update(arm.tallies.tobytes())
        for column in arm.defects().values():
            digest.update(np.ascontiguousarray(column).tobytes())
    for name, criterion in sorted(criteria.items()):
        digest.update(name.encode())
        for _, array in sorted(criterion.state().items()):
            digest.update(np.ascontiguousarray(array).tobytes())
    return "sha256:" + digest.hexdigest()


def _rates(lab: Lab, sample: Sequence[Arm]) -> dict[str, DefectRate]:
    mutants, defects = np.sum([arm.tallies for arm in sample], axis=0).sum(axis=2)
    return {name: defect_rate(int(defects[at]), int(mutants[at])) for at, name in enumerate(lab.config.mutator_names)}


def _control(guided: Sequence[Arm], sample: Sequence[Arm]) -> Control:
    budgets = [min(one.num_mutants, other.num_mutants) for one, other in zip(guided, sample, strict=True)]
    return Control(sum(budgets), distinct_within(guided, budgets), distinct_within(sample, budgets), curve_of(guided), curve_of(sample))
