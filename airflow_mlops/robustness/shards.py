"""Islands, run by whoever has time: alone, or shared out over shards; after a `kill -9` at any moment with the same result.

An island is a pure function of the campaign and its number: it has its own seeds, random numbers, corpus, criteria and schedule, and none waits
for another. So the number of shards, their order and interruptions decide nothing. What a shard has done lies in one file, replaced atomically.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.artifacts import clear_abandoned
from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.arm import Arm
from airflow_mlops.robustness.coverage import CRITERIA
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.stored import UNREADABLE, write_arrays

log = logging.getLogger(__name__)

SHARD_FILE = "islands.npz"
SAVE_SECONDS = 15.0  # a resumed campaign repeats at most this much
LOG_SECONDS = 5.0
AT_ONCE = 3  # arms: what one does in Python overlaps with what TensorFlow does for the others
ROOM = 256 << 20  # bytes that the corpora of arms that run at once may take; one may take more
GUIDED, SAMPLE = "guided", "sample"
STREAMS = {GUIDED: 0, SAMPLE: 1}

State = dict[str, npt.NDArray[Any]]
Islands = dict[int, dict[str, State]]  # island -> arm -> state
Arms = Mapping[tuple[int, str], Arm]  # (island, arm)


def budget_of(lab: Lab, island: int, name: str) -> int:
    """Return the mutants that an arm is to make: the campaign's, dealt out to the islands as evenly as it can be."""
    total = lab.config.max_mutants if name == GUIDED else lab.config.sample_mutants
    return total // lab.num_islands + (island < total % lab.num_islands)


def arm_of(lab: Lab, island: int, name: str, *, watched: bool = True) -> Arm:
    """Return a fresh arm; the criteria watch the guided one, unless nobody is to go on with it (not `watched`)."""
    guided = name == GUIDED
    schedule = lab.config.schedule if guided else "unguided"
    return Arm(lab, island, schedule=schedule, budget=budget_of(lab, island, name), stream=STREAMS[name], watched=guided and watched)


def run_shard(
    lab: Lab, path: Path, part: tuple[int, int] = (0, 1), *, earlier: Sequence[Path] = (), clock: Callable[[], float] = time.monotonic
) -> Islands:
    """Run the islands of `part` (number of the shard from 0 on, number of shards), keep the file `path` up to date, and return their states.

    What interrupted runs of the same campaign left at `path`, or in the `earlier` files, is gone on with; earlier files of other campaigns, and
    unreadable ones, are passed over. `clock` tells seconds. Raises `SpecError` for impossible shards, `RobustnessError` when `path` holds something
    else or cannot be written.
    """
    shard, num_shards = part
    if not 0 <= shard < num_shards:
        raise SpecError(f"Shard {shard} of {num_shards} was asked for; shards are numbered from 0 to {num_shards - 1}.")
    if num_shards > 1 and (alone := [name for name in lab.config.criteria if not CRITERIA[name].mergeable]):
        raise SpecError(f"Criterion {alone[0]!r} depends on the order of the inputs, so its shards cannot be merged. Run one shard, or leave it out.")
    mine = range(shard, lab.num_islands, num_shards)
    done = _begun(lab, path, mine, earlier)
    watch = _Watch(lab, mine, done, clock)
    waiting, at_once = _unfinished(lab, mine, done), _at_once(lab)
    running: dict[tuple[int, str], Arm] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while running := {**running, **dict(itertools.islice(waiting, at_once - len(running)))}:
            list(pool.map(Arm.step, running.values()))
            to_save = watch.saw(running)
            for (island, name), arm in running.items():
                if to_save or arm.done:
                    done[island][name] = arm.state()
            if to_save:
                write_islands(path, lab.fingerprint, done)
            running = {which: arm for which, arm in running.items() if not arm.done}
    write_islands(path, lab.fingerprint, done)
    watch.ended()
    return done


