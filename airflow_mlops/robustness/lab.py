"""Everything an island needs and never changes: the model, the inputs, the seeds, and what the criteria already know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.artifacts import bytes_digest, canonical_json
from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.config import CampaignConfig
from airflow_mlops.robustness.coverage import CRITERIA
from airflow_mlops.robustness.coverage.base import Criterion
from airflow_mlops.robustness.members import code_digest
from airflow_mlops.robustness.models import Answers, Probe
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.oracles import ORACLES, Evidence, verdicts
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.recipes import inputs_digest, kind_data
from airflow_mlops.robustness.schedules import SCHEDULES

MICRO_BATCH = 256
GENERATION_BYTES = 64 << 20  # a generation of mutants and its references lie in memory together
LARGEST_GENERATION = 2_048
GENERATIONS = 12  # of an island at least, so that a schedule has something to learn from


@dataclass(frozen=True)
class Lab:
    """One campaign's fixed parts.

    `inputs` (N, ...) as the campaign computes with them; `labels` (N,); `seeds` (S,) the rows that the model answers correctly, `outputs` (S, C)
    its answers to them; `num_objected` are others that it answers correctly, but an oracle objects without any change; `own_profile` says that no
    profile was given, and it is that of the inputs; `known` the states of the criteria after all seeds; `fingerprint` of everything a result
    depends on.
    """

    config: CampaignConfig
    probe: Probe
    reference: Probe | None
    inputs: npt.NDArray[Any]
    labels: Ints
    seeds: Ints
    outputs: Floats
    num_objected: int
    profile: Profile
    own_profile: bool
    known: Mapping[str, Mapping[str, npt.NDArray[Any]]]
    fingerprint: str

    @classmethod
    def of(
        cls, model: Any, inputs: npt.NDArray[Any], labels: Ints, config: CampaignConfig, profile: Profile | None, reference: Any | None = None
    ) -> Lab:
        """Check everything and ask the model about every input once; raise `RobustnessError` for unusable inputs, model or profile."""
        if "disagrees" in config.oracles and reference is None:
            raise SpecError("Oracle 'disagrees' compares with another model; pass it as `reference`, or leave the oracle out.")
        inputs = config.kind.checked(_array(inputs, "inputs"))
        micro_batch = config.micro_batch or fitting_micro_batch(inputs)
        probe = Probe(model, micro_batch=micro_batch)
        probe.check(inputs)
        labels = _checked_labels(probe, _array(labels, "labels"), inputs, config)
        used = profile or Profile.of(probe, inputs)
        used.check(probe)
        criteria = {name: CRITERIA[name](used, config.coverage) for name in config.criteria}
        other = _reference(reference, probe, inputs) if reference is not None else None
        seeds, outputs, num_objected = _seeds(probe, other, inputs, labels, criteria, config)
        parts: dict[str, Any] = {
            "model": probe.digest,
            "reference": other.digest if other else None,
            "inputs": inputs_digest(inputs),
            "profile": used.digest,
        }
        parts |= {"labels": bytes_digest(labels.tobytes()), "config": config_data(config), "code": _code(config)}
        fingerprint = bytes_digest(canonical_json(parts))
        known = {name: criterion.state() for name, criterion in criteria.items()}
        return cls(config, probe, other, inputs, labels, seeds, outputs, num_objected, used, profile is None, known, fingerprint)

    @property
    def num_islands(self) -> int:
        """Islands of this campaign: no more than there are seeds."""
        return min(self.config.num_islands, len(self.seeds))

    def generation_size(self, budget: int) -> int:
        """Return how many mutants an island with this budget makes at once, a function of the campaign alone."""
        room = max(self.probe.micro_batch, GENERATION_BYTES // max(1, self.inputs[:1].nbytes))
        wanted = -(-budget // GENERATIONS)
        # Of a small campaign a forward pass is not full: what the first mutants teach is worth more than the time.
        whole = wanted if wanted < self.probe.micro_batch else -(-wanted // self.probe.micro_batch) * self.probe.micro_batch
        return min(whole, room, LARGEST_GENERATION)

    def criteria(self) -> dict[str, Criterion]:
        """Return the chosen criteria, which already know the seeds."""
        made = {name: CRITERIA[name](self.profile, self.config.coverage) for name in self.config.criteria}
        for name, criterion in made.items():
            criterion.restore(self.known[name])
        return made

    def expected(self, expected: Ints, mutator: Ints) -> Ints:
        """Return the answers (N,) that are right after one more step by `mutator` (N,), see `Mutator.relation` and `oracles.Evidence`."""
        kind, same = self.config.kind, np.arange(self.probe.num_classes)
        mirrored, negated = _swapped(same, kind.mirrored_labels), _swapped(~same, kind.negated_labels)
        relation = np.array([kind.mutators[name].relation for name in self.config.mutator_names])[mutator]
        return np.select([relation == "mirrored", relation == "negated"], [mirrored[expected], negated[expected]], expected)

    def judge(self, mutants: npt.NDArray[Any], expected: Ints) -> tuple[Answers, Ints]:
        """Return what the model answers to N mutants, and which oracle speaks (N,), -1 where none does."""
        answers = self.probe.answer(mutants)
        other = self.reference.answer(mutants).outputs if self.reference else None
        return answers, verdicts(self.config.oracles, Evidence(expected, answers, other, self.config.tolerance))


def config_data(config: CampaignConfig) -> dict[str, Any]:
    """Return everything in `config` that decides about the result, as JSON data: not the batch size."""
    fields = {name: value for name, value in vars(config).items() if name not in ("batch_size", "kind", "coverage")}
    return {**fields, "mutators": config.mutator_names, "kind": kind_data(config.kind), "coverage": vars(config.coverage)}


def fitting_micro_batch(inputs: npt.NDArray[Any]) -> int:
    """Return how many of `inputs` (N, ...) a forward pass takes: fewer of large ones, whose activations are larger still."""
    rows = (8 << 20) // max(1, inputs[:1].nbytes)
    return max(1, min(MICRO_BATCH, 1 << max(0, rows.bit_length() - 1)))


def _swapped(to: Ints, pairs: tuple[tuple[int, int], ...]) -> Ints:
    """Return by class the answer that becomes right: that of `to`, except in `pairs`, whose classes swap."""
    swapped = to.copy()
    for one, other in pairs:
        swapped[one], swapped[other] = other, one
    return swapped


def _reference(model: Any, probe: Probe, inputs: npt.NDArray[Any]) -> Probe:
    """Return the independent model, which must answer the same question."""
    other = Probe(model, micro_batch=probe.micro_batch)
    other.check(inputs)
    if other.num_classes != probe.num_classes:
        raise RobustnessError(
            f"The reference model {model.name!r} has {other.num_classes} classes, and the model {probe.num_classes}. Pass one that was trained "
            "on the same classes in the same order."
        )
    return other


def _array(values: Any, what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise RobustnessError(f"The {what} are no array: {error}. Expected rows that are all of the same shape.") from error


def _code(config: CampaignConfig) -> dict[str, Any]:
    """Return what tells the code of one campaign from another's: a resumed one must not go on by other rules than it began with."""
    kind, schedule = config.kind, SCHEDULES[config.schedule]
    mutators = [kind.mutators[name] for name in config.mutator_names]
    rules = [(mutator.limit, mutator.relation, mutator.moves, mutator.counted) for mutator in mutators]
    members: list[Any] = [type(kind), schedule, *(CRITERIA[name] for name in config.criteria), *(ORACLES[name] for name in config.oracles)]
    return {"rules": rules, "members": [code_digest(member) for member in (*members, *(mutator.apply for mutator in mutators))]}


