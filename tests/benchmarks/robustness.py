"""What a campaign costs beside the plain forward pass of as many inputs, how that grows, and what guidance is worth.

LeNet-5 of `tests.lenet`, KMNC with 1000 sections, DeepHunter's nine operators. Times of ours and of the plain pass are
taken in turn, and the best of several rounds counts, because others may use the machine; each side has the best batch size of those tried.
``python -m tests.benchmarks.robustness`` is what a fresh process runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests import guidance
from tests.benchmarks.row import Row, seconds
from tests.lenet import TRAINED_ON, pictures, trained

if TYPE_CHECKING:
    from airflow_mlops.robustness.campaign import CampaignConfig
    from airflow_mlops.robustness.lab import Lab

ROOT = Path(__file__).parents[2]
ROUNDS = 4
PLAIN_BATCHES = (256, 1_024, 4_096)
MICRO_BATCHES = (256, 512, 1_024)
NUM_INPUTS = 16_384
FEW, MANY = 25_000, 100_000  # the larger as many as 5,000 iterations x 20
GUIDED = (
    ("pictures, weak", 100, 5_000, "bandit"),
    ("poses, fair", 500, 5_000, "bandit"),
    ("rows, fair", 50, 20_000, "bandit"),
    ("pictures, weak", 100, 5_000, "deephunter"),
)
NEURONS = (1_000, 4_000, 16_000)
MEGABYTE = 1e6


class Digits(NamedTuple):
    """A trained LeNet-5, what it has learned from, and what it has not seen."""

    model: Any
    train_inputs: Any
    inputs: Any
    labels: Any

    @classmethod
    def of(cls, model: Any) -> Digits:
        images, labels = pictures()
        return cls(model, images[:TRAINED_ON], images[TRAINED_ON:], labels[TRAINED_ON:])


def rows() -> Iterator[Row]:
    """Yield the rows of the section "Speed and memory"."""
    digits = Digits.of(trained())
    with tempfile.TemporaryDirectory() as name:
        digits.model.save(Path(name) / "model.keras")
        yield from _end_to_end(digits)
        yield _coverage_alone(digits)
        yield from _whole(Path(name))
    yield from _neurons()
    yield from _large()
    yield from _guidance()


def _config(num: int, schedule: str, **options: Any) -> CampaignConfig:
    """Return a campaign of `num` mutants in all, a twentieth of them the random sample."""
    from airflow_mlops.robustness.config import CampaignConfig

    return CampaignConfig(max_mutants=num - num // 20, sample_mutants=num // 20, schedule=schedule, criteria=("kmnc",), **options)


def _plain_passes(model: Any, inputs: Any) -> dict[str, Callable[[], object]]:
    """Return by batch size what asks the model about all `inputs`, and nothing else."""
    import tensorflow as tf

    def asked(size: int) -> Callable[[], object]:
        forward = tf.function(lambda batch: model(batch, training=False), input_signature=[tf.TensorSpec((size, *inputs.shape[1:]))])
        return lambda: [forward(inputs[start : start + size]).numpy() for start in range(0, len(inputs), size)]

    return {f"batch {size}": asked(size) for size in PLAIN_BATCHES}


def _many(inputs: Any, num: int) -> Any:
    import numpy as np

    return np.resize(inputs, (num, *inputs.shape[1:]))


def _timed(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the least seconds of each call, all taken in turn after one turn that does not count."""
    turns = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds + 1)]
    return {name: min(turn[name] for turn in turns[1:]) for name in calls}


def _best(took: dict[str, float], prefix: str) -> float:
    return min(value for name, value in took.items() if name.startswith(prefix))


def _end_to_end(digits: Digits) -> Iterator[Row]:
    """Everything that `run_campaign` does, per mutant: seeds, mutants, coverage, queue, minimising, clusters, files and report."""
    from airflow_mlops.robustness.campaign import run_campaign
    from airflow_mlops.robustness.models import Probe
    from airflow_mlops.robustness.profile import Profile

    profile = Profile.of(Probe(digits.model), digits.train_inputs)

    def campaign(num: int, schedule: str) -> None:
        with tempfile.TemporaryDirectory() as name:
            run_campaign(digits.model, digits.inputs, digits.labels, config=_config(num, schedule), out_dir=Path(name), profile=profile)

    calls = _plain_passes(digits.model, _many(digits.inputs, NUM_INPUTS))
    calls |= {f"{schedule} {num}": partial(campaign, num, schedule) for schedule in ("deephunter", "bandit") for num in (FEW, MANY)}
    took = _timed(calls)
    plain = _best(took, "batch") / NUM_INPUTS * 1e6
    limit = "plain forward pass, per input"
    for schedule in ("deephunter", "bandit"):
        few, many = took[f"{schedule} {FEW}"], took[f"{schedule} {MANY}"]
        yield Row(f"campaign of {MANY:,} mutants, {schedule}, per mutant", many / MANY * 1e6, limit, plain, allowed=3.0, unit="us")
        # What a campaign costs once is not in it: compiling, minimising what was found, clusters, report.
        yield Row("of it each further mutant", (many - few) / (MANY - FEW) * 1e6, limit, plain, allowed=3.0, unit="us")
        yield Row("of it per mutant", many / MANY * 1e6, f"the same in a campaign of {FEW:,}", few / FEW * 1e6, allowed=1.1, unit="us")


