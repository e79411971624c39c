"""The command line, under the original's names (model_servers/main.cc); a flag that the original does not have says so in its help."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import airflow_mlops
from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.embedded import grpc_api, settings
from airflow_mlops.serving.embedded.orders import Order
from airflow_mlops.serving.embedded.refusal import Refusal

log = logging.getLogger(__name__)
# Flags of the original that change nothing here: accepted, so that its command lines work, and named in the log.
_WITHOUT_EFFECT = re.findall(
    r"\w+",
    """
    enable_per_model_batching_parameters enable_profiler enable_signature_method_name_check flush_filesystem_caches grpc_channel_arguments
    grpc_max_threads mixed_precision num_request_iterations_for_warmup num_tflite_pools num_unload_threads platform_config_file prefer_tflite_model
    remove_unused_fields_from_bundle_metagraph rest_api_num_threads skip_initialize_tpu
    thread_pool_factory_config_file use_alternate_profile use_tflite_model xla_cpu_compilation_enabled
    """,
)

_TENSORFLOWS = ("tensorflow", "tensorflow-cpu", "tf-nightly")  # names under which it is installed
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and Windows' subsystem for Linux


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options; exits with 0 after printing help or the version, with 2 on flags it does not understand."""
    options = _parser().parse_args(argv)
    if without := [name for name in _WITHOUT_EFFECT if getattr(options, name) is not None]:
        log.warning("these flags of TensorFlow Serving have no effect here: %s", ", ".join(without))
    return options


def initial_config(options: argparse.Namespace) -> ServerConfig:
    """Return what to serve at first: the file's models, or the one of --model_name; a file that is not written yet means none."""
    _check_addresses(options)
    if options.model_config_file is None:
        if not options.model_base_path:
            raise SpecError("Nothing to serve: give --model_config_file, or --model_name and --model_base_path.")
        base_path = options.model_base_path if "://" in options.model_base_path else str(Path(options.model_base_path).absolute())
        return ServerConfig((ModelConfig(options.model_name, base_path),))
    if not options.model_config_file.exists() or (options.model_config_file.is_file() and not options.model_config_file.stat().st_size):
        log.warning("%s does not exist yet, or is empty: serving no model until a reload names one", options.model_config_file)
        return ServerConfig()
    return config_file(options.model_config_file)


def _check_addresses(options: argparse.Namespace) -> None:
    if not options.port and not options.grpc_socket_path:
        raise SpecError("--port=0 turns gRPC off, and nobody could configure the server. Give a --port, or --grpc_socket_path to have it there only.")
    if options.port == options.rest_api_port != 0:
        raise SpecError(f"--port and --rest_api_port are both {options.port}; gRPC and REST need a port each.")
    if options.monitoring_config_file and not options.rest_api_port:
        log.warning("--monitoring_config_file has no effect: metrics are shown by REST, and --rest_api_port is 0")


def config_file(path: Path) -> ServerConfig:
    """Return the configuration in a file; raise `SpecError` where the original would not start, or would refuse it as a reload."""
    message = protos.model_server_config_pb2.ModelServerConfig()
    try:
        if not path.is_file():
            raise OSError("it is no plain file")  # reading a pipe would wait for ever
        protos.text_format.Parse(path.read_bytes(), message)
        if (found := message.WhichOneof("config")) != "model_config_list":
            raise SpecError(f"{path} holds {found or 'nothing'}; expected a model_config_list, to serve nothing an empty one.")
        return grpc_api.server_config(message)
    except (OSError, UnicodeDecodeError, protos.text_format.ParseError) as error:
        raise SpecError(f"{path} is not a model_config_list in protobuf text format: {error}. Correct the file.") from error
    except Refusal as error:
        raise SpecError(f"{path}: {error}. Correct the file.") from error


def order(options: argparse.Namespace) -> Order:
    """Return what every model process is told; name, version and path are filled in for each. Raises `SpecError`."""
    if options.batching_parameters_file and not options.enable_batching:
        raise SpecError("--batching_parameters_file is given, but --enable_batching is not, so it would do nothing. Give both or neither.")
    config = protos.config_pb2.ConfigProto()
    config.intra_op_parallelism_threads = options.tensorflow_intra_op_parallelism or options.tensorflow_session_parallelism
    # By default a request's operations run in the thread that has the request: handing each over costs a small model as much as running it.
    config.inter_op_parallelism_threads = options.tensorflow_inter_op_parallelism or options.tensorflow_session_parallelism or -1
    if not any(Path(device).exists() for device in _GPUS):  # TensorFlow would report that as an error, with every version that is loaded
        config.device_count["GPU"] = 0
    config.gpu_options.per_process_gpu_memory_fraction = options.per_process_gpu_memory_fraction
    config.gpu_options.allow_growth = not options.per_process_gpu_memory_fraction  # several versions share one device
    return Order(
        name="",
        version=0,
        path="",
        tags=tuple(options.saved_model_tags.split(",")),
        config=config.SerializeToString(),
        libraries=tuple(map(_library, options.op_library)),
        batching=settings.batching_parameters(options.batching_parameters_file) if options.enable_batching else None,
        num_threads=options.num_run_threads,
        warm_up=options.enable_model_warmup,
        as_content=options.enable_serialization_as_tensor_content,
        run_timeout_seconds=options.run_timeout_in_ms / 1000,
    )


