"""What a pod needs and what it makes goes through object storage, verified on both sides, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs

from airflow_mlops.artifacts import Artifact, canonical_json, path_digest
from airflow_mlops.exceptions import ExchangeUnavailable, ResultInvalid, SpecError, StageError
from airflow_mlops.records import SCHEMA_VERSION, Record, load
from airflow_mlops.results import DatasetVersion, Finding, ValidationResult, to_data
from airflow_mlops.stages import train, validate
from airflow_mlops.stages.exchange import Exchange
from airflow_mlops.stages.objects import FRESH_SECONDS, Objects
from airflow_mlops.stages.runner import spec_data
from airflow_mlops.training import code_copy
from airflow_mlops.training.function import code_authors, code_version
from tests.fakes import leave_record
from tests.git import AUTHOR, commit_all
from tests.s3 import App, S3Server, error

BUCKET = "exchange"
LAYOUT = {"input_shape": [8, 8, 1], "num_classes": 10}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(server: S3Server) -> Iterator[S3Server]:
    server.meddler = None
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=server.url, aws_access_key_id="testing", aws_secret_access_key="testing", region_name="eu-central-1")
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield server
    server.meddler = None
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture(params=["s3", "file"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Exchange:
    if request.param == "file":
        return Exchange(f"file://{tmp_path}/exchange", pauses=())
    return over(request.getfixturevalue("s3"))


def over(server: S3Server, pauses: tuple[float, ...] = ()) -> Exchange:
    return Exchange(f"s3://{BUCKET}/runs", server.options(), pauses)


class Site:
    """A worker's files: a dataset version, a validation's record, and the user's code in Git."""

    def __init__(self, home: Path) -> None:
        self.home = home
        version = home / "datasets" / "v1"
        (version / "part").mkdir(parents=True)
        (version / "part" / "rows.csv").write_text("1,2\n")
        (version / "manifest.json").write_text("{}")
        self.dataset = DatasetVersion("digits", "v1", "sha256:" + 64 * "0", str(version))
        out = home / "runs" / "validate"
        (out / "data_docs").mkdir(parents=True)
        (out / "data_docs" / "index.html").write_text("fine")
        self.result = ValidationResult(self.dataset, 1, 1, (), (Finding("e", None, "m"),), Artifact.of(out / "data_docs"))
        self.validation = leave_record(out, "validate", self.result)
        self.code = home / "code"
        self.code.mkdir()
        (self.code / "own.py").write_text("def train(context): ...\n")
        (self.code / ".gitignore").write_text("large.bin\n")
        (self.code / "large.bin").write_bytes(bytes(1000))
        commit_all(self.code)

    @property
    def spec(self) -> train.Spec:
        return train.Spec(self.validation, LAYOUT, "own:train", str(self.code), "digits", "http://mlflow", {})  # type: ignore[arg-type]

    def hidden(self) -> Path:
        """Take everything out of sight, as a pod has it."""
        return shutil.move(self.home, self.home.with_name("elsewhere"))  # type: ignore[return-value]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def leave_result(out: Path) -> Path:
    """Leave a validation's record with one artefact, as a pod would."""
    (out / "data_docs").mkdir(parents=True)
    (out / "data_docs" / "index.html").write_text("good")
    dataset = DatasetVersion("digits", "v1", "sha256:" + 64 * "0", "/nowhere")
    result = ValidationResult(dataset, 1, 1, (), (), Artifact.of(out / "data_docs"))
    (out / "result.json").write_bytes(canonical_json(to_data(Record(SCHEMA_VERSION, "validate", "sha256:" + 64 * "1", result=to_data(result)))))
    return out / "result.json"


