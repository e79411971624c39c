"""One arm of a campaign on one island: propose, mutate, check, ask the model, keep what is worth it. Nothing loops over mutants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.corpus import Corpus, by_depth
from airflow_mlops.robustness.draw import generator
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.members import returned
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.repeats import Drawn
from airflow_mlops.robustness.schedules import SCHEDULES
from airflow_mlops.robustness.schedules.base import LEVELS, Outcome, Proposals, Space, propose
from airflow_mlops.robustness.stored import part_of

MAX_TRIES = 50  # candidates per mutant, DeepHunter's
COUNTS = ("generation", "num_mutants", "num_candidates", "num_invalid", "num_unchanged", "num_new", "num_dropped")

DEFECT_COLUMNS: Mapping[str, Any] = {
    "seed": np.int32,
    "parent": np.int32,  # corpus entry of this arm
    "mutator": np.int16,
    "severity": np.float32,
    "key": np.uint32,
    "expected": np.int32,
    "prediction": np.int32,
    "confidence": np.float32,
    "l0": np.int32,
    "linf": np.float32,
    "oracle": np.int8,
    "order": np.int64,  # number of the mutant in this arm on this island
    "distinct": np.bool_,  # the first of its (seed, prediction) pair
}


@dataclass(frozen=True)
class Mutants:
    """Valid mutants (N, ...) with the answers expected of them (N,) and what Eq. 2 has accumulated (N,): in total, and up to the reference."""

    inputs: npt.NDArray[Any]
    expected: Ints
    l0: Ints
    linf: Floats
    l0_reference: Ints
    linf_reference: Floats

    def __getitem__(self, rows: Any) -> Mutants:
        return Mutants(*(column[rows] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.expected)


class Arm:
    """One arm on one island, which makes `budget` valid mutants in generations; everything it learned is in `state`.

    :param stream: keeps the random numbers of a campaign's arms apart.
    :param watched: whether the criteria see its mutants.
    """

    def __init__(self, lab: Lab, island: int, *, schedule: str, budget: int, stream: int, watched: bool) -> None:
        self.lab, self.island, self.budget, self.stream = lab, island, budget, stream
        kind, names = lab.config.kind, lab.config.mutator_names
        self.moves = np.array([kind.mutators[name].moves for name in names])
        self.counted = np.array([kind.mutators[name].counted for name in names])
        self.schedule = SCHEDULES[schedule](Space(self.moves, self.counted, lab.probe.num_classes, lab.config.severity_budget))
        self.criteria = lab.criteria() if watched else {}
        own = slice(island, None, lab.num_islands)
        seeds = lab.seeds[own]
        self.corpus = Corpus.of_seeds(lab.inputs[seeds], seeds, lab.labels[seeds], lab.outputs[own], len(names))
        self.max_corpus = max(len(self.corpus), lab.config.max_corpus // lab.num_islands)
        self.tallies = np.zeros((2, len(names), LEVELS), dtype=np.int64)  # mutants and defects; of a sample each different mutant once
        self.generation = self.num_mutants = self.num_candidates = self.num_invalid = self.num_unchanged = self.num_new = self.num_dropped = 0
        self._defects: list[dict[str, npt.NDArray[Any]]] = []
        self._pairs = np.empty(0, dtype=np.int64)
        self._drawn = Drawn()

    @property
    def done(self) -> bool:
        return self.num_mutants >= self.budget

    @property
    def num_distinct(self) -> int:
        """Number of different (seed, wrong answer) pairs found."""
        return len(self._pairs)

    def step(self) -> None:
        """Make one generation; raise `RobustnessError` if the constraint admits hardly any mutant."""
        left = self.budget - self.num_mutants
        if self.num_candidates >= MAX_TRIES * self.budget:
            raise self._exhausted()
        random = generator(self.lab.config.seed, self.stream, self.island, self.generation)
        # More than are wanted, as many as were invalid the last time: forward passes are to be full, and no last mutant to cost a generation.
        wanted = min(self.lab.generation_size(self.budget), left)
        num = wanted + min(wanted, self.num_invalid) + wanted // 32 + 8
        proposals = propose(self.schedule, self.corpus, num, random)
        valid, mutants = self._valid(proposals)
        looked_at = int(valid[wanted - 1]) + 1 if len(valid) >= wanted else num
        self.schedule.waste(proposals[np.delete(np.arange(looked_at), valid[:wanted])])
        proposals, mutants = proposals[valid[:wanted]], mutants[:wanted]
        self.generation, self.num_candidates, self.num_invalid = self.generation + 1, self.num_candidates + looked_at, looked_at - len(mutants)
        if len(mutants):
            self._take(proposals, mutants)

    def _take(self, proposals: Proposals, mutants: Mutants) -> None:
        answers, oracle = self.lab.judge(mutants.inputs, mutants.expected)
        defect = oracle >= 0
        # Every criterion sees every mutant: coverage says what was run, whether the answer was right or wrong.
        seen = {name: criterion.observe(answers) for name, criterion in self.criteria.items()}
        gained = [returned(f"Criterion {name!r}", "gains", value, shape=defect.shape, kinds="iu") for name, value in seen.items()]
        new = np.sum(gained, axis=0) > 0 if gained else np.zeros(len(mutants), dtype=np.bool_)
        distinct = self._first_of_pair(self.corpus["seed"][proposals.parent], answers.prediction, defect)
        outcome = Outcome(defect, distinct, new, mutants.expected, answers.prediction, answers.outputs)
        columns = {**vars(proposals), **vars(mutants), "seed": self.corpus["seed"][proposals.parent], "oracle": oracle, "distinct": distinct}
        columns |= {"prediction": answers.prediction, "confidence": answers.confidence, "order": self.num_mutants + np.arange(len(mutants))}
        self._defects.append({name: columns[name][defect].astype(dtype) for name, dtype in DEFECT_COLUMNS.items()})
        counts = self._drawn.first(columns["seed"], mutants.inputs) if self.schedule.samples else np.ones(len(mutants), dtype=np.bool_)
        for tally, rows in zip(self.tallies, (counts, counts & defect), strict=True):
            np.add.at(tally, (proposals.mutator[rows], proposals.level[rows]), 1)
        self.num_mutants, self.num_new = self.num_mutants + len(mutants), self.num_new + int(np.count_nonzero(new))
        self._keep(proposals, mutants, outcome)
        self.schedule.learn(self.corpus, proposals, outcome)

    def _valid(self, proposals: Proposals) -> tuple[Ints, Mutants]:
        """Return which proposals are valid mutants, and those; made in parts that bound the memory and change no bit."""
        size = self.lab.config.batch_size
        parts = [self._valid_part(proposals[start : start + size]) for start in range(0, len(proposals), size)]
        if len(parts) == 1:
            return parts[0]
        rows = np.concatenate([start * size + rows for start, (rows, _) in enumerate(parts)])
        columns = zip(*(vars(mutants).values() for _, mutants in parts), strict=True)
        return rows, Mutants(*(np.concatenate(column) for column in columns))

    def _valid_part(self, proposals: Proposals) -> tuple[Ints, Mutants]:
        """Mutate parents and drop what changed nothing or too much; a moved mutant becomes its own reference, and Eq. 2 carries on."""
        order = np.argsort(proposals.mutator, kind="stable")  # as a graph has them, so that no mutant is copied only to be sorted
        proposals = proposals[order]
        kind, corpus, parent = self.lab.config.kind, self.corpus, proposals.parent
        parents, moved = corpus.inputs[parent], self.moves[proposals.mutator]
        inputs = kind.mutate(parents, proposals.mutator, proposals.severity, proposals.key, names=self.lab.config.mutator_names)
        reference = corpus.inputs[corpus["reference"][parent]]
        reference[moved] = inputs[moved]
        l0_reference = np.where(moved, corpus["l0"][parent], corpus["l0_reference"][parent])
        linf_reference = np.where(moved, corpus["linf"][parent], corpus["linf_reference"][parent])
        l0, linf = constraints.accumulated(*kind.distances(reference, inputs), l0_reference, linf_reference)
        if np.isnan(linf).any():
            broken = sorted({self.lab.config.mutator_names[at] for at in proposals.mutator[np.isnan(linf)]})
            raise RobustnessError(f"Mutators {', '.join(broken)} returned NaN; expected legal inputs at every severity from 0 to 1. Mend them.")
        changed = (inputs != parents).reshape(len(inputs), -1).any(axis=1)
        self.num_unchanged += int(np.count_nonzero(~changed))
        if not self.schedule.samples:  # a counted mutator that found no place in this parent finds none the next time either
            idle = ~changed & self.counted[proposals.mutator]
            corpus["spent"][parent[idle], proposals.mutator[idle]] = 1.0
        expected = self.lab.expected(corpus["expected"][parent], proposals.mutator)
        valid = np.zeros(len(order), dtype=np.bool_)
        valid[order] = changed & kind.satisfied(l0, linf, kind.size(reference))
        rows, back = np.flatnonzero(valid), np.argsort(order)
        return rows, Mutants(inputs, expected, l0, linf, l0_reference, linf_reference)[back[rows]]

    def _first_of_pair(self, seed: Ints, prediction: Ints, defect: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        rows = np.flatnonzero(defect)
        pairs = seed[rows].astype(np.int64) * (self.lab.probe.num_classes + 1) + prediction[rows] + 1
        found, first = np.unique(pairs, return_index=True)
        fresh = ~np.isin(found, self._pairs)
        self._pairs = np.concatenate([self._pairs, found[fresh]])
        distinct = np.zeros(len(defect), dtype=np.bool_)
        distinct[rows[first[fresh]]] = True
        return distinct

    def _keep(self, proposals: Proposals, mutants: Mutants, outcome: Outcome) -> None:
        """Add the mutants that become parents, as long as there is room, and note what every parent gained."""
        corpus, gain = self.corpus, outcome.new | outcome.distinct
        corpus["last_gain"][proposals.parent] = 0
        np.add.at(corpus["last_gain"], proposals.parent, gain)
        keeps = self.schedule.keeps(corpus, proposals, outcome)
        keeps = returned(f"Schedule {type(self.schedule).__name__}", "what it keeps", keeps, shape=(len(mutants),), kinds="b")
        # Of what was answered with NaN nothing is known, and without a right answer there is no wrong one to look for.
        rows = np.flatnonzero(keeps & (outcome.prediction >= 0) & (mutants.expected >= 0))
        room = self.max_corpus - len(corpus)
        self.num_dropped += max(0, len(rows) - room)
        rows = rows[:room]
        made, kept, parent = proposals[rows], mutants[rows], proposals.parent[rows]
        own_entry, moved = len(corpus) + np.arange(len(rows)), self.moves[proposals.mutator[rows]]
        spent = corpus["spent"][parent]
        spent[np.arange(len(rows)), made.mutator] += made.severity
        chain = {
            "seed": corpus["seed"][parent],
            "reference": np.where(moved, own_entry, corpus["reference"][parent]),
            "depth": corpus["depth"][parent] + 1,
            "moved": corpus["moved"][parent] | moved,
        }
        columns = {**vars(made), **vars(kept), **chain, "spent": spent, "outputs": outcome.outputs[rows], "times_fuzzed": 0, "last_gain": 0}
        corpus.append(kept.inputs, columns)

    def defects(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of `DEFECT_COLUMNS`, each (D,), in the order the defects were found."""
        empty = {name: np.empty(0, dtype) for name, dtype in DEFECT_COLUMNS.items()}
        self._defects = [{name: np.concatenate([part[name] for part in (empty, *self._defects)]) for name in DEFECT_COLUMNS}]
        return self._defects[0]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything as arrays; the corpus' inputs follow from the rest and are left out."""
        counts = [getattr(self, name) for name in COUNTS]
        parts: dict[str, Mapping[str, npt.NDArray[Any]]] = {
            "corpus": self.corpus.columns,
            "schedule": self.schedule.state(),
            "defects": self.defects(),
        }
        parts |= {f"criteria.{name}": criterion.state() for name, criterion in self.criteria.items()}
        flat = {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        return {**flat, "counts": np.array(counts), "tallies": self.tallies, "pairs": self._pairs, "drawn": self._drawn.digests}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], *, going_on: bool = True) -> None:
        """Become the arm whose `state` this is; it goes on exactly as that one would have, or has but columns in its corpus if it is not to."""
        vars(self).update(zip(COUNTS, state["counts"].tolist(), strict=True))
        self.tallies, self._pairs, self._drawn.digests = (state[name].copy() for name in ("tallies", "pairs", "drawn"))
        self._defects = [part_of(state, "defects")]
        self.schedule.restore(part_of(state, "schedule"))
        for name, criterion in self.criteria.items():
            criterion.restore(part_of(state, f"criteria.{name}"))
        columns, num_seeds = part_of(state, "corpus"), len(self.corpus)
        if not going_on:
            self.corpus = Corpus(np.empty((len(columns["seed"]), 0), np.float32), columns)
            return
        inputs = np.empty((len(columns["seed"]), *self.corpus.inputs.shape[1:]), self.corpus.inputs.dtype)
        inputs[:num_seeds] = self.corpus.inputs
        for rows in by_depth(columns["depth"], self.lab.config.batch_size):
            steps = (columns[name][rows] for name in ("mutator", "severity", "key"))
            inputs[rows] = self.lab.config.kind.mutate(inputs[columns["parent"][rows]], *steps, names=self.lab.config.mutator_names)
        self.corpus = Corpus(inputs, columns)

    def _exhausted(self) -> RobustnessError:
        names = ", ".join(self.lab.config.mutator_names)
        if self.num_unchanged > self.num_candidates / 2:
            return RobustnessError(
                f"{names} changed nothing in {self.num_unchanged} of {self.num_candidates} candidates; expected a valid mutant in {MAX_TRIES}. Use "
                f"mutators that find something to change in these inputs, or describe the inputs better than {self.lab.config.kind}."
            )
        return RobustnessError(
            f"Only {self.num_mutants} of {self.num_candidates} candidates satisfied the constraint (Eq. 1); expected at least one in {MAX_TRIES}. "
            f"Use gentler mutators than {names}, or check that {self.lab.config.kind} describes the inputs."
        )