def _coverage_alone(digits: Digits) -> Row:
    """A forward pass that gives all neurons, and KMNC of them, against the plain pass, on mutants that were never seen before."""
    import numpy as np

    from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
    from airflow_mlops.robustness.kinds import Images
    from airflow_mlops.robustness.models import Probe
    from airflow_mlops.robustness.profile import Profile

    kind, random = Images(), np.random.default_rng(0)
    mutator, key = random.integers(0, len(kind.default), NUM_INPUTS), random.integers(0, 2**32, NUM_INPUTS, dtype=np.uint32)
    severity = random.random(NUM_INPUTS, np.float32)
    mutants = kind.mutate(_many(digits.inputs, NUM_INPUTS), mutator, severity, key, names=kind.default)

    def watched(probe: Probe, profile: Profile) -> None:
        criterion = CRITERIA["kmnc"](profile, CoverageOptions())
        for start in range(0, NUM_INPUTS, 4_096):
            criterion.observe(probe.answer(mutants[start : start + 4_096]))

    calls = _plain_passes(digits.model, mutants)
    for size in MICRO_BATCHES:
        probe = Probe(digits.model, micro_batch=size)
        calls[f"watched {size}"] = partial(watched, probe, Profile.of(probe, digits.train_inputs))
    took = _timed(calls, 2 * ROUNDS)
    ours, plain = (_best(took, prefix) / NUM_INPUTS * 1e6 for prefix in ("watched", "batch"))
    return Row("forward pass with all neurons and KMNC, per input", ours, "plain forward pass, per input", plain, allowed=1.5, unit="us")


def _whole(home: Path) -> Iterator[Row]:
    """5,000 iterations x 20 mutants in a fresh process, which has everything to import and to compile."""
    found = _fresh("long", home)
    limit = found["plain"]
    yield Row("5,000 iterations x 20 mutants, fresh process", found["seconds"], "plain pass of 100,000 inputs; 10 x + 2 s", limit, 10 + 2 / limit)
    yield Row("its peak memory, TensorFlow included", found["memory"], "allowed", 1_200, 1.0, unit="MB")
    yield Row("its files", found["files"], "allowed", 10, 1.0, unit="files")


def _neurons() -> Iterator[Row]:
    """KMNC of networks of more and more neurons, on inputs that fill their ranges."""
    took = _timed({str(num): _observed(num) for num in NEURONS})
    least, *larger = ((num, took[str(num)] / num * 1e6) for num in NEURONS)
    for num, each in larger:
        yield Row(f"KMNC of 1,024 inputs, {num:,} neurons, per neuron", each, f"the same, {least[0]:,} neurons", least[1], 1.5, unit="us")


def _observed(num: int) -> Callable[[], object]:
    import numpy as np

    from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
    from airflow_mlops.robustness.models import Answers, LayerSpan
    from airflow_mlops.robustness.profile import Profile

    layers = tuple(LayerSpan(f"layer{start}", start, start + 250) for start in range(0, num, 250))
    profile = Profile("sha256:none", layers, 1, np.zeros(num), np.ones(num), np.zeros(num), np.ones(num))
    outputs = np.full((1_024, 2), 0.5, np.float32)
    neurons = np.random.default_rng(0).random((1_024, num), np.float32)
    answers = Answers(outputs, np.zeros(1_024, np.int64), outputs[:, 0], neurons)
    return lambda: CRITERIA["kmnc"](profile, CoverageOptions()).observe(answers)


def _large() -> Iterator[Row]:
    """A campaign on a ResNet-50 with random weights, in a fresh process."""
    found = _fresh("large")
    what = f"ResNet-50, {found['neurons']:,} neurons: coverage state"
    yield Row(what, found["state"], "allowed", 200, 1.0, unit="MB")
    yield Row(f"its peak memory in a campaign of {found['mutants']} mutants", found["memory"], "its plain forward pass", found["plain"], unit="MB")


