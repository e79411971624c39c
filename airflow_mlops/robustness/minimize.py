"""How little is enough: for every defect the shortest chain and the smallest severities that still fail the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.recipes import Recipe, Step

PARTS = 128  # a severity is lowered to a whole number of these parts of the campaign's
GRID = 16  # severities a grid apart are all tried; between the lowest that fails and the one below it the gap is halved
FEW = 32  # of so few recipes everything in the gap is tried at once: one forward pass instead of one for each halving
LEFT_OUT = 0


def minimized(lab: Lab, recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return the recipes with `minimal` set to a chain that fails in the same way, each of its steps as small as can be beside the others.

    In the same way: with the same wrong answer where the same one is expected, found by the same oracle, every step of the way changing something
    and within the constraint. As small as can be: the chain without this step does not fail so, nor with this step's severity lowered by 1/128 of
    what the campaign gave it, or to any lower multiple of an eighth of that. Failing is not monotone in severity, so a severity in between may.

    All recipes are worked on at once, each step by step from its last one, and again whatever may have become possible by a change elsewhere in
    the chain. Every change lowers a whole number, which is why it ends. A recipe that does not fail when replayed stays without.
    """
    if not recipes:
        return []
    trial = _Trial.of(lab, recipes)
    levels = np.where(trial.steps.key >= 0, PARTS, LEFT_OUT)
    failing = trial.fails(np.arange(len(recipes)), levels)
    # Steps are left out before any is lowered: at its lowest severity a step can spare no other.
    for lower in (_left_out, _lowest):
        stale = (levels > LEFT_OUT) & failing[:, None]
        while (rows := np.flatnonzero(stale.any(axis=1))).size:
            position = levels.shape[1] - 1 - stale[rows, ::-1].argmax(axis=1)
            found = lower(trial, rows, levels[rows], position)
            changed = rows[found != levels[rows, position]]
            levels[rows, position] = found
            stale[changed] = levels[changed] > LEFT_OUT
            stale[rows, position] = False
    return [replace(recipe, minimal=trial.chain(row, levels[row])) if failing[row] else recipe for row, recipe in enumerate(recipes)]


def _left_out(trial: _Trial, rows: Ints, levels: Ints, position: Ints) -> Ints:
    """Return for each of `rows` (N,) `LEFT_OUT` if the chain fails without the step at `position` (N,), and else the step's present level."""
    present: Ints = levels[np.arange(len(rows)), position]
    spare = np.flatnonzero(np.count_nonzero(levels, axis=1) > 1)
    out = spare[trial.fails(rows[spare], _at(levels[spare], position[spare], LEFT_OUT))]
    present[out] = LEFT_OUT
    return present


def _lowest(trial: _Trial, rows: Ints, levels: Ints, position: Ints) -> Ints:
    """Return for each of `rows` (N,) the lowest level found to fail at its `position` (N,), the other steps being as in `levels` (N, L)."""
    present, several = levels[np.arange(len(rows)), position], np.count_nonzero(levels, axis=1) > 1
    tried = np.arange(LEFT_OUT, PARTS, GRID)
    below = (tried < present[:, None]) & (several[:, None] | (tried > LEFT_OUT))
    row, part = np.nonzero(below)
    failing = np.zeros((len(rows), len(tried) + 1), dtype=np.bool_)
    failing[row, part] = trial.fails(rows[row], _at(levels[row], position[row], tried[part]))
    failing[:, -1] = True  # the present level
    fails: Ints = np.minimum(np.append(tried, PARTS)[failing.argmax(axis=1)], present)
    passes = np.maximum(fails - 1, 0) // GRID * GRID
    gap = passes[:, None] + np.arange(1, GRID)
    known = np.zeros(gap.shape, dtype=np.bool_)
    if len(rows) <= FEW:
        row, part = np.nonzero(gap < fails[:, None])
        known[row, part] = trial.fails(rows[row], _at(levels[row], position[row], gap[row, part]))
    while (wide := np.flatnonzero(fails - passes > 1)).size:
        middle = (fails[wide] + passes[wide]) // 2
        few = len(rows) <= FEW
        fail = known[wide, middle - gap[wide, 0]] if few else trial.fails(rows[wide], _at(levels[wide], position[wide], middle))
        fails[wide], passes[wide] = np.where(fail, middle, fails[wide]), np.where(fail, passes[wide], middle)
    return fails


def _at(levels: Ints, position: Ints, level: Ints | int) -> Ints:
    changed = levels.copy()
    changed[np.arange(len(levels)), position] = level
    return changed


