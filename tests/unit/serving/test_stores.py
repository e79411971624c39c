from __future__ import annotations

import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import MlopsError, PublishError, ServingUnavailable, SpecError
from airflow_mlops.local.services import free_port
from airflow_mlops.serving import manifest
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.publish import publish_saved_model
from airflow_mlops.serving.stores import Store, normalized, open_store
from airflow_mlops.serving.usage import Usage
from tests.bare_saved_models import golden, graph, saved_model, signature, tensor
from tests.conformance.stores import StoreConformance, content
from tests.publisher import Publishers
from tests.s3 import App, S3Server, error, killing_after_an_upload

SECRET = "wJalrXUtnFEMI-K7MDENG"
DATA = "variables/variables.data-00000-of-00001"


@pytest.fixture
def store(base_path: str, options: dict[str, Any]) -> Store:
    return open_store(base_path, options)


@pytest.fixture
def publish(base_path: str, options: dict[str, Any]) -> Callable[..., str]:
    def call(source: Path, version: int, digest: str, **more: Any) -> str:
        return publish_saved_model(source, base_path, version, digest, **{"storage_options": options, **more})

    return call


class TestDirectory(StoreConformance):
    @pytest.fixture
    def base_path(self, tmp_path: Path) -> str:
        return str(tmp_path / "models" / "digits")

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {}

    def test_a_file_that_is_removed_while_it_is_read_is_none(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def removed(path: Path) -> bytes:
            path.unlink()
            return read_bytes(path)

        read_bytes = Path.read_bytes
        store.write(".manifests/3.json", b"{}")
        monkeypatch.setattr(Path, "read_bytes", removed)
        assert store.read(".manifests/3.json") is None

    def test_below_a_file_there_is_no_file(self, store: Store) -> None:
        store.write("3", b"")
        assert store.read("3/saved_model.pb") is None


class TestMemory(StoreConformance):
    @pytest.fixture
    def base_path(self) -> str:
        return f"memory://{uuid.uuid4()}/models/digits"

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        fsspec.filesystem("s3", **server.options()).mkdir("models")
        yield server
        server.meddler = None


@pytest.fixture
def options(s3: S3Server) -> Iterator[dict[str, Any]]:
    yield s3.options()
    s3.meddler = None


@pytest.fixture
def base_path() -> str:
    return f"s3://models/{uuid.uuid4()}/digits"


class TestS3(StoreConformance):
    pass


# ---------------------------------------------------------------------------------------------------------------------- object stores


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "source")


@pytest.fixture
def digest(source: Path) -> str:
    return path_digest(source)[0]


def uploads(s3: S3Server, version: int) -> list[str]:
    """Return what was written, in order, below the version's place or as manifest."""
    paths = [path for method, path in s3.requests if method == "PUT"]
    return [path.rpartition("digits/")[2] for path in paths if f"/{version}" in path.rpartition("digits")[2]]


def test_the_graph_is_uploaded_last_of_the_model_and_the_manifest_last_of_all(
    s3: S3Server, source: Path, digest: str, publish: Callable[..., str], tmp_path: Path
) -> None:
    s3.requests.clear()
    publish(source, 3, digest, golden=golden(tmp_path / "golden.json"))
    files = ["3/assets.extra/tf_serving_warmup_requests", f"3/{DATA}", "3/variables/variables.index", "3/saved_model.pb"]
    assert uploads(s3, 3) == [*files, ".manifests/3.json"]


def test_an_upload_killed_after_each_of_its_writes_goes_on_where_it_was_and_is_published_by_the_last(
    s3: S3Server, base_path: str, store: Store, options: dict[str, Any], source: Path, digest: str, tmp_path: Path
) -> None:
    order = {"source": source, "version": 3, "digest": digest, "golden": golden(tmp_path / "golden.json"), "base_path": base_path}
    s3.meddler = killing_after_an_upload
    with Publishers(tmp_path) as publishers:
        for done in (1, 2, 3, 4, 5):
            s3.requests.clear()
            assert publishers.publish(**order, storage_options=options)[0] == -9
            assert len(uploads(s3, 3)) == 1
            assert ("saved_model.pb" in store.names("3")) == (done >= 4)
            assert (manifest.published(store) == {3}) == (done == 5)
        assert publishers.publish(**order, storage_options=options)[0] == 0  # there is nothing left to write
    found = manifest.read(store, 3)
    assert found and store.intact(3, found.files)


def test_leftovers_of_another_content_are_replaced_and_its_graph_goes_first(
    s3: S3Server, store: Store, source: Path, digest: str, publish: Callable[..., str], tmp_path: Path
) -> None:
    other = saved_model(tmp_path / "other", weights=b"WEIGHTS")  # the same graph and the same sizes
    store.place(3, content(other))
    store.write("3/assets/more", b"more")
    s3.requests.clear()
    publish(source, 3, digest)
    deleted = [path.rpartition("digits/3/")[2] for method, path in s3.requests if method == "DELETE" and "digits/3/" in path]
    assert deleted == ["saved_model.pb", "assets/more", DATA, "variables/variables.index"]
    assert store.read(f"3/{DATA}") == b"weights" and not store.names("3/assets")