def _at_once(lab: Lab) -> int:
    return max(1, min(AT_ONCE, ROOM // (lab.inputs[:1].nbytes * lab.config.max_corpus // lab.num_islands + 1)))


def _unfinished(lab: Lab, islands: Sequence[int], done: Islands) -> Iterator[tuple[tuple[int, str], Arm]]:
    """Yield the arms that have mutants to make, as far as they are `done`."""
    for island, name in itertools.product(islands, STREAMS):
        arm = arm_of(lab, island, name)
        if (known := done.setdefault(island, {}).get(name)) is not None:
            arm.restore(known)
        if not arm.done:
            yield (island, name), arm
        else:
            done[island][name] = arm.state()


def _begun(lab: Lab, path: Path, mine: Sequence[int], earlier: Sequence[Path]) -> Islands:
    """Return what is there of the islands in `path`, and of `mine` in the earlier files: of every arm the state that is furthest."""
    clear_abandoned(path)
    done = read_islands(path, lab.fingerprint) if path.exists() else {}
    for file in earlier:
        try:
            found = read_islands(file, lab.fingerprint)
        except RobustnessError as error:
            log.info("An earlier file is passed over. %s", error)
            continue
        for island in set(mine) & set(found):
            known = done.setdefault(island, {})
            known.update({name: state for name, state in found[island].items() if name not in known or _age(state) > _age(known[name])})
    return done


def _age(state: State) -> int:
    return int(state["counts"][0])  # generations: of two states of one arm the older holds all that the younger does


class _Watch:
    """Says in the log how the islands of a shard go, and when it is time to save; a `clock` tells seconds."""

    def __init__(self, lab: Lab, islands: Sequence[int], done: Islands, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = self._logged = self._saved = clock()
        arms = [(island, name) for island in islands for name in STREAMS]
        self._total = sum(budget_of(lab, *arm) for arm in arms)
        known = {arm: state for arm in arms if (state := done.get(arm[0], {}).get(arm[1])) is not None}
        self._made = {arm: int(state["counts"][1]) for arm, state in known.items()}
        self._distinct = {island: len(state["pairs"]) for (island, name), state in known.items() if name == GUIDED}
        self._before, self._covered = sum(self._made.values()), ""
        if self._before:
            log.info("Going on with %s of %s mutants, which an interrupted run has made.", f"{self._before:,}", f"{self._total:,}")

    def saw(self, arms: Arms) -> bool:
        """Take note of a step of each arm, and return whether it is time to save."""
        self._made |= {which: arm.num_mutants for which, arm in arms.items()}
        guided = [arm for (_, name), arm in arms.items() if name == GUIDED]
        self._distinct |= {arm.island: arm.num_distinct for arm in guided}
        now = self._clock()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._tell(guided, now - self._started)
        if now - self._saved < SAVE_SECONDS:
            return False
        self._saved = now
        return True

    def ended(self) -> None:
        """Say in the log what came of it."""
        seconds = self._clock() - self._started
        made = sum(self._made.values())
        log.info("All %s mutants are made, the last %s in %s: %s.", f"{made:,}", f"{made - self._before:,}", _duration(seconds), self._found())

    def _tell(self, guided: Sequence[Arm], seconds: float) -> None:
        made = sum(self._made.values())
        rate = (made - self._before) / seconds
        left = _duration((self._total - made) / rate) if rate else "unknown time"
        share, numbers = made / max(1, self._total), f"{made:,} of {self._total:,} mutants, {rate:,.0f} per second"
        self._covered = "".join(map(_coverage, guided)) or self._covered
        log.info("%3.0f %% (%s), %s left: %s%s", 100 * share, numbers, left, self._found(), self._covered)

    def _found(self) -> str:
        return f"{sum(self._distinct.values()):,} distinct defects of the guided arm"


def _coverage(arm: Arm) -> str:
    values = (f"{name} {criterion.value():{'.1%' if criterion.is_ratio else ',.0f'}}" for name, criterion in arm.criteria.items())
    return f"; island {arm.island + 1} of {arm.lab.num_islands} covers {', '.join(values)}"


def _duration(seconds: float) -> str:
    """Return seconds as a person says them: ``45 s``, ``12 min``, ``3.5 h``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_islands(path: Path, fingerprint: str, islands: Islands) -> None:
    """Write the states of islands as one file, all of it or nothing; raise `RobustnessError` if the disk refuses."""
    arrays = {f"{island}|{arm}|{name}": array for island, arms in islands.items() for arm, state in arms.items() for name, array in state.items()}
    try:
        # A damaged directory of a zip file can hide some of what is in it: the number of arrays tells.
        write_arrays(path, {"fingerprint": np.array(fingerprint), "num_arrays": np.array(len(arrays)), **arrays})
    except OSError as error:
        raise RobustnessError(
            f"The campaign's state cannot be written to {path}: {error}. What was written before is whole; make room, or a directory that can be "
            "written to, and start it again: it goes on from there."
        ) from error
    except ValueError as error:
        raise RobustnessError(
            f"The campaign's state cannot be stored: {error}. Expected plain arrays from every schedule's and criterion's `state`; mend it."
        ) from error


def read_islands(path: Path, fingerprint: str) -> Islands:
    """Return the states in a file; raise `RobustnessError` if it is none, or of another campaign."""
    islands: Islands = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = str(stored["fingerprint"])
            keys = [key for key in stored.files if "|" in key]
            if len(keys) != int(stored["num_arrays"]):
                raise ValueError(f"it has {len(keys)} arrays, expected {stored['num_arrays']}")
            # Another campaign's may be large, and nobody wants it.
            for key in keys if found == fingerprint else ():
                island, arm, name = key.split("|", 2)
                islands.setdefault(int(island), {}).setdefault(arm, {})[name] = stored[key]
    except UNREADABLE as error:
        raise RobustnessError(f"{path} holds no islands of a campaign ({error}). Remove it, and run its shard again.") from error
    if found != fingerprint:
        raise RobustnessError(
            f"{path} belongs to another campaign ({found[:19]}..., this is {fingerprint[:19]}...): another model, other inputs, another "
            "configuration or other code. Give every campaign a directory of its own, or remove the file."
        )
    return islands