def test_what_a_request_refers_to_lies_in_the_pod_where_it_lay_on_the_worker(exchange: Exchange, site: Site) -> None:
    version, authors, dataset = code_version(site.code), code_authors(site.code), path_digest(Path(site.dataset.uri))
    exchange.send_request("mlops-train-1", "train", site.spec)
    site.hidden()
    name, spec = exchange.take_request("mlops-train-1")
    assert (name, spec) == ("train", spec_data(site.spec))
    assert load(site.validation, ValidationResult) == site.result
    assert path_digest(Path(site.dataset.uri)) == dataset
    assert not (site.code / "large.bin").exists() and not (site.code / ".git").exists()
    assert (code_version(site.code), code_authors(site.code)) == (version, authors)
    assert len(version) == 40 and authors == (AUTHOR,)


@pytest.mark.parametrize(("name", "most"), [("MAX_FILES", 1), ("MAX_BYTES", 10)])
def test_what_is_too_much_to_be_code_is_not_sent(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    monkeypatch.setattr(code_copy, name, most)
    exchange = Exchange(f"file://{tmp_path}/exchange", pauses=())
    with pytest.raises(SpecError, match=r"holds 2 files with \d+ bytes; expected at most .*have Git ignore the rest"):
        exchange.send_request("mlops-train-1", "train", site.spec)
    assert exchange.objects.read("requests/mlops-train-1.json") is None


def test_a_copy_of_the_code_that_is_altered_is_not_said_to_be_its_commit(exchange: Exchange, site: Site) -> None:
    exchange.send_request("mlops-train-1", "train", site.spec)
    site.hidden()
    exchange.take_request("mlops-train-1")
    (site.code / "own.py").write_text("def train(context): return 1\n")
    assert code_version(site.code).startswith("sha256:")


def test_the_suite_and_the_dataset_of_a_validation_are_sent(exchange: Exchange, site: Site) -> None:
    suite = site.home / "suite.json"
    suite.write_text("{}")
    exchange.send_request("mlops-validate-1", "validate", validate.Spec(site.dataset, str(suite)))
    site.hidden()
    exchange.take_request("mlops-validate-1")
    assert suite.read_text() == "{}" and Path(site.dataset.uri, "part", "rows.csv").read_text() == "1,2\n"


def test_where_worker_and_pod_share_their_files_nothing_is_written_into_the_code(exchange: Exchange, site: Site) -> None:
    before = path_digest(site.code)
    exchange.send_request("mlops-train-1", "train", site.spec)
    exchange.take_request("mlops-train-1")
    assert path_digest(site.code) == before


def test_an_artefact_that_changed_on_the_worker_is_not_sent(exchange: Exchange, site: Site) -> None:
    (site.result.data_docs.path / "index.html").write_text("forged")
    with pytest.raises(ResultInvalid, match="changed after it was recorded"):
        exchange.send_request("mlops-train-1", "train", site.spec)


def test_a_request_that_nobody_sent_is_said_to_be_missing(exchange: Exchange) -> None:
    with pytest.raises(SpecError, match="holds no request 'mlops-train-1'"):
        exchange.take_request("mlops-train-1")


def test_a_result_comes_back_with_its_artefacts(exchange: Exchange, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")
    wrote = path.read_bytes()
    assert exchange.take_result("mlops-validate-1", path) is False
    exchange.send_result("mlops-validate-1", path)
    shutil.rmtree(path.parent)
    assert exchange.take_result("mlops-validate-1", path) is True
    assert path.read_bytes() == wrote and (path.parent / "data_docs" / "index.html").read_text() == "good"


def test_nothing_is_uploaded_twice(s3: S3Server, site: Site) -> None:
    over(s3).send_request("mlops-train-1", "train", site.spec)
    s3.requests.clear()
    over(s3).send_request("mlops-train-1", "train", site.spec)
    assert [path for method, path in s3.requests if method == "PUT"] == [f"/{BUCKET}/runs/requests/mlops-train-1.json"]


def test_what_lies_in_the_pod_with_another_content_is_replaced(tmp_path: Path, site: Site) -> None:
    exchange, rows = Exchange(f"file://{tmp_path}/exchange", pauses=()), Path(site.dataset.uri, "part", "rows.csv")
    exchange.send_request("mlops-train-1", "train", site.spec)
    rows.write_text("3,4\n")
    exchange.take_request("mlops-train-1")
    assert rows.read_text() == "1,2\n"


def test_what_a_clean_up_might_take_is_uploaded_again(tmp_path: Path, site: Site) -> None:
    exchange = Exchange(f"file://{tmp_path}/exchange", pauses=())
    exchange.send_request("mlops-train-1", "train", site.spec)
    for path in (tmp_path / "exchange" / "objects").iterdir():
        os.utime(path, (time.time() - FRESH_SECONDS - 60,) * 2)
    exchange.send_request("mlops-train-2", "train", site.spec)
    assert max(exchange.objects.ages().values()) < 3600


def objects(exchange: Exchange) -> list[str]:
    return sorted(exchange.objects.ages())


def test_a_result_of_which_an_object_is_missing_or_another_is_quarantined(exchange: Exchange, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")
    exchange.send_result("mlops-validate-1", path)
    shutil.rmtree(path.parent)
    page = next(name for name in objects(exchange) if exchange.objects.read(name) == b"good")
    for spoil, words in (
        (lambda: exchange.objects.write(page, b"evil"), "cut off or altered"),
        (lambda: exchange.objects.remove(page), "is missing"),
    ):
        spoil()
        with pytest.raises(ResultInvalid, match=words):
            exchange.take_result("mlops-validate-1", path)
        assert not path.exists() and exchange.take_result("mlops-validate-1", path) is False
        kept = exchange.objects.read("results/mlops-validate-1.quarantined.json")
        exchange.objects.write("results/mlops-validate-1.json", kept or b"")


def test_an_object_that_was_altered_is_repaired_by_whoever_sends_it_again(exchange: Exchange, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")
    exchange.send_result("mlops-validate-1", path)
    page = next(name for name in objects(exchange) if exchange.objects.read(name) == b"good")
    exchange.objects.write(page, b"evil")
    path.parent.rename(tmp_path / "pod")
    with pytest.raises(ResultInvalid, match="cut off or altered"):
        exchange.take_result("mlops-validate-1", path)
    shutil.rmtree(path.parent)
    (tmp_path / "pod").rename(path.parent)
    exchange.send_result("mlops-validate-1", path)
    shutil.rmtree(path.parent)
    assert exchange.take_result("mlops-validate-1", path) is True


@pytest.mark.parametrize("exchange", ["file"], indirect=True)
def test_a_result_that_does_not_bring_what_its_record_names_is_quarantined(exchange: Exchange, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")
    exchange.send_result("mlops-validate-1", path)
    shutil.rmtree(path.parent)
    told = json.loads(exchange.objects.read("results/mlops-validate-1.json") or b"")
    exchange.objects.write("results/mlops-validate-1.json", canonical_json({**told, "items": []}))
    with pytest.raises(ResultInvalid, match="data_docs"):
        exchange.take_result("mlops-validate-1", path)
    assert not path.exists()


def test_a_result_that_was_cut_off_is_quarantined(exchange: Exchange, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")
    exchange.send_result("mlops-validate-1", path)
    exchange.objects.write("results/mlops-validate-1.json", (exchange.objects.read("results/mlops-validate-1.json") or b"")[:40])
    with pytest.raises(ResultInvalid, match="is no JSON"):
        exchange.take_result("mlops-validate-1", path)
    assert exchange.objects.read("results/mlops-validate-1.quarantined.json")


@pytest.mark.parametrize("exchange", ["file"], indirect=True)
@pytest.mark.parametrize("part", ["item", "record"])
@pytest.mark.parametrize("elsewhere", ["{run}-other/file", "{run}/../other/file"])
def test_a_pod_cannot_write_where_it_likes_on_the_worker(exchange: Exchange, tmp_path: Path, elsewhere: str, part: str) -> None:
    path = leave_result(tmp_path / "run")
    exchange.send_result("mlops-validate-1", path)
    told = json.loads(exchange.objects.read("results/mlops-validate-1.json") or b"")
    (told["items"][0] if part == "item" else told["record"])["path"] = elsewhere.format(run=path.parent)
    exchange.objects.write("results/mlops-validate-1.json", canonical_json(told))
    with pytest.raises(ResultInvalid, match="expected only what lies below" if part == "item" else f"; expected {path}"):
        exchange.take_result("mlops-validate-1", path)


def test_a_listing_cannot_lead_out_of_its_directory(exchange: Exchange, tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    listing.write_text(f"{exchange.objects.put(listing_of(tmp_path))}  ../out\n")
    with pytest.raises(ResultInvalid, match=r"names the path '\.\./out'"):
        exchange.objects.get_tree(exchange.objects.put(listing), tmp_path / "tree")
    assert not (tmp_path / "out").exists()


def listing_of(home: Path) -> Path:
    (home / "payload").write_text("evil")
    return home / "payload"


def test_a_sender_that_was_killed_has_sent_nothing_until_it_sends_again(s3: S3Server, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")
    script = f"""
        from pathlib import Path
        from airflow_mlops.stages.exchange import Exchange
        print("ready", flush=True)
        Exchange("s3://{BUCKET}/runs", {s3.options()!r}).send_result("mlops-validate-1", Path({str(path)!r}))
    """
    sender = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])

    def killing(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Iterable[bytes]:
        answer = list(inner(environ, start_response))
        if environ["REQUEST_METHOD"] == "PUT":
            os.kill(sender.pid, signal.SIGKILL)
        return answer

    s3.meddler = killing
    assert sender.wait(60) == -signal.SIGKILL
    s3.meddler = None
    assert objects(over(s3)) and over(s3).take_result("mlops-validate-1", path) is False
    over(s3).send_result("mlops-validate-1", path)
    assert over(s3).take_result("mlops-validate-1", path) is True


def test_an_upload_that_the_store_cut_off_is_noticed_and_made_again(s3: S3Server, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")

    def cutting(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Iterable[bytes]:
        answer = list(inner(environ, start_response))
        if environ["REQUEST_METHOD"] == "PUT" and "/objects/" in environ["PATH_INFO"]:
            s3.meddler = None
            over(s3).objects.write(environ["PATH_INFO"].removeprefix(f"/{BUCKET}/runs/"), b"g")
        return answer

    s3.meddler = cutting
    with pytest.raises(ExchangeUnavailable, match="1 bytes after an upload of"):
        over(s3).send_result("mlops-validate-1", path)
    over(s3).send_result("mlops-validate-1", path)
    assert over(s3).take_result("mlops-validate-1", path) is True


def test_a_store_that_is_busy_is_asked_again(s3: S3Server, tmp_path: Path) -> None:
    path, refused = leave_result(tmp_path / "run"), []

    def busy_twice(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT" and len(refused) < 2:
            refused.append(environ["PATH_INFO"])
            return error("SlowDown", "503 Slow Down")(environ, start_response, inner)
        return inner(environ, start_response)

    s3.meddler = busy_twice
    over(s3, pauses=(0.01, 0.01)).send_result("mlops-validate-1", path)
    assert len(refused) == 2 and over(s3).take_result("mlops-validate-1", path) is True


def test_a_store_that_is_down_is_worth_a_retry_and_one_that_refuses_is_not(s3: S3Server, tmp_path: Path) -> None:
    path = leave_result(tmp_path / "run")
    s3.meddler = error("InternalError", "500 Internal Server Error")
    with pytest.raises(ExchangeUnavailable, match=r"cannot be .* asked 1 times"):
        over(s3).send_result("mlops-validate-1", path)
    s3.meddler = error("AccessDenied", "403 Forbidden")
    with pytest.raises(StageError, match="See to the store, its credentials") as caught:
        over(s3).send_result("mlops-validate-1", path)
    assert not caught.value.retryable


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(s3: S3Server, tmp_path: Path) -> None:
    path, release = leave_result(tmp_path / "run"), threading.Event()

    def slow(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Iterable[bytes]:
        release.wait(30)
        return inner(environ, start_response)

    s3.meddler = slow
    options = s3.options(config_kwargs={"read_timeout": 0.2, "retries": {"max_attempts": 0}})
    with pytest.raises(ExchangeUnavailable):
        Exchange(f"s3://{BUCKET}/runs", options, ()).send_result("mlops-validate-1", path)
    release.set()


def test_old_and_finished_things_are_deleted_and_nothing_that_is_referred_to(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = leave_result(tmp_path / "run")
    exchange.send_result("mlops-validate-1", kept)
    lonely = tmp_path / "lonely"
    lonely.write_text("nobody's")
    exchange.objects.put(lonely)
    three = 3 * FRESH_SECONDS
    assert exchange.clean(three) == 0
    there, now = len(objects(exchange)), time.time()
    exchange.send_result("mlops-validate-2", kept)
    monkeypatch.setattr("airflow_mlops.stages.objects.time.time", lambda: now + three + 60)
    monkeypatch.setattr(Objects, "ages", aging_only_objects(Objects.ages))
    assert exchange.clean(three, finished=["mlops-validate-2"], limit=1) == 1
    assert exchange.clean(three, finished=["mlops-validate-2"]) == 1
    assert len(objects(exchange)) == there - 1
    monkeypatch.undo()
    shutil.rmtree(kept.parent)
    assert exchange.take_result("mlops-validate-1", kept) is True


def aging_only_objects(ages: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    return lambda self, folder="objects": {name: age if folder == "objects" else 0.0 for name, age in ages(self, folder).items()}


@pytest.mark.parametrize("exchange", ["file"], indirect=True)  # nothing is asked of the store
def test_an_age_that_would_take_what_others_rely_on_is_refused(exchange: Exchange) -> None:
    with pytest.raises(SpecError, match="at least 2: who sends"):
        exchange.clean(3600)


@pytest.mark.parametrize("exchange", ["file"], indirect=True)  # nothing is asked of the store
@pytest.mark.parametrize("uri", ["sqlite:////srv/mlflow.db", "sqlite+pysqlite:////srv/mlflow.db", "file:///srv/mlruns", "/srv/mlruns", "mlruns"])
def test_a_registry_that_is_a_file_of_the_worker_is_refused_before_anything_is_sent(exchange: Exchange, site: Site, uri: str) -> None:
    with pytest.raises(SpecError, match=r"tracking_uri is .*: a place on the worker.*http://mlflow:5000"):
        exchange.send_request("mlops-train-1", "train", site.spec._replace(tracking_uri=uri))
    assert exchange.objects.ages() == {}


@pytest.mark.parametrize("exchange", ["file"], indirect=True)
@pytest.mark.parametrize("uri", ["https://mlflow.example.org", "databricks", "postgresql://mlflow@db/mlflow"])
def test_a_registry_that_pods_can_reach_is_not(exchange: Exchange, site: Site, uri: str) -> None:
    exchange.send_request("mlops-train-1", "train", site.spec._replace(tracking_uri=uri))
    assert exchange.take_request("mlops-train-1")[1]["tracking_uri"] == uri


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "/srv/exchange", "nothing://x"])
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(SpecError) as caught:
        Exchange(url)
    assert "secret" not in str(caught.value).split("password")[0]


@pytest.mark.parametrize("exchange", ["file"], indirect=True)  # nothing is asked of the store
@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "x" * 300])
def test_a_name_that_no_pod_can_have_is_refused(exchange: Exchange, name: str) -> None:
    with pytest.raises(SpecError, match="cannot name a request"):
        exchange.take_request(name)