def _checked_labels(probe: Probe, labels: Ints, inputs: npt.NDArray[Any], config: CampaignConfig) -> Ints:
    probe.check_labels(labels)
    if len(labels) != len(inputs):
        raise RobustnessError(f"There are {len(labels)} labels for {len(inputs)} inputs; expected one class number for each.")
    for name, pairs in (("mirrored_labels", config.kind.mirrored_labels), ("negated_labels", config.kind.negated_labels)):
        classes = [label for pair in pairs for label in pair]
        if len(set(classes)) != len(classes) or any(not 0 <= label < probe.num_classes for label in classes):
            raise SpecError(f"{name} is {pairs}; expected pairs of different classes from 0 to {probe.num_classes - 1}, each class once.")
    return labels.astype(np.int64)


def _seeds(
    probe: Probe, other: Probe | None, inputs: npt.NDArray[Any], labels: Ints, criteria: Mapping[str, Criterion], config: CampaignConfig
) -> tuple[Ints, Floats, int]:
    """Return the rows that the model answers correctly and no oracle objects to, and its answers; show them to the criteria.

    The third is how many of the correct answers an oracle objects to: a defect is to come of a change.
    """
    seeds, outputs, num_broken, num_speechless, num_objected, start = [], [], 0, 0, 0, 0
    for answers in probe.answer_all(inputs, config.batch_size):
        rows = slice(start, start + len(answers.prediction))
        # Asked here before any island does, the other model decides by the same inputs in every shard whether it gives logits.
        said = other.answer(inputs[rows]).outputs if other else None
        num_speechless += 0 if said is None else int(np.count_nonzero(np.isnan(said).any(axis=1)))
        correct = answers.prediction == labels[rows]
        quiet = correct & (verdicts(config.oracles, Evidence(labels[rows], answers, said, config.tolerance)) < 0)
        num_broken += int(np.count_nonzero(answers.prediction == -1))
        num_objected += int(np.count_nonzero(correct & ~quiet))
        seeds.append(start + np.flatnonzero(quiet))
        outputs.append(answers.outputs[quiet])
        for criterion in criteria.values():
            criterion.observe(Answers(*(column[quiet] for column in vars(answers).values())))
        start = rows.stop
    if num_broken:
        raise RobustnessError(
            f"The model answers {num_broken} of {len(labels)} unchanged inputs with NaN or infinity. Train it again; a campaign would say nothing."
        )
    if num_speechless:
        raise RobustnessError(
            f"The reference model answers {num_speechless} of {len(labels)} unchanged inputs with NaN or infinity, with which nothing disagrees. "
            "Pass a trained one."
        )
    found = np.concatenate(seeds)
    if len(found) == 0:
        raise RobustnessError(
            f"The model answers none of the {len(labels)} inputs correctly, with no oracle objecting, and only such inputs can be seeds. "
            "Check that the labels belong to these inputs and that the inputs are preprocessed as in training."
            + f" {num_objected} are answered correctly, but one of the oracles {', '.join(config.oracles)} objects to them."
            * (num_objected > 0)
        )
    return found, np.concatenate(outputs), num_objected
