"""What the ledger adds to a promotion, what verifying the trail costs beside hashing it, and what bare aliases lose in a race."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from airflow_mlops.ledger import chain
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.promotion import project, promote
from tests.benchmarks.row import Row, seconds
from tests.promotions import race

MODEL = "digits"
NUM_EVENTS = 1_000_000
RACES = 30


def rows() -> Iterator[Row]:
    """Yield the rows of registry and ledger."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        yield from _promotion(home)
        yield _verification(home)
        told = race(f"sqlite:///{home}/race.db", 100)
        yield Row("lost updates in 100 rounds of 8 promoters, SQLite", told["lost"], "promotions", told["won"], allowed=0.0, unit="")


def _promotion(home: Path) -> Iterator[Row]:
    from airflow_mlops.registry.mlflow import MlflowRegistry

    registry, store = MlflowRegistry(f"sqlite:///{home}/mlflow.db"), Store(f"sqlite:///{home}/ledger.db")
    with registry.start_run("digits", name="training", tags={}) as run:
        pass
    for number in (1, 2, 3):
        registry.register(MODEL, run.run_id, run.artifact_uri, idempotency_key=str(number))
    reign = promote(store, registry, Claim("first", MODEL, 1, None))
    turns = count(2)

    def ours() -> None:
        number = next(turns)
        claim = Claim(f"promote:{number}", MODEL, reign.champion % 3 + 1, reign.champion, reign.token)

        def effect() -> dict[str, Any]:
            nonlocal reign
            reign = promote(store, registry, claim)
            return {"champion": reign.champion, "previous": reign.previous}

        once(store, claim.intent, "promote", {"version": claim.version}, effect)

    def bare() -> None:
        """The calls of MLflow by which a promotion is made without a ledger: look, write both aliases, read them back."""
        champion = registry.aliases(MODEL)["champion"]
        following = champion % 3 + 1
        registry.get(MODEL, following)
        registry.set_alias(MODEL, "previous", champion)
        registry.set_alias(MODEL, "champion", following)
        registry.aliases(MODEL)

    with_ledger, without = [], []
    for _ in range(20):
        with_ledger.append(seconds(ours))
        without.append(seconds(bare))
        project(store, registry, MODEL)  # back to what the ledger says
    yield Row(
        "promotion with ledger, journal and audit event", 1e3 * median(with_ledger), "MLflow's own calls", 1e3 * median(without), 2.0, unit="ms"
    )
    won = sum(_bare_race(registry) for _ in range(RACES))
    yield Row(f"winners in {RACES} races of two over bare MLflow aliases", won, "should be", RACES, unit="")


def _bare_race(registry: Any) -> int:
    """Let two promoters that saw the same champion set the alias, and return how many of them think that they won."""
    barrier, won = threading.Barrier(2), []

    def promoter(version: int) -> None:
        champion = registry.aliases(MODEL).get("champion")
        barrier.wait()
        if registry.aliases(MODEL).get("champion") == champion:
            barrier.wait()  # the worst moment, between the look and the write
            registry.set_alias(MODEL, "champion", version)
            won.append(version)

    threads = [threading.Thread(target=promoter, args=(version,)) for version in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(won)


def _verification(home: Path) -> Row:
    """A million events as an export holds them."""
    path, previous = home / "trail.jsonl", chain.GENESIS
    event = '"actor":"digits_release/manual__2026-11-24T12:00:00+00:00","at":"2026-11-24T12:00:00.000000+00:00","details":{"digest":"sha256:'
    event += "ab" * 32 + '","gate.evaluation":"accuracy 0.9722 (champion 0.9694) on 360 held-out rows","previous":%d,"token":%d},"kind":"promoted"'
    with path.open("wb") as stream:
        for number in range(1, NUM_EVENTS + 1):
            body = event % (number - 1, number)
            line = f'{{"previous":"{previous}",{body},"number":{number},"subject":"digits@{number}"}}\n'.encode()
            previous = hashlib.sha256(line).hexdigest()
            stream.write(line)

    def verify() -> None:
        with path.open("rb") as trail:
            assert chain.verify(trail, [chain.Head(NUM_EVENTS, previous)]).number == NUM_EVENTS

    def hashed() -> None:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")

    hashed()
    pairs = [(seconds(verify), seconds(hashed)) for _ in range(3)]
    ours, limit = (median(column) for column in zip(*pairs, strict=True))
    return Row("verify a trail of 1,000,000 events", ours, "sha256 of the same bytes", limit, allowed=5.0)
