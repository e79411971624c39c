"""XCom is no evidence: whoever edits XComs, marks and clears tasks or writes asset events ends in a refusal or in the same outcome.

The DAGs are the real ones, and so are the ledger and MLflow's registry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped, TaskAwaitingInput

from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.exceptions import DatasetNotFound
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.store import Store
from airflow_mlops.pipelines import Grid, PipelineSpec, model_pipelines
from airflow_mlops.records import ResultRef, load
from airflow_mlops.registry import registrations
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.results import EvaluationResult, from_data
from tests import fakes
from tests.altered import altered
from tests.played import PlayedRun, instant

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "dags"
REGISTRY_TABLES = ("registered_models", "registered_model_aliases", "model_versions", "model_version_tags")  # of MLflow's own database


class Site:
    """The DAGs of the model ``digits``, an inbox, a ledger and a registry."""

    def __init__(self, home: Path, ledger: Store, registry: MlflowRegistry, dags: dict[str, DAG]) -> None:
        self.inbox, self.ledger, self.registry, self.dags, self.asked = home / "inbox", ledger, registry, dags, list[dict[str, Any]]()
        self.numbers, self.registry_file = itertools.count(1), home / "mlflow" / "mlflow.db"

    def publish(self) -> Any:
        name = f"v{next(self.numbers)}"
        return publish_version({"a.csv": f"x,label\n{len(name)},{name}\n".encode()}, self.inbox, name=name, dataset="digits")

    def retraining(self, kind: str = "on_dataset", **more: Any) -> PlayedRun:
        """Return a run that works on a version of its own."""
        version = self.publish()
        return PlayedRun(self.dags[f"digits_{kind}"], f"run {version.name}", conf={"dataset_version": version.name}, **more)

    def release(self, run_id: str = "release", **more: Any) -> PlayedRun:
        return PlayedRun(self.dags["digits_release"], run_id, **more)

    def searched(self) -> DAG:
        """Return a retraining that tries three trainings and attacks in two shards."""
        layout = self.dags["digits_nightly"].get_task("train").spec.layout
        files: Any = {"inbox": str(self.inbox), "suite": "digits_suite.json", "code_path": DAGS, "train_function": "digits_model:train"}
        search = Grid({"epochs": [1, 2, 3]}, metric="train_accuracy")
        spec = PipelineSpec(model="digits", dataset="digits", layout=layout, params={"epochs": 1}, search=search, num_shards=2, **files)
        return model_pipelines(spec)[1]

    @property
    def champion(self) -> int | None:
        reign = champions.current(self.ledger, "digits")
        return reign.version if reign else None

    def state(self) -> Any:
        """What a refused task must not change; asked of the registry's database, for it is asked more than a thousand times."""
        with contextlib.closing(sqlite3.connect(self.registry_file)) as registry:
            found = [registry.execute(f"SELECT * FROM {table}").fetchall() for table in REGISTRY_TABLES]
        return chain.head(self.ledger).number, found