def _library(text: str) -> str:
    """Return where a library is; checked now, because later every version would fail to load for the want of it."""
    path = Path(text).absolute()  # the linker looks for a bare name in its own directories, and not here
    try:
        with path.open("rb") as file:
            kind = file.read(4)
    except (OSError, ValueError) as error:
        raise SpecError(f"--op_library={text} cannot be read: {error}. Give the path of a shared library.") from error
    if kind != b"\x7fELF":
        raise SpecError(f"--op_library={text} is no shared library of this system. Give the path of one that is built for TensorFlow.")
    return str(path)


def _file(text: str) -> Path | None:
    """Return a file's path; an empty value is the original's default, and start scripts pass it on for "none"."""
    return Path(text) if text else None


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; expected 0 to 65535")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _boolean(text: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="airflow-mlops serve",
        description="Serve SavedModels over TensorFlow Serving's protocol on one machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    text = "say which versions of this server and of TensorFlow these are"
    parser.add_argument("--version", action=_Version, type=_boolean, nargs="?", const=True, default=argparse.SUPPRESS, metavar="BOOL", help=text)
    for group in (_addresses, _models, _loading, _running, _ours):
        group(parser)
    for name in _WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    return parser


def _switch(parser: argparse.ArgumentParser, name: str, text: str, *, default: bool = False) -> None:
    parser.add_argument(name, type=_boolean, nargs="?", const=True, default=default, metavar="BOOL", help=text)


class _Version(argparse.Action):
    """Says which versions these are, and ends; looked up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option_string: str | None = None) -> None:
        if not values:
            return
        sys.stdout.write(f"airflow-mlops model server {airflow_mlops.__version__}, TensorFlow {_tensorflow_version()}\n")
        parser.exit(0)


def _tensorflow_version() -> str:
    for name in _TENSORFLOWS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)  # importing it would take seconds
    return "is not installed"


def _addresses(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    add("--port", type=_port, default=8500, help="gRPC port; 0: none, only --grpc_socket_path")
    add("--grpc_socket_path", type=_file, help="listen for gRPC on this UNIX socket, too")
    add("--rest_api_port", type=_port, default=8501, help="REST port; 0: no REST")
    add("--rest_api_timeout_in_ms", type=_positive, default=30_000, help="most that a REST request may take to arrive and to be answered")
    add("--ssl_config_file", type=_file, help="SSLConfig: keys and certificates of the gRPC port, as PEM text")
    add("--monitoring_config_file", type=_file, help="MonitoringConfig: whether and where the REST port shows Prometheus metrics")
    _switch(parser, "--enable_grpc_healthcheck_service", "answer grpc.health.v1 on the gRPC port")
    _switch(parser, "--rest_api_enable_cors_support", "let pages of any origin read REST's answers")


def _models(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    add("--model_config_file", type=_file, help="model_config_list in protobuf text format")
    add("--model_config_file_poll_wait_seconds", type=float, default=0.0, help="seconds between looks at that file for changes; 0: never")
    add("--model_name", default="default", help="the one model to serve without a configuration file")
    add("--model_base_path", help="its directory of version directories; the latest is served")
    add("--saved_model_tags", default="serve", help="tags of the graph to load, separated by commas")
    text = "whether a new label may point at a version that is not loaded yet"
    _switch(parser, "--allow_version_labels_for_unavailable_models", text)


def _loading(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    add("--file_system_poll_wait_seconds", type=float, default=1.0, help="seconds between looks for new versions; 0 or less: only on a reload")
    add("--max_num_load_retries", type=int, default=5, help="tries after the first")
    add("--load_retry_interval_micros", type=int, default=1_000_000, help="microseconds between tries; the original waits a minute")
    add("--num_load_threads", type=int, default=4, help="how many versions are loaded at the same time")
    _switch(parser, "--enable_model_warmup", "answer a version's own warm-up requests before it is AVAILABLE", default=True)


def _running(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    _switch(parser, "--enable_batching", "join requests that arrive together into one run of the model")
    add("--batching_parameters_file", type=_file, help="BatchingParameters in protobuf text format, with --enable_batching")
    add("--tensorflow_session_parallelism", type=int, default=0, help="threads of TensorFlow for one model; 0: as many as cores")
    add("--tensorflow_intra_op_parallelism", type=int, default=0, help="threads of one operation")
    add("--tensorflow_inter_op_parallelism", type=int, default=0, help="operations of one request at the same time")
    add("--per_process_gpu_memory_fraction", type=float, default=0.0, help="of a GPU's memory, for each version; 0: as it needs it")
    text = "answer Predict with raw bytes (tensor_content) instead of *_val fields; smaller and faster"
    _switch(parser, "--enable_serialization_as_tensor_content", text)


def _ours(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    text = "address to listen on; the original listens on all, but has no login either, so opening it is a decision (not in the original)"
    add("--host", default="127.0.0.1", help=text)
    add("--rest_max_body_bytes", type=_positive, default=256 << 20, help="largest body of a REST request (not in the original)")
    add("--num_run_threads", type=_positive, default=4, help="requests of one version at the same time, without batching (not in the original)")
    text = "a load that takes longer is ended and fails (not in the original)"
    add("--load_timeout_in_ms", type=_positive, default=600_000, help=text)
    text = "a run that takes longer is ended with its process, which is started again; 0: never (not in the original)"
    add("--run_timeout_in_ms", type=int, default=300_000, help=text)
    add("--op_library", action="append", default=[], help="shared library of further operations; may be given several times (not in the original)")
