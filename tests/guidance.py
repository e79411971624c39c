"""What guidance is worth: distinct defects of the default schedule against the unguided control, over seeds, mutants, models and kinds of input.

``python -m tests.guidance`` measures the whole grid, about an hour of CPU time; options choose a part. ``--json FILE`` keeps what is measured and
goes on from there, ``--table FILE`` writes the tables of docs/robustness.md. Every campaign has seeds of its own, drawn from the inputs that the
model answers correctly, and both arms get the same seeds, mutators, limits and number of valid mutants.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.subjects import subject

if TYPE_CHECKING:
    from airflow_mlops.robustness.arm import Arm
    from airflow_mlops.robustness.lab import Lab

SUBJECTS = ("pictures, weak", "pictures, fair", "pictures, good", "poses, fair", "rows, fair", "texts, fair")
SEEDS = (50, 100, 500, 2_000)
MUTANTS = (1_000, 5_000, 20_000, 100_000)
DEFAULT = "bandit"
CAMPAIGNS = 10
FIRST = 10  # the first campaign's number: those before were used to find the schedule's constants
NONE = 0.5  # what counts for no defect at all, so that a ratio exists
WANTED = 1.3  # where the control is still growing


class Pair(NamedTuple):
    """Distinct defects of both arms of one campaign, and those of the control before its last quarter."""

    guided: int
    unguided: int
    before: int


class Cell(NamedTuple):
    """The campaigns of one model with so many seeds and mutants."""

    subject: str
    num_seeds: int
    num_mutants: int
    pairs: tuple[Pair, ...]

    @property
    def is_growing(self) -> bool:
        """Whether the last quarter of the control's mutants adds a tenth or more to what it has found, on average."""
        found, before = (sum(getattr(pair, name) for pair in self.pairs) for name in ("unguided", "before"))
        return bool(found >= 1.1 * before and found)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Return the geometric mean of guided / unguided with its 95 % interval (Student's t of the logarithms)."""
        import numpy as np
        from scipy.stats import t

        logs = np.log([max(NONE, pair.guided) / max(NONE, pair.unguided) for pair in self.pairs])
        half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5 if len(logs) > 1 else float("inf")
        return float(np.exp(logs.mean())), float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))

    @property
    def misses(self) -> list[str]:
        """Return what was promised and does not hold."""
        mean, low, high = self.ratio
        figures = f"{mean:.2f} ({low:.2f} to {high:.2f}) at {self.num_seeds:,} seeds x {self.num_mutants:,} mutants, {self.subject}"
        missed = [f"below 1.0: {figures}"] if low < 1.0 else []
        return missed + ([f"below {WANTED} although the control grows: {figures}"] if self.is_growing and mean < WANTED else [])

    def means(self) -> tuple[float, float]:
        """Return the mean distinct defects of both arms."""
        guided, unguided = (sum(getattr(pair, name) for pair in self.pairs) / len(self.pairs) for name in ("guided", "unguided"))
        return guided, unguided


@cache
def lab_of(name: str) -> Lab:
    """Return the lab of a subject, with all of its seeds."""
    from airflow_mlops.robustness.config import CampaignConfig
    from airflow_mlops.robustness.lab import Lab

    one = subject(name)
    return Lab.of(one.model, one.inputs, one.labels, CampaignConfig(criteria=("kmnc",), kind=one.kind), None)


