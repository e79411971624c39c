"""Promotions that are killed, frozen and raced, in processes of their own.

``python -m tests.promotions race URL ROUNDS``, ``kill HOME EVERY [SERVER]`` and ``freeze HOME WHERE [SERVER]``: without the address of a PostgreSQL
server, whose administrator it names, the ledger is on SQLite.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from airflow_mlops.exceptions import LedgerUnavailable, PromotionConflict
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from tests.postgresql import execute

NUM_PROMOTERS = 8
MODEL = "digits"


kill_self, stop_self = (partial(signal.raise_signal, what) for what in (signal.SIGKILL, signal.SIGSTOP))


class Steps:
    """Counts steps, and does something at one of them: kills its own process, if nothing else is said."""

    def __init__(self, last: int, act: Callable[[], object] = kill_self) -> None:
        self.num, self._last, self._act = 0, last, act

    def __call__(self, *_: object) -> None:
        self.num += 1
        if self.num == self._last:
            self._act()


class SteppingStore(Store):
    """A ledger with a step before each statement and each commit, and after each commit."""

    def __init__(self, url: str, step: Steps) -> None:
        super().__init__(url)
        self._step = step
        sa.event.listen(self.engine, "before_cursor_execute", step)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        with super().transaction() as connection:
            yield connection
            self._stepped()
        self._stepped()

    def _stepped(self) -> None:
        if hasattr(self, "_step"):  # not yet while it is opened
            self._step()


class SteppingRegistry:
    """A registry with a step before and after each call."""

    def __init__(self, registry: Any, step: Steps) -> None:
        self._registry, self._step = registry, step

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._step()
            answer = getattr(self._registry, name)(*args)
            self._step()
            return answer

        return call


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a process forked from this one, which has opened nothing yet, and return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Place:
    """A registry and a ledger in a directory, with versions 1 (champion) to 3 of a model."""

    def __init__(self, home: Path, server: str | None, like: Place | None = None) -> None:
        self.home = home
        self.ledger_url = f"sqlite:///{home}/ledger.db" if server is None else new_database(server, like)
        if like is not None:  # MLflow takes seconds to make its tables
            shutil.copytree(like.home, home)
            return
        home.mkdir(parents=True)
        assert ended(forked(self._prepare)) == 0

    def registry(self) -> Any:
        from airflow_mlops.registry.mlflow import MlflowRegistry

        return MlflowRegistry(f"sqlite:///{self.home}/mlflow.db")

    def _prepare(self) -> None:
        from airflow_mlops.registry.promotion import promote

        registry = self.registry()
        with registry.start_run("digits", name="training", tags={}) as run:
            pass
        for version in (1, 2, 3):
            registry.register(MODEL, run.run_id, run.artifact_uri, idempotency_key=str(version))
        promote(Store(self.ledger_url), registry, Claim("first", MODEL, 1, None))
        registry.set_alias(MODEL, "candidate", 2)

    def promote(self, version: int, step: Steps) -> None:
        """As the operator does it."""
        from airflow_mlops.registry.promotion import promote

        store = SteppingStore(self.ledger_url, step)
        registry: Any = SteppingRegistry(self.registry(), step)
        claim = Claim(f"promote:{version}", MODEL, version, 1, 1)
        once(store, claim.intent, "promote", {"version": version}, lambda: {"champion": promote(store, registry, claim).champion})

    def check(self) -> None:
        """Fail unless version 2 was promoted exactly once, and everything says so."""
        assert (seen := self.seen()) == RIGHT, seen

    def seen(self) -> dict[str, Any]:
        store = Store(self.ledger_url)
        reigns = [reign.version for reign in champions.history(store, MODEL)]
        with store.transaction() as connection:
            journal = [tuple(row) for row in connection.execute(sa.text("SELECT result IS NOT NULL FROM effects"))]
        events = [event.subject for event in chain.events(store, kinds=["promoted"])]
        chain.verify(chain.lines(store), [chain.head(store)])
        return {"reigns": reigns, "events": events, "aliases": self.registry().aliases(MODEL), "journal": journal}


RIGHT = {"reigns": [1, 2], "events": [f"{MODEL}@1", f"{MODEL}@2"], "aliases": {"champion": 2, "previous": 1}, "journal": [(1,)]}


def new_database(server: str, like: Place | None) -> str:
    """Make a database, empty or like another place's, and return its URL."""
    name = f"place_{secrets.token_hex(4)}"
    execute(server, f"CREATE DATABASE {name}{f' TEMPLATE {make_url(like.ledger_url).database}' if like else ''}")
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def cut(url: str, act: Callable[[], object]) -> int:
    """Do something to a new ledger's server before each statement and commit of a promotion and after it; return how many of them failed for it."""
    num_failed = 0
    for number in count(1):
        step, claim = Steps(number, act), Claim(f"promote:{number}", MODEL, number, number - 1 or None, number - 1)
        store = SteppingStore(url, step)
        try:
            champions.crown(store, claim)
        except LedgerUnavailable:
            num_failed += 1
            assert champions.crown(store, claim).token == number
        store.close()
        check = Store(url)
        assert [reign.version for reign in champions.history(check, MODEL)] == list(range(1, number + 1))
        assert chain.verify(chain.lines(check), [chain.head(check)]).number == number
        check.close()
        if step.num < number:
            return num_failed
    raise AssertionError


