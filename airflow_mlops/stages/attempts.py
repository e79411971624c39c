"""The attempts at a stage in the cluster, counted in the ledger: which one is next, and what the last one came to.

Attempts are numbered over the life of a task in its run, because their numbers name pods. Their budgets, and a record that was found, hold for
one *chain* of tries: whoever clears the task begins a new one, and so does a request that changed between two tries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_mlops.stages.pod import Outcome

if TYPE_CHECKING:
    from airflow_mlops.ledger.store import Store


@dataclass(frozen=True)
class Attempt:
    """Attempt `number` (from 1) at a stage: those before it were interrupted `num_interruptions` times and `step` times too small.

    `settled`: it left its result already, and only whoever asked for that was stopped before he returned it. `failure`: that was none, and why.
    """

    number: int
    step: int = 0
    num_interruptions: int = 0
    settled: bool = False
    failure: str = ""

    @classmethod
    def after(cls, settled: Sequence[Mapping[str, str]], chain: str) -> Attempt:
        """Return the attempt for `chain`, a chain of tries, that follows those settled: ``outcome``, ``chain`` and ``failure`` of each."""
        mine = [each["outcome"] for each in settled if each.get("chain") == chain]
        if mine and settled[-1].get("chain") == chain and (mine[-1] == Outcome.RECORD or settled[-1].get("failure")):
            return cls(len(settled), settled=True, failure=settled[-1].get("failure", ""))
        final = [number for number, outcome in enumerate(mine, 1) if outcome in (Outcome.RECORD, Outcome.ERROR, Outcome.FAILED)]
        since = mine[final[-1] if final else 0 :]
        return cls(len(settled) + 1, since.count(Outcome.OUT_OF_MEMORY), since.count(Outcome.INTERRUPTED))


def next_attempt(store: Store, task: str, chain: str) -> Attempt:
    """Return the attempt that `task`, a task in its run, is to make, or has to look at again."""
    from airflow_mlops.ledger.journal import known

    settled: list[Mapping[str, str]] = []
    while one := known(store, _key(task, len(settled) + 1)):
        settled.append(one)
    return Attempt.after(settled, chain)


def settle(store: Store, task: str, number: int, name: str, chain: str, outcome: Outcome, failure: str = "") -> None:
    """Remember what the attempt came to whose pod or job has this name; who settles it a second time changes nothing.

    :param failure: why it fails the task for good: no other attempt follows in its chain.
    """
    from airflow_mlops.ledger.journal import once

    once(store, _key(task, number), "pod", {"pod": name}, lambda: {"outcome": str(outcome), "chain": chain, "failure": failure})


def _key(task: str, number: int) -> str:
    return f"pod:{task}:{number}"
