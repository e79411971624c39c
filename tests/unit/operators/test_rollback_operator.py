"""Back to an earlier champion over a real registry, ledger and model server: what serves, who is champion, and what is refused."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import MlopsError, PromotionConflict, ServingUnavailable
from airflow_mlops.ledger import chain, champions, journal, rows
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.questions import who_served
from airflow_mlops.ledger.store import Store, now
from airflow_mlops.operators import rollback as operators
from airflow_mlops.operators.rollback import RollbackModelOperator
from airflow_mlops.registry import promotion
from airflow_mlops.registry import rollback as core
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.serving import rollout
from airflow_mlops.serving.config import ModelConfig
from airflow_mlops.serving.publish import publish_saved_model
from tests.fakes import connection, context
from tests.servers import EmbeddedServer
from tests.unit.operators.test_serving_operators import INPUTS, Desk, Killed, Try, die, forget

VERSIONS = (1, 2, 3, 4)  # 1, 2 and 3 were champions in turn; 4 never was
SAVED = {1: 1, 2: 2, 3: 1, 4: 2}  # which SavedModel each has: version n answers the sum of a row plus that


class Workshop(Desk):
    """One model with three champions in turn, of which the third serves, and the task that brings an earlier one back."""

    def __init__(
        self, name: str, server: EmbeddedServer, connect: Callable[..., None], home: Path, ledger: Store, database: Path, files: dict[int, Path]
    ) -> None:
        super().__init__(name, server, connect, home, ledger)
        self.files, self.registry = files, MlflowRegistry(f"sqlite:///{database}")
        connect("mlflow_default", "mlflow", host=f"sqlite:///{database}")
        self.digests: dict[int, dict[str, str]] = {}
        for version in VERSIONS:
            self._register(version)
            if version < 4:
                publish_saved_model(files[SAVED[version]], home / name, version, self.digests[version]["saved_model_digest"])
        for version in VERSIONS[:3]:
            about = {key: self.digests[version][key] for key in ("saved_model_digest", "golden_digest")}
            digest, before = self.digests[version]["model_digest"], version - 1 or None
            promotion.promote(ledger, self.registry, Claim(f"promote:{version}", name, version, before, digest=digest, actor="r", details=about))
        self.roll_out(3, Try(run_id="the release"), answers_of=SAVED[3])

    def _register(self, version: int) -> None:
        home = self.home / "files" / str(version)
        home.mkdir(parents=True)
        (home / "model.keras").write_bytes(b"version %d" % version)
        golden = {"inputs": INPUTS, "outputs": [[sum(row) + SAVED[version]] for row in INPUTS]}
        (home / "golden.json").write_text(json.dumps(golden))
        (home / "saved_model").symlink_to(self.files[SAVED[version]])
        names = {"model_digest": "model.keras", "saved_model_digest": "saved_model", "golden_digest": "golden.json"}
        self.digests[version] = {key: path_digest((home / file).resolve())[0] for key, file in names.items()}
        with self.registry.start_run(self.name, name="training", tags={}) as run:
            for file in names.values():
                run.log_artifact(home / file)
        assert self.registry.register(self.name, run.run_id, run.artifact_uri, tags=self.digests[version]).version == version

    def task(self, to: Any = None, reason: str = "it errs on sevens", **changes: Any) -> RollbackModelOperator:
        return RollbackModelOperator(task_id="roll_back", **{"model_name": self.name, "version": to, "reason": reason, **changes})

    def context(self, ti: Try, *, user: str | None = "ann", asked: timedelta = timedelta()) -> Any:
        alone = SimpleNamespace(get_flat_relative_ids=lambda **_: set())
        return context(ti, task=alone, dag_run=SimpleNamespace(triggering_user_name=user, run_after=now() + asked))

    def begun(self, to: Any = None, run: str = "rollback 1", number: int = 1, **changes: Any) -> Callable[[], dict[str, Any]]:
        """Run the task until it defers and its trigger to its end; return what continues the task."""
        task, about = self.task(to, **changes), self.context(Try(dag_id="m_rollback", run_id=run, task_id="roll_back", try_number=number))
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(about)
        event = self.event(deferred.value.trigger)
        return lambda: self.task(to, **changes).execute_complete(about, event)

    def back(self, *arguments: Any, **changes: Any) -> dict[str, Any]:
        return self.begun(*arguments, **changes)()

    def state(self) -> dict[str, Any]:
        """Return everything that a rollback may change."""
        reign = champions.current(self.ledger, self.name)
        return {"champion": reign and reign.version, "label": self.label, "aliases": self.registry.aliases(self.name), "served": self.serves()}


NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def lasting(server: EmbeddedServer, saved_models: dict[int, Path], tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Workshop]:
    """One shop for all tests that leave it as it was, for one takes seconds to fill."""
    home = tmp_path_factory.mktemp("lasting")
    with pytest.MonkeyPatch.context() as environment, contextlib.closing(Store(f"sqlite:///{home}/ledger.db")) as ledger:
        connect = functools.partial(connection, environment)
        connect("mlops_ledger_default", "mlops_ledger", schema=f"{home}/ledger.db", extra={"driver": "sqlite"})
        yield Workshop("rolled", server, connect, home, ledger, database, saved_models)
        forget(server, "rolled")


@pytest.fixture
def steady(lasting: Workshop, workspace: Path) -> Iterator[Workshop]:
    """The lasting shop, whose champion is version 3 again afterwards."""
    yield lasting
    if lasting.label != 3:
        lasting.back(3, f"forward again {next(NUMBERS)}")
    assert lasting.state() == expected(3, 2)


@pytest.fixture
def shop(
    server: EmbeddedServer,
    saved_models: dict[int, Path],
    connect: Callable[..., None],
    ledger: Store,
    tmp_path: Path,
    database: Path,
    workspace: Path,
) -> Iterator[Workshop]:
    name = f"rolled_{next(NUMBERS)}"
    yield Workshop(name, server, connect, tmp_path, ledger, database, saved_models)
    forget(server, name)


@contextlib.contextmanager
def spoiled(path: Path, *, gone: bool = False) -> Iterator[None]:
    """Remove a file, or write something else there, and put it back afterwards."""
    before = path.read_bytes()
    if gone:
        path.unlink()
    else:
        path.write_bytes(b"something else")
    try:
        yield
    finally:
        path.write_bytes(before)


def expected(champion: int, previous: int) -> dict[str, Any]:
    return {"champion": champion, "label": champion, "aliases": {"champion": champion, "previous": previous}, "served": SAVED[champion]}


def test_the_champion_before_the_present_one_comes_back_and_the_trail_says_who_and_why(shop: Workshop) -> None:
    done = shop.back()
    assert shop.state() == expected(2, 3)
    assert done["headline"] == f"{shop.name} version 2 is the champion again, in place of version 3: it errs on sevens"
    event = chain.events(shop.ledger, model=shop.name, kinds=["rolled back"])[-1]
    assert (event.subject, event.actor, event.details["reason"], event.details["run"]) == (
        f"{shop.name}@2",
        "ann",
        "it errs on sevens",
        "m_rollback/rollback 1",
    )
    assert who_served(shop.ledger, shop.name, now()).since.subject == f"{shop.name}@2"
    anchor = chain.Head.parse(done["audit_head"])
    assert anchor.number >= event.number and rows.verify(shop.ledger, [anchor]) == chain.head(shop.ledger)
    assert journal.open_effects(shop.ledger, now() + timedelta(minutes=1)) == []


def test_a_second_rollback_goes_further_back_and_a_named_one_forward_again(shop: Workshop) -> None:
    shop.back()
    shop.back(run="rollback 2")
    assert shop.state() == expected(1, 2)
    shop.back(3, "rollback 3")
    assert shop.state() == expected(3, 1)


def test_a_version_that_retention_removed_is_published_again(shop: Workshop) -> None:
    for path in (shop.home / shop.name / "1", shop.home / shop.name / ".manifests" / "1.json"):
        path.rename(shop.home / f"removed {path.name}")
    shop.back("1")
    assert shop.state() == expected(1, 3)


def test_the_next_candidate_is_compared_with_the_champion_that_came_back(shop: Workshop) -> None:
    shop.back()
    reign = promotion.reigning(shop.ledger, shop.registry, shop.name)
    assert reign is not None and (reign.version, reign.token) == (2, 4)
    with pytest.raises(PromotionConflict, match=r"Champion of .* is version 2 .* but version 4 was evaluated against version 3"):
        champions.crown(shop.ledger, Claim("release of 4", shop.name, 4, 3, 3))
    assert champions.crown(shop.ledger, Claim("release of 4 again", shop.name, 4, 2, 4)).version == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"to": 4}, "Version 4 of .* never was champion by the audit trail; expected one of 1, 2"),
        ({"to": 99}, "Version 99 of .* never was champion"),
        ({"to": 3}, "Version 3 of .* is the champion already"),
        ({"to": "newest"}, "newest"),
        ({"to": True}, "True"),
        ({"model_name": "digit"}, "Unknown model with a champion 'digit'"),
        ({"reason": ""}, "has no reason"),
        ({"reason": " \n"}, "has no reason"),
        ({"reason": None}, "has no reason"),
    ],
    ids=str,
)
def test_what_is_impossible_is_refused_and_nothing_changes(steady: Workshop, changes: dict[str, Any], words: str) -> None:
    before, events = steady.state(), chain.events(steady.ledger, kinds=["rolled back"])
    with pytest.raises(AirflowFailException, match=words):
        steady.task(**changes).execute(steady.context(Try(run_id=f"refused {next(NUMBERS)}")))
    assert steady.state() == before and chain.events(steady.ledger, kinds=["rolled back"]) == events


def test_a_rollback_without_a_person_is_refused(steady: Workshop) -> None:
    with pytest.raises(AirflowFailException, match="does not know who started this rollback"):
        steady.task().execute(steady.context(Try(run_id=f"refused {next(NUMBERS)}"), user=None))


def test_the_first_champion_has_none_before_it(shop: Workshop) -> None:
    champions.crown(shop.ledger, Claim("other", "letters", 1, None))
    with pytest.raises(AirflowFailException, match="Version 1 of 'letters' is its first champion"):
        shop.task(model_name="letters").execute(shop.context(Try(run_id="rollback 1")))


def test_a_champion_whose_files_the_trail_does_not_know_does_not_come_back(shop: Workshop) -> None:
    champions.crown(shop.ledger, Claim("adopt", "letters", 1, None, kind="adopted"))
    champions.crown(shop.ledger, Claim("promote", "letters", 2, 1))
    with pytest.raises(AirflowFailException, match="does not say which files version 1 of 'letters' was champion with"):
        shop.task(model_name="letters").execute(shop.context(Try(run_id="rollback 1")))


@pytest.mark.parametrize("name", ["model.keras", "golden.json", "saved_model/fingerprint.pb"])
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "altered"])
def test_a_version_whose_files_are_gone_or_altered_does_not_come_back(steady: Workshop, name: str, gone: bool) -> None:
    source = Path(steady.registry.get(steady.name, 2).source.removeprefix("file://"))
    before = steady.state()
    with spoiled(source / name, gone=gone), pytest.raises(AirflowFailException, match=r"has the digest|has no artefact"):
        steady.task(2).execute(steady.context(Try(run_id=f"refused {next(NUMBERS)}")))
    assert steady.state() == before


def test_a_published_copy_that_was_altered_does_not_come_back(steady: Workshop) -> None:
    before = steady.state()
    with spoiled(steady.home / steady.name / "2" / "fingerprint.pb"), pytest.raises(AirflowFailException, match="is no longer what was published"):
        steady.task(2).execute(steady.context(Try(run_id=f"refused {next(NUMBERS)}")))
    assert steady.state() == before


def test_a_version_that_was_deleted_does_not_come_back(shop: Workshop) -> None:
    shop.registry.delete_version(shop.name, 2)
    with pytest.raises(AirflowFailException, match="ModelNotFound"):
        shop.task(2).execute(shop.context(Try(run_id="rollback 1")))


def test_a_model_server_that_is_down_is_asked_again_and_nothing_has_changed(shop: Workshop) -> None:
    before = shop.state()
    shop.answering(False)
    with pytest.raises(ServingUnavailable):
        shop.task().execute(shop.context(Try(run_id="rollback 1")))
    with pytest.raises(AirflowFailException, match="was not rolled out"):
        shop.task().execute(shop.context(Try(run_id="rollback 1", try_number=3)))
    shop.answering(True)
    assert shop.state() == before
    assert shop.back(number=4) and shop.state() == expected(2, 3)


def test_of_two_rollbacks_at_once_one_wins_and_the_other_changes_nothing(shop: Workshop) -> None:
    first, second = shop.begun(2, "rollback 1"), shop.begun(1, "rollback 2")
    second()
    with pytest.raises(AirflowFailException, match=r"Another rollout came between|is champion by now"):
        first()
    assert shop.state() == expected(1, 3)


def test_a_rollback_that_was_asked_for_before_the_champion_changed_is_not_done_after_it(shop: Workshop) -> None:
    shop.back()
    with pytest.raises(AirflowFailException, match="after this rollback was asked for"):
        shop.task().execute(shop.context(Try(run_id="rollback 2"), asked=-timedelta(minutes=5)))
    assert shop.state() == expected(2, 3)


def test_a_champion_that_changed_while_the_label_moved_takes_the_label_back(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, crown = shop.begun(2), champions.crown

    def late(store: Store, claim: Claim) -> Any:
        crown(store, Claim("another run", shop.name, 4, 3))
        return crown(store, claim)

    monkeypatch.setattr(champions, "crown", late)
    with pytest.raises(AirflowFailException, match=r"was not rolled out: .*is version 4 .*Version 3 serves 'stable' now"):
        go_on()
    assert (shop.label, shop.serves()) == (3, SAVED[3])


def test_a_release_that_is_under_way_is_refused_by_the_rollback_that_came_between(shop: Workshop) -> None:
    publish_saved_model(shop.files[SAVED[4]], shop.home / shop.name, 4, shop.digests[4]["saved_model_digest"])
    release, ti = shop.operator(4, answers_of=SAVED[4]), Try(run_id="release of 4")
    event = shop.begin(release, ti)
    shop.back(2)
    with pytest.raises(AirflowFailException, match=r"Another rollout came between|was not rolled out: .*Version 2 serves 'stable' now"):
        release.execute_complete(shop.after(release, ti), event)
    assert shop.state() == expected(2, 3)


STEPS: list[tuple[Any, str]] = [
    (core, "choose"),
    (core, "fetch"),
    (operators, "publish"),
    (rollout, "begin"),
    (rollout, "verify"),
    (rollout, "switch"),
    (RollbackModelOperator, "_remember"),
    (promotion, "promote"),
    (champions, "crown"),
    (promotion, "project"),
    (chain, "head"),
]


@pytest.mark.parametrize("after", [pytest.param(False, id="before", marks=pytest.mark.long), pytest.param(True, id="after")])
@pytest.mark.parametrize(("place", "name"), STEPS, ids=lambda value: value if isinstance(value, str) else "")
def test_whenever_its_process_dies_the_next_try_ends_right(steady: Workshop, place: Any, name: str, after: bool) -> None:
    done, run, events = getattr(place, name), f"rollback {next(NUMBERS)}", chain.events(steady.ledger, kinds=["rolled back"])

    def dies(*arguments: Any, **named: Any) -> Any:
        if after:
            done(*arguments, **named)
        die()

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(journal, "_close", lambda *_: None)  # a killed process notes nothing
        patched.setattr(place, name, dies)
        steady.back(run=run)
    assert steady.back(run=run, number=2)["headline"].startswith(f"{steady.name} version 2 is the champion again")
    assert steady.state() == expected(2, 3)
    (event,) = chain.events(steady.ledger, kinds=["rolled back"])[len(events) :]
    assert (event.subject, event.details["run"]) == (f"{steady.name}@2", f"m_rollback/{run}")
    assert journal.open_effects(steady.ledger, now() + timedelta(minutes=1)) == []
    assert rows.verify(steady.ledger) == chain.head(steady.ledger)


def test_a_rollback_that_is_cleared_when_it_is_done_does_it_no_second_time(shop: Workshop) -> None:
    shop.back()
    assert shop.back(number=2) and shop.state() == expected(2, 3)
    promotion.promote(shop.ledger, shop.registry, Claim("release of 4", shop.name, 4, 2, 4, shop.digests[4]["model_digest"]))
    with pytest.raises(AirflowFailException, match="version 4 is champion by now"):
        shop.task().execute(shop.context(Try(dag_id="m_rollback", run_id="rollback 1", task_id="roll_back", try_number=3)))
    assert shop.label == 2


def test_an_earlier_champion_whose_reign_was_written_by_hand_does_not_come_back(shop: Workshop) -> None:
    from airflow_mlops.ledger.tables import REIGNS

    with shop.ledger.transaction() as connection:
        connection.execute(REIGNS.update().where(REIGNS.c.version == 2).values(version=4))
    with pytest.raises(AirflowFailException, match="LedgerAltered: The row of table reigns"):
        shop.task(4).execute(shop.context(Try(run_id="rollback 1")))
    assert shop.label == 3


def test_a_model_that_is_configured_without_the_label_says_so(shop: Workshop) -> None:
    shop.configure(ModelConfig(shop.name, str(shop.home / shop.name), (3,), {}))
    with pytest.raises(AirflowFailException, match="without the label 'stable'"):
        shop.task().execute(shop.context(Try(run_id="rollback 1")))


def test_every_refusal_is_typed() -> None:
    assert issubclass(core.RollbackRefused, MlopsError) and not core.RollbackRefused.retryable
