"""The files that flags name, in protobuf's text format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving.embedded import settings
from airflow_mlops.serving.embedded.orders import BatchingParameters
from airflow_mlops.serving.embedded.settings import DEFAULT_METRICS_PATH, Tls

Read = Callable[[Path], Any]
READERS = [settings.batching_parameters, settings.tls, settings.metrics_path]
EVERY_READER = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "settings.config"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_every_batching_parameter_of_the_original_is_read(file: Callable[[str], Path]) -> None:
    """The example of the original's documentation (g3doc/serving_config.md, session_bundle_config.proto), and all further fields."""
    text = """
        # how requests are joined
        max_batch_size { value: 64 }
        batch_timeout_micros { value: 1000 }
        max_enqueued_batches { value: 10 }
        num_batch_threads { value: 8 }
        thread_pool_name { value: "batches" }
        allowed_batch_sizes: 8
        allowed_batch_sizes: 32
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 32 }
        enable_priority_queue { value: true }
        batching_rate { value: 0.5 }
    """
    assert settings.batching_parameters(file(text)) == BatchingParameters(64, 1000, 10, 8, (8, 32), True, True, 32)


def test_what_a_file_does_not_name_is_our_default(file: Callable[[str], Path]) -> None:
    assert settings.batching_parameters(None) == settings.batching_parameters(file("")) == BatchingParameters()
    assert settings.batching_parameters(file("max_batch_size { value: 4 }")) == BatchingParameters(max_batch_size=4)
    assert settings.batching_parameters(file("batch_timeout_micros { }")) == BatchingParameters(batch_timeout_micros=0)
    assert not settings.batching_parameters(file("enable_large_batch_splitting { value: false }")).enable_large_batch_splitting


@pytest.mark.parametrize(
    "text", ["max_batch_size { }", "num_batch_threads { value: -1 }", "allowed_batch_sizes: 3", "batch_timeout_micros { value: -1 }"]
)
def test_impossible_batching_parameters_are_refused_with_the_files_name(file: Callable[[str], Path], text: str) -> None:
    with pytest.raises(SpecError, match=r"settings\.config"):
        settings.batching_parameters(file(text))


@pytest.mark.parametrize("text", ["max_batch_size { }", "num_batch_threads { value: -1 }", "allowed_batch_sizes: 3"])
def test_impossible_batching_parameters_are_refused(file: Callable[[str], Path], text: str) -> None:
    with pytest.raises(SpecError, match=text.split()[0].rstrip(":")):
        settings.batching_parameters(file(text))


@EVERY_READER
@pytest.mark.parametrize("text", [b"nonsense", b"max_batch_sizes { value: 1 }", b"\xff\xfe", b"max_batch_size {", b"server_key: 5"])
def test_a_file_that_is_no_such_message_is_named_in_the_error(file: Callable[[bytes], Path], read: Read, text: bytes) -> None:
    path = file(text)
    with pytest.raises(SpecError, match="in protobuf text format") as refused:
        read(path)
    assert str(path) in str(refused.value)


@EVERY_READER
@pytest.mark.parametrize("what", ["nothing", "a directory"])
def test_a_file_that_cannot_be_read_is_named_in_the_error(tmp_path: Path, read: Read, what: str) -> None:
    path = tmp_path / "nothing" if what == "nothing" else tmp_path
    with pytest.raises(SpecError) as refused:
        read(path)
    assert str(path) in str(refused.value)


class TestTls:
    KEYS = 'server_key: "-----BEGIN KEY-----\\nabc\\n" server_cert: "certificate"'

    def test_keys_and_certificates_are_read(self, file: Callable[[str], Path]) -> None:
        assert settings.tls(file(self.KEYS)) == Tls("-----BEGIN KEY-----\nabc\n", "certificate", "", False)
        whole = settings.tls(file(self.KEYS + ' custom_ca: "authority" client_verify: true'))
        assert (whole.custom_ca, whole.client_verify) == ("authority", True)

    def test_text_over_several_lines_is_joined_as_protobuf_joins_it(self, file: Callable[[str], Path]) -> None:
        assert settings.tls(file('server_key: "a\\n"\n  "b\\n" server_cert: "c"')).server_key == "a\nb\n"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "needs server_key and server_cert"),
            ('server_key: "k"', "needs server_key and server_cert"),
            ('server_cert: "c"', "needs server_key and server_cert"),
            (KEYS + " client_verify: true", "asks for client_verify without a custom_ca"),
        ],
    )
    def test_half_a_configuration_is_refused_with_the_files_name(self, file: Callable[[str], Path], text: str, words: str) -> None:
        path = file(text)
        with pytest.raises(SpecError, match=words) as refused:
            settings.tls(path)
        assert str(path) in str(refused.value)

    def test_an_error_does_not_show_the_key(self, file: Callable[[str], Path]) -> None:
        with pytest.raises(SpecError) as refused:
            settings.tls(file('server_key: "very secret" server_certificate: "c"'))
        assert "very secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", None),
        ("prometheus_config { }", None),
        ('prometheus_config { enable: false path: "/metrics" }', None),
        ("prometheus_config { enable: true }", DEFAULT_METRICS_PATH),
        ('prometheus_config { enable: true path: "/metrics" }', "/metrics"),
    ],
)
def test_metrics_are_shown_where_the_file_says_so_and_nowhere_without(file: Callable[[str], Path], text: str, path: str | None) -> None:
    assert settings.metrics_path(file(text)) == path
    assert settings.metrics_path(None) is None