def test_an_object_that_the_store_alters_is_found(s3: S3Server, store: Store, source: Path, digest: str, publish: Callable[..., str]) -> None:
    def flip(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Any:
        def without_checksum(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:  # by which botocore would find it
            return start_response(status, [header for header in headers if "checksum" not in header[0].lower()], *more)

        answer = b"".join(inner(environ, without_checksum))
        return [answer.replace(b"weights", b"weighty") if environ["REQUEST_METHOD"] == "GET" else answer]

    s3.meddler = flip
    with pytest.raises(PublishError, match=rf"{DATA} is not what was written: expected sha256:.*, read back sha256:"):
        publish(source, 3, digest)
    s3.meddler = None
    assert "saved_model.pb" not in store.names("3") and manifest.published(store) == set()


def test_publishers_of_the_same_at_once_all_succeed(store: Store, source: Path, digest: str, publish: Callable[..., str]) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: publish(source, 3, digest), range(6)))) == 1
    found = manifest.read(store, 3)
    assert found and store.intact(3, found.files)


def test_who_writes_there_meanwhile_is_noticed(s3: S3Server, store: Store, source: Path, digest: str, publish: Callable[..., str]) -> None:
    def also(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Any:
        answer = inner(environ, start_response)
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("3/saved_model.pb"):
            s3.meddler = None
            store.write("3/variables/more", b"of another publisher")
        return answer

    s3.meddler = also
    with pytest.raises(PublishError, match="was altered while it was written"):
        publish(source, 3, digest)
    assert manifest.published(store) == set()


def test_where_the_server_chooses_the_version_nothing_is_uploaded(
    s3: S3Server, base_path: str, source: Path, digest: str, publish: Callable[..., str]
) -> None:
    s3.requests.clear()
    for entry in (ModelConfig("digits", "s3://elsewhere/digits"), ModelConfig("other", f"{base_path}/")):
        with pytest.raises(SpecError, match=r"leaves it to the server which versions .* specific \{ versions: N \}"):
            publish(source, 3, digest, usage=Usage.of(ServerConfig((entry,)), base_path))
    assert s3.requests == []


def test_what_the_server_was_told_to_serve_is_no_leftover(
    base_path: str, store: Store, source: Path, digest: str, publish: Callable[..., str]
) -> None:
    store.write("3/saved_model.pb", graph())
    usage = Usage.of(ServerConfig((ModelConfig("digits", base_path, (3,)),)), base_path)
    with pytest.raises(PublishError, match="was not published from here, and the server's configuration names it"):
        publish(source, 3, digest, usage=usage)
    assert store.names("3") == {"saved_model.pb"}


def test_of_the_serving_version_only_the_graph_is_read(
    s3: S3Server, base_path: str, source: Path, digest: str, publish: Callable[..., str], tmp_path: Path
) -> None:
    publish(source, 3, digest)
    other = saved_model(tmp_path / "other", {"serving_default": signature({"x": tensor("DT_INT64")})})
    usage = Usage.of(ServerConfig((ModelConfig("digits", base_path, (3,), {"stable": 3}),)), base_path)
    s3.requests.clear()
    with pytest.raises(PublishError, match="Version 4 would break clients of version 3"):
        publish(other, 4, path_digest(other)[0], usage=usage)
    assert {path.rpartition("digits/")[2] for method, path in s3.requests if method == "GET" and "digits/" in path} <= {
        "3/saved_model.pb",
        ".manifests/4.json",
    }
    assert uploads(s3, 4) == []


def test_a_bucket_that_does_not_exist_is_not_made(s3: S3Server, source: Path, digest: str, publish: Callable[..., str]) -> None:
    with pytest.raises(PublishError, match="s3://nobodys/digits cannot be written"):
        publish_saved_model(source, "s3://nobodys/digits", 3, digest, storage_options=s3.options())
    assert not fsspec.filesystem("s3", **s3.options()).exists("s3://nobodys")


@pytest.mark.parametrize(
    ("meddler", "raised"),
    [
        (error("InternalError", "500 Internal Server Error"), ServingUnavailable),
        (error("ServiceUnavailable", "503 Service Unavailable"), ServingUnavailable),
        (error("AccessDenied", "403 Forbidden"), PublishError),
        (error("InvalidArgument", "400 Bad Request"), PublishError),
    ],
)
def test_a_retry_is_worth_it_only_while_the_store_is_at_fault(
    s3: S3Server, base_path: str, source: Path, digest: str, meddler: Any, raised: type[MlopsError]
) -> None:
    s3.meddler = meddler
    with pytest.raises(raised) as caught:
        publish_saved_model(source, base_path, 3, digest, storage_options=s3.options())
    s3.meddler = None
    assert type(caught.value) is raised


def test_credentials_that_the_store_does_not_know_are_no_reason_to_retry_and_are_not_shown(
    s3: S3Server, base_path: str, source: Path, digest: str
) -> None:
    httpx.post(f"{s3.url}/moto-api/reset-auth", content=b"0", trust_env=False).raise_for_status()  # from now on it checks who asks
    try:
        with pytest.raises(PublishError, match="see to the store and the credentials") as caught:
            publish_saved_model(source, base_path, 3, digest, storage_options=s3.options(key=f"A{SECRET}", secret=SECRET))
    finally:
        httpx.post(f"{s3.url}/moto-api/reset-auth", content=b"inf", trust_env=False).raise_for_status()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_store_that_nobody_reaches_is_worth_a_retry(s3: S3Server, base_path: str, source: Path, digest: str) -> None:
    with pytest.raises(ServingUnavailable, match="for the moment"):
        publish_saved_model(source, base_path, 3, digest, storage_options=s3.options(endpoint_url=f"http://127.0.0.1:{free_port()}"))


def test_a_secret_that_the_store_repeats_gets_neither_into_the_message_nor_into_its_cause(
    s3: S3Server, base_path: str, source: Path, digest: str
) -> None:
    s3.meddler = error("SignatureDoesNotMatch", "403 Forbidden", f"not {SECRET}, see https://me:{SECRET[:9]}@s3.example", "PUT")
    with pytest.raises(PublishError, match=r"PermissionError: not \*\*\*, see https://\*\*\*@s3\.example") as caught:
        publish_saved_model(source, base_path, 3, digest, storage_options=s3.options(secret=SECRET))
    assert SECRET[:9] not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("options", [{"key": SECRET}, {"client_kwargs": {"token": SECRET}}, {"tokens": ["first", SECRET]}])
def test_secrets_are_found_wherever_they_stand_in_the_options(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def repeat(*_: object) -> bytes:
        raise PermissionError(f"{SECRET} at http://s3.example in eu-central-1")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", repeat)
    store = open_store("memory://models", {**options, "endpoint_url": "http://s3.example", "region_name": "eu-central-1"})
    with pytest.raises(PublishError, match=r"\*\*\* at http://s3\.example in eu-central-1"):
        store.read("file")


@pytest.mark.parametrize("written", [SECRET, f"with/{SECRET}", f"{SECRET}/with/more"])
def test_credentials_in_the_base_path_are_refused_without_repeating_them(written: str) -> None:
    with pytest.raises(SpecError, match="storage_options") as caught:
        open_store(f"memory://me:{written}@host/models")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("path", ["host:8020/models", "host:8020/models/m@home", "models/m@home", "models/m:1"])
def test_what_only_looks_like_credentials_is_a_base_path(path: str) -> None:
    assert open_store(f"memory://{path}").uri == f"memory://{path}"


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
@pytest.mark.parametrize("host", ["account", "account.dfs.core.windows.net", "account.dfs.core.windows.net:443"])
def test_azure_names_a_container_where_others_name_a_user(scheme: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_mlops.serving.object_store.fsspec.core.url_to_fs", lambda uri, **_: (None, uri))
    assert open_store(f"{scheme}://container@{host}/models/m@home/").uri == f"{scheme}://container@{host}/models/m@home"


@pytest.mark.parametrize("user", [f"container:{SECRET}", f"me:{SECRET}@container", f":{SECRET}", f"container@me:{SECRET}"])
def test_credentials_beside_azure_s_container_are_refused(user: str) -> None:
    with pytest.raises(SpecError, match="holds a user name or password") as caught:
        open_store(f"abfs://{user}@account.dfs.core.windows.net/models")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["abfs://c@a.dfs.core.windows.net/m", "s3://bucket/m"])
def test_a_signed_url_is_refused_without_repeating_its_signature(url: str) -> None:
    with pytest.raises(SpecError, match=rf"The base path '{url}' is followed by a '\?'.*storage_options") as caught:
        open_store(f"{url}?sig={SECRET}")
    assert SECRET not in str(caught.value)


def test_a_missing_package_is_named(source: Path, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(PublishError, match=r"a package is missing .*Install gcsfs on the workers"):
        publish_saved_model(source, "gs://models/digits", 3, digest)


def test_an_unknown_kind_of_store_is_refused(source: Path, digest: str) -> None:
    with pytest.raises(SpecError, match="there is no kind of store called 'what'"):
        publish_saved_model(source, "what://models/digits", 3, digest)


@pytest.mark.parametrize(
    ("one", "other"),
    [("/models/m", "/models/m/"), ("/models/m", "file:///models//m"), ("s3://models/m", "s3://models/m/"), ("/models/m", Path("/models/m"))],
)
def test_base_paths_are_compared_in_one_form(one: str, other: str | Path) -> None:
    assert normalized(one) == normalized(other) == one


def test_base_paths_that_differ_stay_different() -> None:
    assert len({normalized(path) for path in ("/models/m", "/models", "s3://models/m", "gs://models/m", "s3://models//m")}) == 5
