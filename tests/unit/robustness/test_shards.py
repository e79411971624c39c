"""Whatever happens to a campaign on its way, it ends with the same result: every interruption, every share-out, a kill, a full disk."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from airflow_mlops.artifacts import clear_abandoned, writer
from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness import shards
from airflow_mlops.robustness.campaign import CampaignConfig, finish, run_campaign
from airflow_mlops.robustness.coverage import CoverageOptions
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.schedules import SCHEDULES
from airflow_mlops.robustness.shards import AT_ONCE, SAVE_SECONDS, SHARD_FILE, read_islands, run_shard, write_islands

# Generations of 16 candidates, so that every arm takes several.
CONFIG = CampaignConfig(max_mutants=900, sample_mutants=500, micro_batch=16, coverage=CoverageOptions(kmnc_sections=50), seed=5)
ROOT = Path(__file__).parents[3]


class Interrupted(BaseException):
    """Not an Exception, so that nobody can handle it."""


def lab_of(digits, **changes):
    return Lab.of(digits.model, digits.inputs, digits.labels, dataclasses.replace(CONFIG, **changes), digits.profile)


@pytest.fixture(scope="module")
def lab(digits):
    return lab_of(digits)


def always():
    """A clock by which every step is time to save."""
    return itertools.count(step=SAVE_SECONDS).__next__


def ledger_hash(lab, files, tmp_path):
    return finish(lab, files, tmp_path / "report").ledger_hash


def flat(islands):
    return {(island, arm, name): array.tobytes() for island, arms in islands.items() for arm, state in arms.items() for name, array in state.items()}


def saved(lab, monkeypatch, path, stop_after=None, part=(0, 1)):
    """Run the campaign; return what every save wrote, and end by an interruption after `stop_after` of them."""
    written = []

    def write(path, fingerprint, islands):
        write_islands(path, fingerprint, islands)
        written.append(flat(read_islands(path, lab.fingerprint)))
        if len(written) == stop_after:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_islands", write)
        with suppress(Interrupted):
            run_shard(lab, path, part, clock=always())
    return written


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory):
    """The file and the hash of the campaign that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / SHARD_FILE
    run_shard(lab, path)
    return flat(read_islands(path, lab.fingerprint)), ledger_hash(lab, [path], path.parent)


def test_interrupted_after_every_single_save_it_saves_the_same_as_without(lab, whole, monkeypatch, tmp_path):
    straight = saved(lab, monkeypatch, tmp_path / "straight.npz")
    assert len(straight) > 20
    assert straight[-1] == whole[0]
    halting, path = [], tmp_path / SHARD_FILE
    while len(halting) < len(straight):
        halting += saved(lab, monkeypatch, path, stop_after=1)
        assert halting[-1] == straight[len(halting) - 1]
    assert ledger_hash(lab, [path], tmp_path) == whole[1]


@pytest.mark.parametrize(
    "config", [{"criteria": ("ann", "nc"), "num_islands": 1, "schedule": "uniform"}, {"criteria": ("tknp",), "schedule": "deeptest"}]
)
def test_other_criteria_and_schedules_are_gone_on_with_after_every_save(digits, monkeypatch, tmp_path, config):
    lab = lab_of(digits, **config, max_mutants=300, sample_mutants=20)
    straight, halting = saved(lab, monkeypatch, tmp_path / "straight.npz"), []
    while len(halting) < len(straight):
        halting += saved(lab, monkeypatch, tmp_path / SHARD_FILE, stop_after=1)
    assert halting == straight
    assert len(straight) >= 5


