"""The command line: flags of the original, what they become, and what is wrong with them."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from pathlib import Path

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.embedded import flags
from airflow_mlops.serving.embedded.orders import BatchingParameters, Order

# model_servers/main.cc of TensorFlow Serving, each with a value of its type.
ORIGINAL = {
    "port": "8500",
    "grpc_socket_path": "/tmp/socket",
    "rest_api_port": "8501",
    "rest_api_num_threads": "4",
    "rest_api_timeout_in_ms": "30000",
    "rest_api_enable_cors_support": "true",
    "enable_batching": "true",
    "allow_version_labels_for_unavailable_models": "true",
    "batching_parameters_file": "/tmp/file",
    "enable_per_model_batching_parameters": "true",
    "model_config_file": "/tmp/file",
    "model_config_file_poll_wait_seconds": "60",
    "model_name": "m",
    "model_base_path": "/tmp/m",
    "num_load_threads": "2",
    "num_unload_threads": "2",
    "max_num_load_retries": "5",
    "load_retry_interval_micros": "60000000",
    "file_system_poll_wait_seconds": "1",
    "flush_filesystem_caches": "true",
    "tensorflow_session_parallelism": "0",
    "tensorflow_intra_op_parallelism": "1",
    "tensorflow_inter_op_parallelism": "1",
    "use_alternate_profile": "true",
    "ssl_config_file": "/tmp/file",
    "platform_config_file": "/tmp/file",
    "per_process_gpu_memory_fraction": "0.5",
    "saved_model_tags": "serve",
    "grpc_channel_arguments": "grpc.max_connection_age_ms=2000",
    "grpc_max_threads": "8",
    "enable_model_warmup": "true",
    "num_request_iterations_for_warmup": "2",
    "monitoring_config_file": "/tmp/file",
    "remove_unused_fields_from_bundle_metagraph": "true",
    "prefer_tflite_model": "true",
    "num_tflite_pools": "1",
    "enable_signature_method_name_check": "true",
    "xla_cpu_compilation_enabled": "true",
    "enable_profiler": "true",
    "thread_pool_factory_config_file": "/tmp/file",
    "mixed_precision": "bfloat16",
    "skip_initialize_tpu": "true",
    "enable_grpc_healthcheck_service": "true",
    "enable_serialization_as_tensor_content": "true",
    "use_tflite_model": "true",
}
SWITCHES = {"enable_batching": False, "enable_model_warmup": True, "enable_grpc_healthcheck_service": False}


def parse(*argv: str) -> Namespace:
    return flags.parse(list(argv))


@pytest.mark.parametrize(("name", "value"), ORIGINAL.items(), ids=ORIGINAL)
@pytest.mark.parametrize("form", ["--{}={}", "--{} {}"])
def test_every_flag_of_the_original_is_accepted(name: str, value: str, form: str) -> None:
    options = parse(*form.format(name, value).split())
    assert str(getattr(options, name)).lower() in (value, f"{value}.0")


def test_flags_without_effect_are_named_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    parse("--num_unload_threads=2", "--flush_filesystem_caches", "--port=1", "--enable_batching")
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "these flags of TensorFlow Serving have no effect here: flush_filesystem_caches, num_unload_threads",
    )


def test_flags_with_an_effect_are_not_complained_about(caplog: pytest.LogCaptureFixture) -> None:
    with_effect = [f"--{name}={value}" for name, value in ORIGINAL.items() if name not in flags._WITHOUT_EFFECT]
    assert len(with_effect) > 20
    parse(*with_effect)
    assert caplog.records == []


@pytest.mark.parametrize(("name", "default"), SWITCHES.items(), ids=SWITCHES)
def test_a_switch_is_on_off_or_left_as_it_is(name: str, default: bool) -> None:
    assert getattr(parse(), name) is default
    for text in ("", "=true", "=True", "=1"):
        assert getattr(parse(f"--{name}{text}"), name) is True, text
    for text in ("=false", "=FALSE", "=0"):
        assert getattr(parse(f"--{name}{text}"), name) is False, text
    options = parse(f"--{name}", "--port=1")  # what follows is another flag, no value
    assert (getattr(options, name), options.port) == (True, 1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--enable_batching=perhaps"], "'perhaps' is neither true nor false"),
        (["--enable_batching="], "'' is neither true nor false"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--enable_batch"], "unrecognized arguments"),  # no abbreviations: a new flag must not change what an old one means
        (["--port=http"], "--port"),
        (["--num_load_threads=many"], "--num_load_threads"),
        (["model"], "unrecognized arguments: model"),
    ],
)
def test_flags_that_are_not_understood_end_with_2_and_a_reason(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert (ended.value.code, words in capsys.readouterr().err) == (2, True)


def test_help_says_which_flags_the_original_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    ours = {name.split("=")[0] for name in vars(parse())} - ORIGINAL.keys()
    assert ours == {"host", "rest_max_body_bytes", "num_run_threads", "load_timeout_in_ms", "run_timeout_in_ms", "op_library"}
    assert text.count("(not in the original)") == len(ours)


class TestInitialConfig:
    def test_one_model_is_served_without_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in (f"{tmp_path}/m", "m"):
            options = parse("--model_name=solo", f"--model_base_path={path}")
            assert flags.initial_config(options) == ServerConfig((ModelConfig("solo", f"{tmp_path}/m"),))
        assert flags.initial_config(parse("--model_base_path=/m")).models[0].name == "default"

    def test_the_one_models_base_path_may_be_a_file_uri_as_in_a_file(self, tmp_path: Path) -> None:
        options = parse(f"--model_base_path=file://{tmp_path}/m")
        assert flags.initial_config(options).models[0].base_path in (f"file://{tmp_path}/m", f"{tmp_path}/m")

    def test_the_one_models_base_path_is_kept_as_a_uri_that_the_loader_refuses(self) -> None:
        assert flags.initial_config(parse("--model_base_path=gs://bucket/m")).models[0].base_path == "gs://bucket/m"

    def test_the_files_models_are_served(self, tmp_path: Path) -> None:
        path = tmp_path / "models.config"
        labels = "version_labels { key: 'a' value: 1 }"
        path.write_text(f"model_config_list {{ config {{ name: 'm' base_path: '/m' model_platform: 'tensorflow' {labels} }} }}")
        (model,) = flags.initial_config(parse(f"--model_config_file={path}", "--model_base_path=/other")).models
        assert (model.name, model.base_path, model.labels) == ("m", "/m", {"a": 1})

    def test_an_empty_file_means_no_models_at_the_start_but_is_no_change_to_follow(self, tmp_path: Path) -> None:
        path = tmp_path / "models.config"
        path.touch()
        assert flags.initial_config(parse(f"--model_config_file={path}")) == ServerConfig()
        with pytest.raises(SpecError, match="holds nothing"):
            flags.config_file(path)

    def test_a_file_that_is_not_written_yet_means_no_models_and_is_named_in_the_log(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert flags.initial_config(parse(f"--model_config_file={tmp_path}/later.config")) == ServerConfig()
        assert f"{tmp_path}/later.config does not exist yet, or is empty" in caplog.text

    def test_nothing_to_serve_is_refused_with_what_to_give(self) -> None:
        with pytest.raises(SpecError, match="give --model_config_file, or --model_name and --model_base_path"):
            flags.initial_config(parse("--model_name=m"))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b"nonsense", "is not a model_config_list in protobuf text format"),
            (b"\xff", "is not a model_config_list in protobuf text format"),
            (b"model_config_list { config { name: 'm' base_path: '/m' } }", "neither ModelServerConfig::model_type"),
            (b"model_config_list { config { name: 'm' base_path: '/m' model_platform: 'x' } }", "requests unsupported platform x"),
            (b"model_config_list { config { name: 'm' base_path: 'm' model_platform: 'tensorflow' } }", "absolute path or URI"),
            (
                b"model_config_list { " + b"config { name: 'm' base_path: '/m' model_platform: 'tensorflow' } " * 2 + b"}",
                "multiple times in config list",
            ),
            (b"custom_model_config { }", "custom_model_config"),
        ],
    )
    def test_a_file_that_the_original_refuses_is_refused_by_its_name(self, tmp_path: Path, text: bytes, words: str) -> None:
        path = tmp_path / "models.config"
        path.write_bytes(text)
        with pytest.raises(SpecError) as refused:
            flags.initial_config(parse(f"--model_config_file={path}"))
        assert str(path) in str(refused.value) and words in str(refused.value)

    def test_a_file_that_cannot_be_read_is_refused_by_its_name(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=str(tmp_path)):
            flags.initial_config(parse(f"--model_config_file={tmp_path}"))


class TestOrder:
    def config(self, *argv: str) -> object:
        return protos.config_pb2.ConfigProto.FromString(flags.order(parse(*argv)).config)

    def test_the_defaults(self) -> None:
        order = flags.order(parse())
        expected = Order("", 0, "", config=order.config, run_timeout_seconds=300.0)
        assert order == expected
        assert (order.tags, order.batching, order.warm_up, order.as_content, order.num_threads) == (("serve",), None, True, False, 4)

    def test_every_flag_reaches_the_process(self, tmp_path: Path) -> None:
        (tmp_path / "batching").write_text("max_batch_size { value: 4 }")
        for name in ("a.so", "b.so"):
            (tmp_path / name).write_bytes(b"\x7fELF...")
        order = flags.order(
            parse(
                "--saved_model_tags=serve,gpu",
                "--enable_batching",
                f"--batching_parameters_file={tmp_path}/batching",
                "--num_run_threads=7",
                "--enable_model_warmup=false",
                "--enable_serialization_as_tensor_content",
                "--run_timeout_in_ms=1500",
                f"--op_library={tmp_path}/a.so",
                f"--op_library={tmp_path}/b.so",
            )
        )
        assert order._replace(config=b"") == Order(
            "", 0, "", ("serve", "gpu"), b"", (f"{tmp_path}/a.so", f"{tmp_path}/b.so"), BatchingParameters(max_batch_size=4), 7, False, True, 1.5
        )

    def test_batching_parameters_without_batching_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "batching").write_text("max_batch_size { value: 4 }")
        with pytest.raises(SpecError, match=r"--batching_parameters_file is given, but --enable_batching is not.*Give both or neither"):
            flags.order(parse(f"--batching_parameters_file={tmp_path}/batching"))
        assert flags.order(parse("--enable_batching")).batching == BatchingParameters()

    @pytest.mark.parametrize(("content", "words"), [(None, "cannot be read: .*No such file"), (b"#!/bin/sh", "is no shared library of this system")])
    def test_a_library_that_is_none_is_found_at_the_start(self, tmp_path: Path, content: bytes | None, words: str) -> None:
        if content is not None:
            (tmp_path / "ops.so").write_bytes(content)
        with pytest.raises(SpecError, match=f"--op_library={tmp_path}/ops.so {words}"):
            flags.order(parse(f"--op_library={tmp_path}/ops.so"))

    @pytest.mark.parametrize(
        ("argv", "intra", "inter"),
        [
            ([], 0, -1),
            (["--tensorflow_session_parallelism=3"], 3, 3),
            (["--tensorflow_intra_op_parallelism=2", "--tensorflow_session_parallelism=3"], 2, 3),
            (["--tensorflow_inter_op_parallelism=2"], 0, 2),
        ],
    )
    def test_threads_of_tensorflow(self, argv: list[str], intra: int, inter: int) -> None:
        config = protos.config_pb2.ConfigProto.FromString(flags.order(parse(*argv)).config)
        assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (intra, inter)

    def test_a_fraction_of_the_gpus_memory_is_fixed_and_none_grows(self) -> None:
        for argv, fraction, grows in (([], 0.0, True), (["--per_process_gpu_memory_fraction=0.5"], 0.5, False)):
            options = protos.config_pb2.ConfigProto.FromString(flags.order(parse(*argv)).config).gpu_options
            assert (options.per_process_gpu_memory_fraction, options.allow_growth) == (fraction, grows)


@pytest.mark.parametrize("name", ["ssl_config_file", "model_config_file", "monitoring_config_file", "batching_parameters_file", "grpc_socket_path"])
def test_an_empty_file_name_means_none(name: str) -> None:
    assert getattr(parse(f"--{name}="), name) is None


def test_the_version_is_told_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--version")
    assert caught.value.code == 0
    assert re.fullmatch(r"airflow-mlops model server \S+, TensorFlow 2\.\S+\n", capsys.readouterr().out)
    parse("--version=false")  # as the original takes it


def test_a_server_that_listens_nowhere_for_grpc_is_refused() -> None:
    with pytest.raises(SpecError, match="--port=0 turns gRPC off"):
        flags.initial_config(parse("--port=0", "--model_base_path=/models/m"))
    assert flags.initial_config(parse("--port=0", "--grpc_socket_path=/tmp/s", "--model_base_path=/models/m")).models


def test_an_empty_configuration_file_leaves_the_one_model_and_an_empty_base_path_is_none() -> None:
    assert flags.initial_config(parse("--model_config_file=", "--model_base_path=/m")).models[0].base_path == "/m"
    with pytest.raises(SpecError, match="Nothing to serve"):
        flags.initial_config(parse("--model_config_file=", "--model_base_path="))


def test_metrics_without_rest_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    flags.initial_config(parse("--model_base_path=/m", "--monitoring_config_file=/f"))
    assert caplog.records == []
    flags.initial_config(parse("--model_base_path=/m", "--monitoring_config_file=/f", "--rest_api_port=0"))
    assert "--monitoring_config_file has no effect" in caplog.text


def test_a_bare_name_of_a_library_is_one_of_this_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linker would look for it in its own directories."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.so").write_bytes(b"\x7fELF...")
    assert flags.order(parse("--op_library=a.so")).libraries == (f"{tmp_path}/a.so",)
    with pytest.raises(SpecError, match="--op_library= cannot be read"):
        flags.order(parse("--op_library="))