@pytest.fixture
def site(
    database: Path, tmp_path: Path, workspace: Path, connect: Callable[..., None], ledger: Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    (tmp_path / "mlflow").mkdir()
    own = tmp_path / "mlflow" / "mlflow.db"
    own.write_bytes(database.read_bytes())
    monkeypatch.setenv("AIRFLOW__MLOPS__INBOX", str(tmp_path / "inbox"))
    connect("mlflow_default", "mlflow", host=f"sqlite:///{own}")
    extra = {"base_path": str(tmp_path / "served"), "config_path": str(tmp_path / "models.config")}
    connect("tf_serving_default", "tf_serving", host="127.0.0.1", port=9, extra=extra)
    bag = DagBag(DAGS / "digits.py", bundle_name="dags-folder")
    assert bag.import_errors == {}
    site = Site(tmp_path, ledger, MlflowRegistry(f"sqlite:///{own}"), dict(bag.dags))
    instant(monkeypatch, site.registry, site.asked)
    yield site


def sentence(error: BaseException) -> None:
    """Fail unless the error is typed, says what happened and what to do."""
    assert re.match(r"[A-Z]\w+: .{20,}\.", str(error), re.S), error


def attempt(run: PlayedRun, task_id: str, site: Site) -> Any:
    """Run a task whose XComs were altered; return None if it was refused and did nothing, else what it returned."""
    before = site.state()
    try:
        answer = run.run(task_id)
    except AirflowFailException as error:
        sentence(error)
        assert site.state() == before, f"{task_id} was refused and did something"
        return None
    finally:
        run.xcoms.pop((task_id, -1), None)
    return answer


def test_whatever_is_written_into_the_xcoms_of_a_retraining_changes_nothing(site: Site) -> None:
    other = site.retraining()
    other.run_all()
    tried = every_alteration(site, site.retraining(), other)
    assert {"validate", "train", "evaluate", "robustness", "gate", "register"} == set(tried)
    assert all(number > 50 for number in tried.values()), tried


def test_whatever_is_written_into_the_xcoms_of_a_release_changes_nothing(site: Site) -> None:
    site.retraining().run_all()
    other = site.release("other")
    other.run_all()
    site.retraining().run_all()
    tried = every_alteration(site, site.release(), other)
    assert {"approve", "publish", "roll_out", "promote", "evidence"} == set(tried)
    assert all(number > 50 for number in tried.values()), tried
    assert site.champion == 2


def test_whatever_is_written_into_the_xcoms_of_a_search_with_shards_changes_nothing(site: Site) -> None:
    site.dags["digits_nightly"] = site.searched()
    other = site.retraining("nightly")
    other.run_all()
    tried = every_alteration(site, site.retraining("nightly"), other, only=("choose", "evaluate", "robustness"))
    assert all(number > 50 for number in tried.values()), tried


def every_alteration(site: Site, run: PlayedRun, other: PlayedRun, only: tuple[str, ...] = ()) -> dict[str, int]:
    """Try every task of `run` with every XCom that it reads altered, before it is run as it should be; return how often each was tried."""
    tried: dict[str, int] = {}
    for task_id in run.order():
        if only and task_id not in only:
            run.run(task_id)
            continue
        went_on = []
        for key in [key for key in list(run.xcoms) if key[0] in run.read(task_id)]:
            right = run.xcoms[key]
            beside = (value for name, value in {**run.xcoms, **other.xcoms}.items() if name != key)
            for wrong in altered(right, other.xcoms[key], *beside):
                run.xcoms[key] = wrong
                tried[task_id] = tried.get(task_id, 0) + 1
                if (answer := attempt(run, task_id, site)) is not None:
                    went_on.append((wrong, answer))
            del run.xcoms[key]
            assert attempt(run, task_id, site) is None, f"{task_id} ran without the XCom of {key}"
            run.xcoms[key] = right
        right = run.run(task_id)
        assert [(wrong, answer) for wrong, answer in went_on if answer != right] == []
    return tried


@pytest.mark.parametrize("kind", ["on_dataset", "nightly", "release"])
def test_a_task_marked_as_success_by_hand_fails_those_after_it_at_once_with_what_to_do(site: Site, kind: str) -> None:
    site.retraining().run_all()
    for marked in [*(site.release() if kind == "release" else site.retraining(kind)).order()]:
        run = site.release(f"marked {marked}") if kind == "release" else site.retraining(kind)
        run.run_all(until=marked)
        for follower in sorted(run.dag.get_task(marked).downstream_task_ids):
            with pytest.raises(AirflowFailException, match=rf"NotHandedOver: Nothing was handed over .*clear [a-z', ]*'{marked}'"):
                run.run(follower)


def test_a_mark_after_an_earlier_success_is_no_way_to_mix_old_and_new_work(site: Site) -> None:
    run = site.retraining()
    run.run_all(until="gate")
    old = dict(run.xcoms)
    run.run("train")  # cleared, and those after it marked
    for follower in ("evaluate", "robustness"):
        run.xcoms[follower, -1] = old[follower, -1]
    with pytest.raises(AirflowFailException, match=r"NotHandedOver: Task 'train' ran again after 'evaluate'.*Clear 'evaluate'"):
        run.run("gate")


def test_a_forged_record_is_no_result(site: Site, tmp_path: Path) -> None:
    run = site.retraining()
    run.run_all(until="gate")
    trained, evaluated = (from_data(ResultRef, run.xcoms[name, -1]) for name in ("train", "evaluate"))
    forged = dataclasses.replace(load(evaluated, EvaluationResult), metrics={"accuracy": 0.9999})
    run.xcoms["evaluate", -1] = vars(fakes.leave_record(tmp_path / "forged", "evaluate", forged, training=trained))
    assert attempt(run, "gate", site) is None
    run.xcoms["evaluate", -1] = vars(evaluated)
    Path(evaluated.uri).write_bytes((tmp_path / "forged" / "evaluate" / "result.json").read_bytes())
    with pytest.raises(AirflowFailException, match=r"ResultInvalid: .*changed after its stage ended"):
        run.run("gate")


def test_the_attack_of_a_user_who_may_edit_xcoms_and_clear_tasks_ends_in_refusals(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ann's model of accuracy 0.10: she edits the gate's XCom, clears `register`, empties the authors, and approves it herself."""
    monkeypatch.setattr("tests.played.InstantStage.accuracy", 0.10)
    run = site.retraining(user="ann")
    run.run_all(until="gate")
    with pytest.raises(DownstreamTasksSkipped):
        run.run("gate")
    great = {"released": True, "passed": ["accuracy 0.9999 >= 0.9"], "reasons": [], "headline": "released: accuracy 0.9999 >= 0.9"}
    run.xcoms["gate", -1] = {**great, "evidence": {name: run.xcoms[name, -1] for name in ("validate", "train", "evaluate", "robustness")}}
    assert attempt(run, "register", site) is None
    assert site.registry.models() == []


def test_authors_that_were_emptied_do_not_let_an_author_approve(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.played.REVIEWER", {"id": "ann", "name": "ann"})
    site.retraining(user="ann").run_all()
    release = site.release(user="ann")
    release.run("select")
    selected = dict(release.xcoms["select", -1])
    for emptied in ({**selected, "authors": ""}, {**selected, "authors": None, "headline": "accuracy 0.9999"}):
        release.xcoms["select", -1] = emptied
        assert attempt(release, "approve", site) is None
    release.xcoms["select", -1] = selected
    for user in ("ann", None):  # cleared, and started again by an asset event, which no user triggered
        release.user = user
        with pytest.raises(TaskAwaitingInput):
            release.run("approve")
    refused = chain.events(site.ledger, kinds=["answer refused"])
    assert len(refused) == 2 and all("ann is an author" in event.details["reason"] for event in refused)
    release.xcoms["approve", -1] = {"approved_by": ["cleo"], "binding": "sha256:x", "headline": "1 of 1 approvals by cleo."}
    with pytest.raises(AirflowFailException, match=r"NotHandedOver: Nothing was handed over in this run by 'approve'"):
        release.run("publish")
    assert site.champion is None
    assert all("0.9999" not in asked["body"] and "accuracy 0.9500" in asked["body"] for asked in site.asked)


@pytest.mark.parametrize("started", ["the training", "an earlier release"])
def test_who_was_an_author_of_an_earlier_attempt_still_is_one(site: Site, monkeypatch: pytest.MonkeyPatch, started: str) -> None:
    monkeypatch.setattr("tests.played.REVIEWER", {"id": "eve", "name": "eve"})
    training = site.retraining(user="eve" if started == "the training" else None)
    training.run_all()
    if started == "the training":
        training.user = None
        training.run("register")  # cleared, in a run that an asset event has started again
    else:
        earlier = site.release("earlier", user="eve")
        earlier.run("select")
        with pytest.raises(TaskAwaitingInput):
            earlier.run("approve")
    release = site.release()
    release.run("select")
    with pytest.raises(TaskAwaitingInput):
        release.run("approve")
    assert "eve is an author" in chain.events(site.ledger, kinds=["answer refused"])[-1].details["reason"]


def test_tags_that_were_edited_in_the_registry_are_refused(site: Site) -> None:
    site.retraining().run_all()
    tags = registrations.registered(site.ledger, "digits", 1)
    for name, value in tags.items():
        site.registry.set_tags("digits", 1, {name: f"{value}0"})
        with pytest.raises(AirflowFailException, match=rf"RegistryError: The tag '{re.escape(name)}' of digits version 1 is .*clear 'register'"):
            site.release(f"after {name}").run("select")
        site.registry.set_tags("digits", 1, {name: value})
    release, edited = site.release(), {"publish": "saved_model_digest", "promote": "model_digest"}
    for task_id in release.order(until="evidence"):
        if name := edited.get(task_id):
            site.registry.set_tags("digits", 1, {name: "sha256:other"})
            assert attempt(release, task_id, site) is None
            site.registry.set_tags("digits", 1, {name: tags[name]})
        release.run(task_id)
    assert site.champion == 1


WRITTEN: tuple[Any, ...] = (
    {"model": "letters", "version": 1},
    {"model": "digits", "version": 99},
    {"model": "digits", "version": "1; DROP"},
    {"model": "digits", "version": True},
    {"model": "digits", "version": 1.0},
    {"model": "digits", "version": None},
    {"model": "digits", "version": [1]},
    {"model": "digits", "version": 10**30},
    {"model": "digits"},
    {"version": 1},
    {},
    None,
    [],
    "digits",
    7,
)


def test_forged_events_of_a_candidate_leave_the_real_one_its_release(site: Site) -> None:
    for _ in range(2):
        site.retraining().run_all()
    real = {"model": "digits", "version": 2}
    for extra in WRITTEN:
        for number, extras in enumerate([(extra,), (real, extra), (extra, real)]):
            assert site.release(f"release {number} of {extra}", extras=extras).run("select")["version"] == 2, extras


def test_a_version_in_the_conf_of_a_release_is_one_that_a_pipeline_registered_or_refused(site: Site) -> None:
    for _ in range(2):
        site.retraining().run_all()
    versions: tuple[Any, ...] = (10**30, 3, "2", "newest", 0, -1, 1.5, True, [2], {"version": 2})
    for version in versions:
        run = site.release(f"release of {version!r}", conf={"version": version, "model_name": "letters", "policy": {}, "unknown": 1})
        if version == "2":
            assert run.run("select")["version"] == 2
        else:
            assert attempt(run, "select", site) is None, version


@pytest.mark.parametrize(
    "conf",
    [{"dataset_version": name} for name in ("../v1", "/etc", "", ".", "..", "v99", "a\nb", 7, ["v1"], {"x": 1}, True)]
    + [{"repeat": value} for value in ("yes", "false", 1, None, [])]
    + [{"seed": value} for value in ("x", -1, 10**30, 1.5, None, True, [1])]
    + [{"epochs": value} for value in ("x", [1], {"x": 1}, None, 10**400)],
)
def test_a_conf_of_other_types_is_refused_or_means_what_it_says(site: Site, conf: dict[str, Any]) -> None:
    """Airflow refuses most of it before a run starts; a run that is there all the same ends in a sentence, or waits for what may arrive."""
    version = site.publish()
    run = PlayedRun(site.dags["digits_on_dataset"], "run", conf=conf)
    for task_id in ("claim", "validate", "train"):
        try:
            answer = run.run(task_id)
        except DatasetNotFound:
            assert conf == {"dataset_version": "v99"}
            break
        except (AirflowFailException, AirflowSkipException) as error:
            sentence(error)
            break
        if task_id == "claim":
            assert (answer["name"], answer["digest"]) == (version.name, version.digest)


def test_the_docs_say_which_xcoms_every_task_reads(site: Site) -> None:
    text = (ROOT / "docs" / "audit.md").read_text().partition("## What an operator takes from XCom")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`[^|]* \| (`[^|]+`) \|", text, re.M)
    told = {task_id: set(re.findall(r"`(\w+)`", sources)) for task_id, sources in rows}
    searched = site.searched()
    found: dict[str, set[str]] = {}
    for dag in (*site.dags.values(), searched):
        run = PlayedRun(dag, "run")
        for task_id in run.order():
            read = {"train" if source == "choose" else source for source in run.read(task_id)}
            found[task_id] = found.get(task_id, set()) | read
    assert {task_id: read for task_id, read in found.items() if read} == told
    assert found["claim"] == found["select"] == set()