def _guidance() -> Iterator[Row]:
    """Distinct defects (seed, wrong answer) at an equal budget, guided and unguided: corners of the grid that the proofs measure whole."""
    for name, num_seeds, num_mutants, schedule in GUIDED:
        one = guidance.cell(name, num_seeds, num_mutants, schedule)
        (mean, low, high), (_, unguided) = one.ratio, one.means()
        wanted = (guidance.WANTED if one.is_growing else 1.0) if schedule == guidance.DEFAULT else None
        what = f"distinct defects, {schedule}: {name}, {num_seeds:,} x {num_mutants:,}"
        # So that ours / limit is the mean ratio of the pairs, and not the ratio of the means.
        yield Row(what, mean * unguided, "unguided control", unguided, wanted=wanted, unit="", interval=(low, high))


def _fresh(what: str, *arguments: Path) -> dict[str, Any]:
    """Return what a fresh process measures."""
    command = [sys.executable, "-m", "tests.benchmarks.robustness", what, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _peak() -> float:
    """Return the most memory this program ever had, in MB; `getrusage` would also count that of the process it was started from."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 / MEGABYTE if found else float("nan")


def long(home: str) -> dict[str, Any]:
    """Run DeepHunter's campaign of 100,000 mutants, and after it the plain pass of as many inputs."""
    import keras

    from airflow_mlops.robustness.campaign import CampaignConfig, run_campaign

    digits = Digits.of(keras.models.load_model(Path(home) / "model.keras"))
    config = CampaignConfig(max_mutants=100_000, schedule="deephunter", criteria=("kmnc",))
    with tempfile.TemporaryDirectory() as name:
        took = seconds(partial(run_campaign, digits.model, digits.inputs, digits.labels, config=config, out_dir=Path(name)))
        files = sum(path.is_file() for path in Path(name).rglob("*"))
    memory = _peak()
    passes = _timed(_plain_passes(digits.model, _many(digits.inputs, NUM_INPUTS)))
    return {"seconds": took, "memory": memory, "files": files, "plain": _best(passes, "batch") / NUM_INPUTS * 100_000}


def large() -> dict[str, Any]:
    """Run a small campaign on a ResNet-50; its inputs are noise, and their labels what it answers."""
    import keras
    import numpy as np

    from airflow_mlops.robustness.campaign import CampaignConfig, finish
    from airflow_mlops.robustness.lab import Lab
    from airflow_mlops.robustness.shards import SHARD_FILE, run_shard

    keras.utils.set_random_seed(1)
    model = keras.applications.ResNet50(weights=None, classes=10)
    inputs = np.random.default_rng(0).random((8, 224, 224, 3), np.float32)
    labels = model.predict_on_batch(inputs).argmax(axis=1)
    plain = _peak()
    lab = Lab.of(model, inputs, labels, CampaignConfig(max_mutants=32, sample_mutants=16, criteria=("kmnc",)), None)
    with tempfile.TemporaryDirectory() as name:
        islands = run_shard(lab, Path(name) / SHARD_FILE)
        report = finish(lab, [Path(name) / SHARD_FILE], Path(name))
    states = [array for arms in islands.values() for state in arms.values() for key, array in state.items() if key.startswith("criteria.")]
    # While islands are merged two criteria are in memory, beside the states of all islands and what the seeds covered.
    held = 2 * _live(lab) + sum(array.nbytes for array in states) + sum(array.nbytes for state in lab.known.values() for array in state.values())
    mutants = report.num_mutants + report.sample.num_mutants
    return {"neurons": lab.probe.num_neurons, "state": held / MEGABYTE, "memory": _peak(), "plain": plain, "mutants": mutants}


def _live(lab: Lab) -> int:
    """Return the bytes of the arrays of all criteria after they have seen something, the profile's included."""
    import numpy as np

    total = sum(array.nbytes for array in vars(lab.profile).values() if isinstance(array, np.ndarray))
    for criterion in lab.criteria().values():
        criterion.observe(lab.probe.answer(lab.inputs))
        held = [criterion, *(part for _, part in getattr(criterion, "_parts", ()))]
        arrays = [array for owner in held for array in vars(owner).values() if isinstance(array, np.ndarray)]
        total += sum(array.nbytes for array in arrays if array.base is None)  # a part's bitmap is the whole's
    return int(total)


MEASURED: dict[str, Callable[..., dict[str, Any]]] = {"long": long, "large": large}

if __name__ == "__main__":
    print(json.dumps(MEASURED[sys.argv[1]](*sys.argv[2:])))