def kill(home: Path, every: int, server: str | None = None) -> dict[str, Any]:
    """Kill a promotion at a step, at the `every`-th after it, and so on until it has no more; let a second process promote again each time."""
    wrong: list[Any] = []
    prepared = Place(home / "prepared", server)
    for number in count(every, every):
        place = Place(home / str(number), server, prepared)
        code = ended(forked(partial(place.promote, 2, Steps(number))))
        again = ended(forked(partial(place.promote, 2, Steps(0))))
        if code not in (0, -signal.SIGKILL) or again != 0 or ended(forked(place.check)) != 0:
            wrong.append({"step": number, "code": code, "again": again})
        if code == 0:
            return {"num_kills": number // every - 1, "wrong": wrong}
    raise AssertionError


def freeze(home: Path, where: str, server: str | None = None) -> dict[str, Any]:
    """Stop a promoter of version 2, let another one promote 3, and let the first one go on."""
    place = Place(home / "place", server)

    def first() -> None:
        store, registry = Store(place.ledger_url), place.registry()
        from airflow_mlops.registry import promotion

        claim = Claim("frozen", MODEL, 2, 1, 1)
        if where == "between look and write":
            registry.get(MODEL, 2)
            promotion.reigning(store, registry, MODEL)
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            registry = SteppingRegistry(registry, Steps(5, stop_self))  # in the middle of its aliases
        try:
            promotion.promote(store, registry, claim)
            (home / "frozen").write_text("promoted")
        except PromotionConflict as error:
            (home / "frozen").write_text(type(error).__name__)

    def second() -> None:
        from airflow_mlops.registry.promotion import promote

        store = Store(place.ledger_url)
        reign = champions.current(store, MODEL)
        assert reign is not None
        promote(store, place.registry(), Claim("winner", MODEL, 3, reign.version, reign.token))

    pid = forked(first)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert ended(forked(second)) == 0
    os.kill(pid, signal.SIGCONT)
    assert ended(pid) == 0
    seen = place.seen()
    return {"champion": seen["reigns"][-1], "alias": seen["aliases"]["champion"], "reigns": seen["reigns"], "frozen": (home / "frozen").read_text()}


def race(url: str, rounds: int) -> dict[str, int]:
    """Let eight processes promote at once, each a version of its own against the champion they all saw, as often as `rounds` says."""
    context = multiprocessing.get_context("fork")  # of this process, in which nothing is open
    Store(url).close()
    barrier, results = context.Barrier(NUM_PROMOTERS), context.Queue()
    processes = [context.Process(target=_promoter, args=(url, rounds, rank, barrier, results)) for rank in range(NUM_PROMOTERS)]
    for process in processes:
        process.start()
    told = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    store = Store(url)
    reigns = champions.history(store, MODEL)
    # Each reign must follow the one before it: an update that got lost would leave a gap.
    lost = sum(later.previous != earlier.version or later.token != earlier.token + 1 for earlier, later in pairwise(reigns))
    events = chain.verify(chain.lines(store), [chain.head(store)]).number
    won, conflicts = (sum(column) for column in zip(*told, strict=True))
    return {"rounds": rounds, "won": won, "conflicts": conflicts, "reigns": len(reigns), "events": events, "lost": lost}


def _promoter(url: str, rounds: int, rank: int, barrier: Any, results: Any) -> None:
    store, won, conflicts = Store(url), 0, 0
    for number in range(rounds):
        reign = champions.current(store, MODEL)
        barrier.wait(120)
        version = number * NUM_PROMOTERS + rank + 1
        try:
            champions.crown(store, Claim(f"{number}:{rank}", MODEL, version, reign.version if reign else None, reign.token if reign else 0))
            won += 1
        except PromotionConflict:
            conflicts += 1
        barrier.wait(120)
    results.put((won, conflicts))


if __name__ == "__main__":
    began = time.monotonic()
    what, *rest = sys.argv[1:]
    if what == "race":
        print(json.dumps(race(rest[0], int(rest[1]))))
    else:
        importlib.import_module("airflow_mlops.registry.mlflow")  # once, before the forks
        print(json.dumps(kill(Path(rest[0]), int(rest[1]), *rest[2:]) if what == "kill" else freeze(Path(rest[0]), *rest[1:])))
    print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
