"""The campaign as one self-contained HTML file: figures, rates with their intervals, and pairs of what the model got wrong."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.robustness.chart import chart
from airflow_mlops.robustness.coverage import CRITERIA
from airflow_mlops.robustness.findings import late
from airflow_mlops.robustness.notes import BLIND
from airflow_mlops.robustness.recipes import Recipe, Step, replay

if TYPE_CHECKING:
    from airflow_mlops.robustness.campaign import CampaignReport
    from airflow_mlops.robustness.clusters import Cluster
    from airflow_mlops.robustness.kinds import InputKind
    from airflow_mlops.robustness.lab import Lab
    from airflow_mlops.robustness.mutators.base import Mutator

MAX_PAIRS = 24
FAINT = 0.01


@dataclass(frozen=True)
class Pair:
    """A cluster's representative to look at: seed (None if the mutant shows it too) and smallest failing mutant as HTML, and what happened."""

    original: Markup | None
    mutant: Markup
    steps: tuple[str, ...]
    recipe: Recipe
    cluster: Cluster

    @property
    def answer(self) -> str:
        return "NaN" if self.recipe.prediction < 0 else str(self.recipe.prediction)

    @property
    def expected(self) -> str:
        return str(self.recipe.expected) if self.recipe.expected >= 0 else f"not {~self.recipe.expected}"


def write(result: CampaignReport, lab: Lab) -> None:
    """Write ``result.report``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("airflow_mlops.robustness"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rates = sorted(result.defect_rates.items(), key=lambda item: (-item[1].rate, item[0]))
    page = environment.get_template("report.html").render(
        result=result,
        config=lab.config,
        mutators=lab.config.kind.mutators,
        rates=rates,
        # Bars share one scale that ends just above the longest interval.
        scale=min(1.0, max([rate.high for _, rate in rates if rate.num_mutants] + [0.01]) * 1.05),
        ratios={CRITERIA[name].title: value for name, value in result.coverage.items() if CRITERIA[name].is_ratio},
        blind=lab.config.schedule in BLIND,
        counts={CRITERIA[name].title: value for name, value in result.coverage.items() if not CRITERIA[name].is_ratio},
        breaks=breaks(result, lab.config.kind),
        chart=chart({f"{lab.config.schedule} schedule": result.control.guided_curve, "unguided control": result.control.unguided_curve}),
        late=late(result.control.unguided_curve),
        pairs=_pairs(result, lab),
    )
    write_atomically(result.report, page.encode())


def pick(clusters: tuple[Cluster, ...], num: int) -> list[Cluster]:
    """Return up to `num` clusters worth a look, the largest first, chosen in turn from every operator."""
    queues: dict[str, list[Cluster]] = {}
    for cluster in clusters:
        queues.setdefault(cluster.mutator, []).append(cluster)
    rounds = range(max(map(len, queues.values()), default=0))
    chosen = [queue[turn] for turn in rounds for _, queue in sorted(queues.items()) if turn < len(queue)][:num]
    return sorted(chosen, key=lambda cluster: cluster.number)


def _pairs(result: CampaignReport, lab: Lab) -> list[Pair]:
    kind, shown = lab.config.kind, pick(result.clusters, MAX_PAIRS)
    recipes = [result.defects[cluster.representative] for cluster in shown]
    seeds = lab.inputs[[recipe.seed for recipe in recipes]]
    chains = [recipe.minimal or recipe.chain for recipe in recipes]
    mutants = replay(chains, seeds, kind=kind, mutators=lab.config.mutator_names)
    return [
        Pair(
            None if kind.shows_both else Markup(kind.show(seed, seed)),
            Markup(kind.show(seed, mutant)),
            tuple(describe(kind, step) for step in chain),
            recipe,
            cluster,
        )
        for seed, mutant, chain, recipe, cluster in zip(seeds, mutants, chains, recipes, shown, strict=True)
    ]


def describe(kind: InputKind, step: Step) -> str:
    """Return a step in its mutator's unit, for example ``rotation 7.9 degrees``; only its name where that counts places, which are in sight."""
    mutator, name = kind.mutators[step.mutator], step.mutator.replace("_", " ")
    return name if mutator.counted else f"{name} {amount(mutator, step.severity)} {mutator.unit}"


def amount(mutator: Mutator, severity: float) -> str:
    """Return how much a severity is; below a hundredth of the range its digits say nothing any more."""
    return f"{'' if severity >= FAINT else 'under '}{max(severity, FAINT) * mutator.limit:.2g}"


def breaks(result: CampaignReport, kind: InputKind) -> dict[str, str]:
    """Return by operator the median of the severities at which it alone breaks an answer: of the distinct defects, each at its smallest."""
    found: dict[str, list[float]] = {}
    for recipe in result.defects:
        if recipe.minimal is not None and len(recipe.minimal) == 1:
            found.setdefault(recipe.minimal[0].mutator, []).append(recipe.minimal[0].severity)
    return {name: amount(kind.mutators[name], median(severities)) for name, severities in found.items() if not kind.mutators[name].counted}