def test_killed_with_signal_9_it_ends_in_another_process_with_the_same_result(digits, lab, whole, tmp_path):
    digits.model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "digits.npz", train=digits.train_inputs, inputs=digits.inputs, labels=digits.labels)
    program = (
        "import itertools, pathlib, sys, time, keras, numpy as np\n"
        "from airflow_mlops.robustness.profile import Profile\n"
        "from airflow_mlops.robustness.models import Probe\n"
        "from airflow_mlops.robustness.shards import run_shard\n"
        "from tests.unit.robustness.test_shards import CONFIG, SHARD_FILE, Lab, always\n"
        "here, data = pathlib.Path(sys.argv[1]), np.load(sys.argv[1] + '/digits.npz')\n"
        "model, tick = keras.models.load_model(here / 'model.keras'), always()\n"
        "profile = Profile.of(Probe(model), data['train'])\n"
        "lab = Lab.of(model, data['inputs'], data['labels'], CONFIG, profile)\n"
        "run_shard(lab, here / SHARD_FILE, clock=lambda: time.sleep(0.2) or tick())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    try:
        while not (tmp_path / SHARD_FILE).exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    begun = flat(read_islands(tmp_path / SHARD_FILE, lab.fingerprint))
    assert 0 < len(begun) < len(whole[0])
    run_shard(lab, tmp_path / SHARD_FILE)
    assert flat(read_islands(tmp_path / SHARD_FILE, lab.fingerprint)) == whole[0]
    assert ledger_hash(lab, [tmp_path / SHARD_FILE], tmp_path) == whole[1]


def test_a_killed_shard_is_missed_and_then_gone_on_with(lab, whole, monkeypatch, tmp_path):
    files = [tmp_path / f"{number}.npz" for number in range(3)]
    for number in (2, 0):  # in any order
        run_shard(lab, files[number], (number, 3))
    saved(lab, monkeypatch, files[1], stop_after=2, part=(1, 3))
    with pytest.raises(RobustnessError, match=r"Island 1 of 4 is missing or unfinished in its guided arm \(\d+ of 225 mutants\)"):
        finish(lab, files, tmp_path)
    run_shard(lab, files[1], (1, 3))
    assert ledger_hash(lab, files, tmp_path) == whole[1]


def test_a_shard_without_an_island_writes_a_file_that_counts_for_nothing(lab, whole, tmp_path):
    files = [tmp_path / f"{number}.npz" for number in range(6)]
    for number, file in enumerate(files):
        run_shard(lab, file, (number, 6))
    assert read_islands(files[5], lab.fingerprint) == {}
    assert ledger_hash(lab, files, tmp_path) == whole[1]


@pytest.mark.parametrize("schedule", ["deephunter", "tensorfuzz", "deeptest", "uniform"])
def test_neither_shards_nor_batch_size_decide_whatever_the_schedule_and_the_criteria(digits, schedule, tmp_path):
    hashes = []
    for num_shards, batch_size in ((1, 512), (2, 64), (4, 512)):
        config = {"schedule": schedule, "criteria": ("nbc", "snac", "tknc", "bknc", "tknp"), "batch_size": batch_size}
        lab = lab_of(digits, **config, max_mutants=400, sample_mutants=80)
        files = [tmp_path / f"{num_shards}-{number}.npz" for number in range(num_shards)]
        for number, file in enumerate(files):
            run_shard(lab, file, (number, num_shards))
        hashes.append(ledger_hash(lab, files, tmp_path))
    assert hashes[0] == hashes[1] == hashes[2]


def test_ann_runs_on_one_island_and_refuses_shards(digits, tmp_path):
    lab = lab_of(digits, criteria=("ann",), num_islands=1, max_mutants=300, sample_mutants=50)
    run_shard(lab, tmp_path / SHARD_FILE)
    found = finish(lab, [tmp_path / SHARD_FILE], tmp_path)
    assert found.coverage["ann"] > 1
    with pytest.raises(SpecError, match=r"'ann' depends on the order.*Run one shard, or leave it out"):
        run_shard(lab, tmp_path / "half.npz", (0, 2))


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_write_that_is_cut_off_leaves_the_old_file_whole(lab, monkeypatch, tmp_path, when):
    path = tmp_path / SHARD_FILE
    before = saved(lab, monkeypatch, path, stop_after=3)[-1]

    def cut_off(*arguments):
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(*(("os.fsync", cut_off) if when == "fsync" else (Path, "replace", cut_off)))
        with pytest.raises(Interrupted):
            run_shard(lab, path, clock=always())
    assert flat(read_islands(path, lab.fingerprint)) == before


def mark(process):
    """Return the mark of another process of this host in the name of what it writes."""
    return f"{writer().partition('-')[0]}-{process.pid}"


def test_what_a_killed_writer_left_is_cleared_away(lab, monkeypatch, tmp_path):
    with subprocess.Popen(["true"]) as killed:
        killed.wait()
    (tmp_path / f".{SHARD_FILE}.{mark(killed)}.x1y2").write_bytes(b"half a file")
    saved(lab, monkeypatch, tmp_path / SHARD_FILE, stop_after=1)
    assert [path.name for path in tmp_path.iterdir()] == [SHARD_FILE]


def test_what_another_process_is_writing_is_left_alone(lab, monkeypatch, tmp_path):
    with subprocess.Popen(["sleep", "60"]) as another:
        (tmp_path / f".{SHARD_FILE}.{mark(another)}.x1y2").write_bytes(b"half a file")
        saved(lab, monkeypatch, tmp_path / SHARD_FILE, stop_after=1)
        another.kill()
    assert len(list(tmp_path.iterdir())) == 2
    clear_abandoned(tmp_path / SHARD_FILE)
    assert [path.name for path in tmp_path.iterdir()] == [SHARD_FILE]


def test_a_state_of_objects_is_refused_before_it_is_written(lab, monkeypatch, tmp_path):
    monkeypatch.setattr(SCHEDULES[lab.config.schedule], "state", lambda schedule: {"seen": np.array([{}], dtype=object)})
    with pytest.raises(RobustnessError, match=r"cannot be stored.*schedule's and criterion's `state`"):
        run_shard(lab, tmp_path / SHARD_FILE, clock=always())


@contextmanager
def disk_of(num_bytes):
    """A disk on which a file can have no more bytes than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_with_advice_and_the_campaign_goes_on_when_there_is_room(lab, whole, tmp_path):
    path = tmp_path / SHARD_FILE
    with (
        disk_of(sum(map(len, whole[0].values()))),
        pytest.raises(RobustnessError, match=r"cannot be written to .*File too large.*make room"),
    ):
        run_shard(lab, path, clock=always())
    begun = flat(read_islands(path, lab.fingerprint))
    assert 0 < len(begun) < len(whole[0])
    assert [file.name for file in tmp_path.iterdir()] == [SHARD_FILE]
    run_shard(lab, path)
    assert ledger_hash(lab, [path], tmp_path) == whole[1]


def test_results_that_do_not_fit_on_the_disk_end_with_advice_too(digits, lab, whole, tmp_path):
    run_shard(lab, tmp_path / SHARD_FILE)
    with disk_of(500), pytest.raises(RobustnessError, match=r"results cannot be written to .*File too large.*Make room"):
        finish(lab, [tmp_path / SHARD_FILE], tmp_path)
    assert ledger_hash(lab, [tmp_path / SHARD_FILE], tmp_path) == whole[1]


def test_a_directory_in_the_way_is_told(lab, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RobustnessError, match="cannot be written"):
        run_shard(lab, tmp_path / "file" / SHARD_FILE, clock=always())


def test_whatever_byte_of_the_file_is_altered_it_is_read_as_written_or_refused(lab, whole, monkeypatch, tmp_path):
    path = tmp_path / SHARD_FILE
    written = saved(lab, monkeypatch, path, stop_after=2)[-1]
    content, num_refused = path.read_bytes(), 0
    places = np.linspace(0, len(content) - 1, 150).astype(int).tolist()
    for at in places:
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            found = read_islands(path, lab.fingerprint)
        except RobustnessError:
            num_refused += 1
        else:
            assert flat(found) == written
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RobustnessError, match="Remove it, and run its shard again"):
        read_islands(path, lab.fingerprint)
    assert num_refused > len(places) / 2


def counted_steps(monkeypatch):
    """Return a list that grows by one with each step of an arm."""
    made, step = [], shards.Arm.step
    monkeypatch.setattr(shards.Arm, "step", lambda arm: made.append(arm.island) or step(arm))
    return made


def test_earlier_files_of_this_campaign_are_gone_on_with_and_others_passed_over(digits, lab, whole, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other, broken, short, long = (tmp_path / name / SHARD_FILE for name in ("other", "broken", "short", "long"))
    saved(lab_of(digits, seed=6), monkeypatch, other, stop_after=2)
    broken.parent.mkdir()
    broken.write_bytes(b"PK not quite")
    saved(lab, monkeypatch, short, stop_after=2)
    saved(lab, monkeypatch, long, stop_after=6)
    caplog.clear()
    path = tmp_path / "new" / SHARD_FILE
    first = saved(lab, monkeypatch, path, stop_after=1)
    assert not any("Going on" in line for line in caplog.messages)
    path.unlink()
    steps = counted_steps(monkeypatch)
    run_shard(lab, path, earlier=[other, broken, short, long, tmp_path / "missing"])
    left = len(steps)
    assert any(re.search("passed over.*another campaign", line) for line in caplog.messages)
    assert any(re.search("passed over.*holds no islands", line) for line in caplog.messages)
    run_shard(lab, tmp_path / "straight.npz")
    assert len(steps) - left == left + 6 * AT_ONCE
    assert flat(read_islands(path, lab.fingerprint)) == whole[0] != first


def test_arms_run_at_once_as_far_as_their_corpora_have_room(digits, lab):
    assert shards._at_once(lab) == AT_ONCE
    assert shards._at_once(lab_of(digits, max_corpus=4 * shards.ROOM // digits.inputs[0].nbytes)) == 1


def test_a_shard_takes_its_own_islands_from_the_files_of_another_share_out(lab, whole, tmp_path):
    run_shard(lab, tmp_path / "whole.npz")
    path = tmp_path / SHARD_FILE
    assert set(run_shard(lab, path, (1, 2), earlier=[tmp_path / "whole.npz"])) == {1, 3}
    assert flat(read_islands(path, lab.fingerprint)).items() <= whole[0].items()


@pytest.fixture
def told(lab, tmp_path, caplog):
    """What the log says of a campaign whose steps take five seconds each."""
    caplog.set_level(logging.INFO, logger="airflow_mlops")
    run_shard(lab, tmp_path / SHARD_FILE, clock=itertools.count(step=5).__next__)
    return caplog.messages


def test_the_log_tells_a_watching_person_how_far_it_is_and_how_long_it_takes(told):
    pattern = r" *(\d+) % \(([\d,]+) of 1,400 mutants, (\d+) per second\), (\d+) (s|min) left: ([\d,]+) distinct defects of the guided arm; (.*)"
    lines = [re.fullmatch(pattern, line).groups() for line in told[:-1]]
    assert len(lines) > 20
    made = [int(line[1].replace(",", "")) for line in lines]
    assert made == sorted(made)
    assert [int(line[0]) for line in lines] == [round(100 * num / 1400) for num in made]
    for number, (line, num) in enumerate(zip(lines, made, strict=True), start=1):
        rate = num / (5 * number)
        assert int(line[2]) == round(rate)
        assert int(line[3]) * {"s": 1, "min": 60}[line[4]] == pytest.approx((1400 - num) / rate, abs=0.5 if line[4] == "s" else 30)
        assert re.fullmatch(r"island [1-4] of 4 covers nc \d+\.\d%, kmnc \d+\.\d%(; island .*)?", line[6])
    assert {name for line in lines for name in re.findall(r"island \d", line[6])} == {f"island {number}" for number in range(1, 5)}


def test_the_log_counts_the_distinct_defects_of_the_report(told, lab, tmp_path):
    num_distinct = finish(lab, [tmp_path / SHARD_FILE], tmp_path).num_distinct_defects
    took = shards._duration(5 * len(told))
    assert told[-1] == f"All 1,400 mutants are made, the last 1,400 in {took}: {num_distinct} distinct defects of the guided arm."


def test_a_resumed_campaign_tells_the_speed_of_this_run_and_not_of_the_last(lab, monkeypatch, tmp_path, caplog):
    path = tmp_path / SHARD_FILE
    saved(lab, monkeypatch, path, stop_after=8)
    made = sum(int(state["counts"][1]) for arms in read_islands(path, lab.fingerprint).values() for state in arms.values())
    caplog.set_level(logging.INFO, logger="airflow_mlops")
    run_shard(lab, path, clock=itertools.count(step=5).__next__)
    assert caplog.messages[0] == f"Going on with {made} of 1,400 mutants, which an interrupted run has made."
    now, rate = re.search(r"([\d,]+) of 1,400 mutants, (\d+) per second", caplog.messages[1]).groups()
    assert int(rate) == round((int(now) - made) / 5)
    assert f"All 1,400 mutants are made, the last {1400 - made:,} in " in caplog.messages[-1]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7199, "120 min"), (9000, "2.5 h")])
def test_durations_are_said_as_a_person_says_them(seconds, text):
    assert shards._duration(seconds) == text


def test_a_budget_smaller_than_the_islands_is_shared_out_all_the_same(digits, tmp_path):
    config = dataclasses.replace(CONFIG, max_mutants=3, sample_mutants=1)
    found = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path, profile=digits.profile)
    assert (found.num_mutants, found.sample.num_mutants, found.control.num_mutants) == (3, 1, 1)