def measured(name: str, num_seeds: int, num_mutants: int, campaign: int, schedule: str = DEFAULT) -> Pair:
    """Run both arms of one campaign on `num_seeds` seeds, which its number chooses."""
    import numpy as np

    from airflow_mlops.robustness.findings import curve_of, late
    from airflow_mlops.robustness.shards import GUIDED, SAMPLE

    whole = lab_of(name)
    if len(whole.seeds) < num_seeds:
        raise ValueError(f"{name} has {len(whole.seeds)} seeds; {num_seeds} were asked for.")
    chosen = np.sort(np.random.default_rng((campaign, num_seeds)).permutation(len(whole.seeds))[:num_seeds])
    config = replace(whole.config, seed=campaign, max_mutants=num_mutants, sample_mutants=num_mutants, schedule=schedule)
    lab = replace(whole, config=config, seeds=whole.seeds[chosen], outputs=whole.outputs[chosen])
    guided, unguided = (curve_of([_run(lab, island, arm) for island in range(lab.num_islands)]) for arm in (GUIDED, SAMPLE))
    return Pair(guided[-1][1], unguided[-1][1], unguided[-1][1] - late(unguided))


def _run(lab: Lab, island: int, name: str) -> Arm:
    from airflow_mlops.robustness.shards import arm_of

    arm = arm_of(lab, island, name, watched=lab.config.schedule != DEFAULT)  # which coverage does not guide
    while not arm.done:
        arm.step()
    return arm


def cell(name: str, num_seeds: int, num_mutants: int, schedule: str = DEFAULT) -> Cell:
    """Measure one cell of the grid."""
    numbers = range(FIRST, FIRST + CAMPAIGNS)
    return Cell(name, num_seeds, num_mutants, tuple(measured(name, num_seeds, num_mutants, number, schedule) for number in numbers))


def tables(cells: Sequence[Cell]) -> str:
    """Return the grid as Markdown, a table for each subject: mean ratio and interval, mean defects of both arms; * where the control grows."""
    made, seeds, mutants = [], sorted({each.num_seeds for each in cells}), sorted({each.num_mutants for each in cells})
    for name in dict.fromkeys(each.subject for each in cells):
        own = {(each.num_seeds, each.num_mutants): each for each in cells if each.subject == name}
        lines = [[f"{name} ({100 * subject(name).accuracy:.0f} %)", *(f"{num:,} mutants" for num in mutants)], ["---"] * (len(mutants) + 1)]
        lines += [[f"{num:,} seeds", *(_text(own.get((num, budget))) for budget in mutants)] for num in seeds]
        made.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(made)


def _text(one: Cell | None) -> str:
    if one is None:
        return "-"
    (mean, low, high), (guided, unguided) = one.ratio, one.means()
    few = "" if len(one.pairs) == CAMPAIGNS else f", {len(one.pairs)} campaigns"
    return f"{mean:.2f}{'*' * one.is_growing} ({low:.2f} to {high:.2f}), {guided:,.0f} : {unguided:,.0f}{few}"


def main() -> None:
    """Measure the cells that were asked for, and say which miss."""
    parser = argparse.ArgumentParser(prog="python -m tests.guidance", description=__doc__)
    parser.add_argument("--subjects", nargs="*", default=SUBJECTS, help='such as "pictures, weak"')
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--mutants", nargs="*", type=int, default=MUTANTS)
    parser.add_argument("--campaigns", type=int, default=CAMPAIGNS)
    parser.add_argument("--json", type=Path, help="keep every campaign's figures here, and measure only what is not there")
    parser.add_argument("--table", type=Path, help="write the tables to this file, as Markdown")
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    cells = []
    for name, num_mutants, num_seeds in product(options.subjects, options.mutants, options.seeds):
        pairs = known.setdefault(f"{name}; {num_seeds}; {num_mutants}", [])
        for campaign in range(FIRST + len(pairs), FIRST + options.campaigns):
            pairs.append(measured(name, num_seeds, num_mutants, campaign))
            if options.json:
                options.json.write_text(json.dumps(known))
        cells.append(Cell(name, num_seeds, num_mutants, tuple(Pair(*pair) for pair in pairs)))
        print(name, f"{num_seeds:,} x {num_mutants:,}", _text(cells[-1]), "; ".join(cells[-1].misses), flush=True)
    if options.table:
        options.table.write_text(tables(cells))


if __name__ == "__main__":
    main()