@dataclass(frozen=True)
class _Steps:
    """The chains of D recipes as (D, L) columns, L being the longest: position of the mutator, severity, key; a key of -1 is no step."""

    mutator: Ints
    severity: Floats
    key: Ints

    @classmethod
    def of(cls, chains: Sequence[tuple[Step, ...]], names: Sequence[str]) -> _Steps:
        shape = len(chains), max(map(len, chains))
        columns = np.zeros(shape, np.int64), np.zeros(shape), np.full(shape, -1)
        steps = [(row, place, step) for row, chain in enumerate(chains) for place, step in enumerate(chain)]
        rows, places = [row for row, _, _ in steps], [place for _, place, _ in steps]
        for column, values in zip(columns, zip(*((names.index(s.mutator), s.severity, s.key) for _, _, s in steps), strict=True), strict=True):
            column[rows, places] = values
        return cls(*columns)


@dataclass(frozen=True)
class _Trial:
    """What it takes to try other severities of D recipes: their steps, and by what they are known to fail."""

    lab: Lab
    recipes: Sequence[Recipe]
    steps: _Steps
    seed: Ints
    expected: Ints
    prediction: Ints
    oracle: Ints

    @classmethod
    def of(cls, lab: Lab, recipes: Sequence[Recipe]) -> _Trial:
        columns = [(recipe.seed, recipe.expected, recipe.prediction, lab.config.oracles.index(recipe.oracle)) for recipe in recipes]
        steps = _Steps.of([recipe.chain for recipe in recipes], lab.config.mutator_names)
        return cls(lab, recipes, steps, *np.array(columns).T)

    def severity(self, rows: Ints, levels: Ints) -> npt.NDArray[np.float32]:
        """Return (N, L) severities: those of the campaign, lowered to `levels` of `PARTS`."""
        return (self.steps.severity[rows] * levels / PARTS).astype(np.float32)

    def chain(self, row: int, levels: Ints) -> tuple[Step, ...]:
        """Return what is left of the chain of `row` at `levels` (L,)."""
        severity = self.severity(np.array([row]), levels[None])[0].tolist()
        chain = self.recipes[row].chain
        lowered = (replace(step, severity=own) for step, own in zip(chain, severity, strict=False))
        return tuple(step for step, level in zip(lowered, levels, strict=False) if level > LEFT_OUT)

    def fails(self, rows: Ints, levels: Ints) -> npt.NDArray[np.bool_]:
        """Return (N,) whether recipe `rows[i]` fails in its own way at `levels[i]`; in parts that bound the memory."""
        failing = np.zeros(len(rows), dtype=np.bool_)
        size = -(-self.lab.config.batch_size // self.lab.probe.micro_batch) * self.lab.probe.micro_batch  # see `Probe.answer_all`
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            failing[part] = self._fails(rows[part], levels[part])
        return failing

    def _fails(self, rows: Ints, levels: Ints) -> npt.NDArray[np.bool_]:
        mutants, expected, valid = self._followed(rows, levels)
        answers, oracle = self.lab.judge(mutants, expected)
        same = (answers.prediction == self.prediction[rows]) & (expected == self.expected[rows]) & (oracle == self.oracle[rows])
        return np.asarray(valid & same)

    def _followed(self, rows: Ints, levels: Ints) -> tuple[npt.NDArray[Any], Ints, npt.NDArray[np.bool_]]:
        """Return the mutants at the ends of the chains, what is expected of them, and whether every step of the way was within Eq. 1 and 2."""
        kind, names = self.lab.config.kind, self.lab.config.mutator_names
        moves = np.array([kind.mutators[name].moves for name in names])
        inputs, expected, valid = self.lab.inputs[self.seed[rows]], self.lab.labels[self.seed[rows]], np.ones(len(rows), dtype=np.bool_)
        reference, severity = inputs.copy(), self.severity(rows, levels)
        l0: Ints = np.zeros(len(rows), dtype=np.int64)
        linf: Floats = np.zeros(len(rows))
        l0_reference, linf_reference = l0.copy(), linf.copy()
        for depth in np.flatnonzero((levels > LEFT_OUT).any(axis=0)):
            on = np.flatnonzero(levels[:, depth] > LEFT_OUT)
            mutator = self.steps.mutator[rows[on], depth]
            before, key = inputs[on], self.steps.key[rows[on], depth].astype(np.uint32)
            inputs[on] = kind.mutate(before, mutator, severity[on, depth], key, names=names)
            # A "not" that finds no place any more turns no answer either.
            valid[on] &= (inputs[on] != before).reshape(len(on), -1).any(axis=1)
            expected[on] = self.lab.expected(expected[on], mutator)
            moved = on[moves[mutator]]
            reference[moved], l0_reference[moved], linf_reference[moved] = inputs[moved], l0[moved], linf[moved]
            l0, linf = constraints.accumulated(*kind.distances(reference, inputs), l0_reference, linf_reference)
            valid &= kind.satisfied(l0, linf, kind.size(reference))
        return inputs, expected, valid
