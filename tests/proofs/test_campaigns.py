"""What a campaign claims, on a LeNet-5 of the digits at 28x28: no mutant too far, every defect again, any kill survived, more found than chance."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from airflow_mlops.robustness.arm import Arm
from airflow_mlops.robustness.campaign import CampaignConfig, CampaignReport, RecipeBook, run_campaign
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.models import Probe
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.shards import SHARD_FILE, STREAMS, read_islands
from tests import guidance
from tests.lenet import TRAINED_ON, pictures, trained

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CONFIG = CampaignConfig(max_mutants=100_000, seed=1)
NAMES = Images.default
MOVES = {name for name in NAMES if Images.mutators[name].moves}
SIZE = 28 * 28
NUM_KILLS = 10


@dataclass(frozen=True)
class Subject:
    """A trained model, its profile, and the inputs (N, 28, 28, 1) it has not seen, also as files in `home`."""

    model: Any
    profile: Profile
    inputs: Any
    labels: Any
    home: Path

    @property
    def lab(self) -> Lab:
        return Lab.of(self.model, self.inputs, self.labels, CONFIG, self.profile)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    images, labels = pictures()
    model = trained()
    home = tmp_path_factory.mktemp("subject")
    model.save(home / "model.keras")
    np.savez(home / "inputs.npz", inputs=images[TRAINED_ON:], labels=labels[TRAINED_ON:])
    profile = Profile.of(Probe(model), images[:TRAINED_ON])
    profile.save(home / "profile.npz")
    return Subject(model, profile, images[TRAINED_ON:], labels[TRAINED_ON:], home)


@dataclass
class Spent:
    """What a chain has used of its freedom up to an image: measured from `reference`, on top of what was used before that."""

    image: Any
    reference: Any
    before: tuple[int, float] = (0, 0.0)
    total: tuple[int, float] = (0, 0.0)

    def after(self, image: Any, mutator: str) -> Spent:
        """Eq. 2 of DeepHunter for one more step, in exact arithmetic."""
        reference, before = (image, self.total) if mutator in MOVES else (self.reference, self.before)
        change = np.abs(image.astype(np.float64) - reference.astype(np.float64))
        return Spent(image, reference, before, (before[0] + int((change > 0).sum()), max(before[1], float(change.max()))))

    @property
    def allowed(self) -> bool:
        """Eq. 1: few pixels may change by anything, many by less than a fifth."""
        return self.total[0] < 0.02 * SIZE or self.total[1] < 0.2


class Inspector:
    """Follows every valid mutant of the guided arm, one by one, beside the campaign."""

    def __init__(self) -> None:
        self.entries: dict[int, list[Spent]] = {}
        self.num_mutants = self.num_violations = 0

    def watch(self, arm: Arm, take: Any, proposals: Any, mutants: Any) -> None:
        if arm.stream != STREAMS["guided"]:
            take(arm, proposals, mutants)
            return
        known = self.entries.setdefault(arm.island, [Spent(image.copy(), image.copy()) for image in arm.corpus.inputs])
        for parent, mutator, image in zip(proposals.parent.tolist(), proposals.mutator.tolist(), mutants.inputs, strict=True):
            self.num_mutants += 1
            self.num_violations += not known[parent].after(image, NAMES[mutator]).allowed
        take(arm, proposals, mutants)
        corpus = arm.corpus
        for entry in range(len(known), len(corpus)):
            known.append(known[corpus["parent"][entry]].after(corpus.inputs[entry].copy(), NAMES[corpus["mutator"][entry]]))


@pytest.fixture(scope="module")
def inspected(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CampaignReport, Inspector]]:
    """The campaign of 100,000 mutants, run once without interruption, and what the inspector saw of it."""
    inspector, take = Inspector(), Arm._take
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Arm, "_take", lambda arm, proposals, mutants: inspector.watch(arm, take, proposals, mutants))
        out_dir = tmp_path_factory.mktemp("whole")
        report = run_campaign(subject.model, subject.inputs, subject.labels, config=CONFIG, out_dir=out_dir, profile=subject.profile)
    yield report, inspector


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n  {text}", flush=True)


def test_none_of_100000_mutants_is_outside_the_constraint(inspected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report, inspector = inspected
    num_kept = sum(map(len, inspector.entries.values())) - report.num_seeds
    depth = max(len(recipe.chain) for recipe in RecipeBook.load(report.recipes).recipes)
    tell(
        capsys, f"{inspector.num_mutants:,} mutants, {num_kept:,} of them kept, chains of up to {depth} steps: {inspector.num_violations} violations"
    )
    assert inspector.num_mutants == report.num_mutants == 100_000
    assert num_kept > 1_000
    assert depth >= 3
    assert all(spent.allowed for entries in inspector.entries.values() for spent in entries)
    assert inspector.num_violations == 0


def test_every_stored_defect_is_within_the_constraint_all_the_way(subject: Subject, inspected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = inspected
    recipes = RecipeBook.load(report.recipes).recipes
    chains = [chain for recipe in recipes for chain in (recipe.chain, recipe.minimal or recipe.chain)]
    spent = [Spent(image, image) for recipe in recipes for image in [subject.inputs[recipe.seed]] * 2]
    for depth in range(max(map(len, chains))):
        rows = [row for row, chain in enumerate(chains) if len(chain) > depth]
        steps = [chains[row][depth] for row in rows]
        columns = [np.array(column) for column in zip(*((NAMES.index(step.mutator), step.severity, step.key) for step in steps), strict=True)]
        images = Images().mutate(np.stack([spent[row].image for row in rows]), *columns, names=NAMES)
        for row, step, image in zip(rows, steps, images, strict=True):
            spent[row] = spent[row].after(image, step.mutator)
            assert spent[row].allowed
    assert all(sum(step.mutator in MOVES for step in chain) <= 1 for chain in chains)
    for recipe, used in zip(recipes, spent[::2], strict=True):
        assert recipe.l0 == used.total[0]
        assert recipe.linf == pytest.approx(used.total[1], abs=1e-6)
    tell(capsys, f"{len(recipes):,} defects and {len(report.defects):,} smallest forms followed step by step: none outside")


def test_every_defect_replays_to_its_prediction(subject: Subject, inspected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = inspected
    book = RecipeBook.load(report.recipes)
    mutants = book.replay(subject.inputs, batch_size=97)
    answers = Probe(keras.models.load_model(subject.home / "model.keras")).answer(mutants)
    assert answers.prediction.tolist() == [recipe.prediction for recipe in book.recipes]
    assert answers.confidence.tolist() == [recipe.confidence for recipe in book.recipes]
    assert all(recipe.prediction != recipe.expected == subject.labels[recipe.seed] for recipe in book.recipes)
    plain = subject.model.predict(mutants, verbose=0)
    clear = np.sort(plain, axis=1)[:, -1] - np.sort(plain, axis=1)[:, -2] > 1e-4
    predictions = np.array([recipe.prediction for recipe in book.recipes])
    assert np.array_equal(plain.argmax(axis=1)[clear], predictions[clear])
    assert clear.mean() > 0.99
    smallest = Probe(subject.model).answer(book.replay(subject.inputs, minimal=True)).prediction
    assert smallest.tolist() == predictions.tolist()
    tell(capsys, f"{len(book.recipes):,} defects, {report.num_distinct_defects} distinct: all answered as they were, by a model loaded from its file")


PROGRAM = """
import pathlib, sys, time
import keras, numpy as np
from airflow_mlops.robustness.campaign import finish, run_shard
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.shards import SHARD_FILE
from tests.proofs.test_campaigns import CONFIG
home, out_dir = map(pathlib.Path, sys.argv[1:])
data = np.load(home / "inputs.npz")
model = keras.models.load_model(home / "model.keras")
lab = Lab.of(model, data["inputs"], data["labels"], CONFIG, Profile.load(home / "profile.npz"))
print("ready", flush=True)
run_shard(lab, out_dir / SHARD_FILE, clock=lambda: 1_000 * time.monotonic())
print(finish(lab, [out_dir / SHARD_FILE], out_dir).ledger_hash, flush=True)
"""


def wait_for_change(path: Path, process: subprocess.Popen[str]) -> None:
    """Return when the process has saved once more, or ended: how far it comes in a second says more of the machine than of the campaign."""

    def seen() -> int:
        return path.stat().st_ino if path.exists() else 0

    before = seen()
    while seen() == before and process.poll() is None:
        time.sleep(0.002)


def test_killed_at_ten_random_moments_it_ends_with_the_same_ledger(
    subject: Subject, inspected: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, _ = inspected
    lab, random, made = subject.lab, np.random.default_rng(), []
    command = [sys.executable, "-c", PROGRAM, str(subject.home), str(tmp_path)]
    started = time.monotonic()
    for _ in range(NUM_KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(random.integers(1, 4)):
                wait_for_change(tmp_path / SHARD_FILE, process)
            time.sleep(random.uniform(0.0, 0.1))
            process.kill()
        assert process.returncode in (-signal.SIGKILL, 0)
        islands = read_islands(tmp_path / SHARD_FILE, lab.fingerprint) if (tmp_path / SHARD_FILE).exists() else {}
        made.append(sum(int(state["counts"][1]) for arms in islands.values() for state in arms.values()))
    last = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], check=True)
    share = ", ".join(f"{num / (CONFIG.max_mutants + CONFIG.sample_mutants):.0%}" for num in made)
    tell(capsys, f"killed when {share} were saved; ended after {time.monotonic() - started:.0f} s with {last.stdout.split()[1][:19]}...")
    assert made == sorted(made)
    assert len(set(made)) > NUM_KILLS / 2
    assert 0 < made[0] < CONFIG.max_mutants
    assert last.stdout.split()[1] == report.ledger_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == [SHARD_FILE, "recipes.jsonl", "report.html"]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", guidance.SUBJECTS)
def test_guidance_is_nowhere_worse_than_chance_and_better_where_chance_still_finds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole grid of docs/robustness.md: ten campaigns a cell, of which the lower end of the 95 % interval counts."""
    cells = [guidance.cell(name, num_seeds, num_mutants) for num_mutants in guidance.MUTANTS for num_seeds in guidance.SEEDS]
    tell(
        capsys, "distinct defects, guided / unguided: mean ratio and 95 % interval, means; * where the control still grows\n" + guidance.tables(cells)
    )
    assert [miss for cell in cells for miss in cell.misses] == []
