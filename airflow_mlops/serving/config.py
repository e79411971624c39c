"""What the model server shall serve: its `model_config_list` file, which is the truth that the server starts from.

Only the fields this package decides about are named here. Everything else that a file holds (other models, version policies, logging) is
carried along unchanged in `ModelConfig.rest`; comments are not kept.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.exceptions import ServingError, SpecError, unknown_name
from airflow_mlops.serving import protos

_LABEL = re.compile(r"[a-zA-Z0-9_]+")
_NAME = re.compile(r"[^/:]+")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://.+")


@dataclass(frozen=True)
class ModelConfig:
    """One model: the versions to load under `base_path` and the labels that requests may ask for.

    Empty `versions` leaves the version policy as the file has it, the server's default being the latest one. `rest` is the serialized
    `ModelConfig` message it was read from. Raises `SpecError` if the server would refuse it.
    """

    name: str
    base_path: str
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    rest: bytes = field(default=b"", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SpecError(f"Model name {self.name!r} cannot be asked for: it must be non-empty, without '/' and ':'. Choose another name.")
        if not (self.base_path.startswith("/") or _URI.fullmatch(self.base_path)):
            raise SpecError(f"base_path of model {self.name!r} is {self.base_path!r}; the server needs an absolute path or a URI.")
        if len(set(self.versions)) != len(self.versions) or any(not 0 <= v < 2**63 for v in self.versions):
            raise SpecError(f"versions of model {self.name!r} are {self.versions}; expected different numbers from 0 to 2**63 - 1.")
        for label in self.labels:
            if not _LABEL.fullmatch(label):
                raise SpecError(f"Label {label!r} of model {self.name!r} cannot be asked for by REST; use letters, digits and underscores.")

    def by_policy(self, present: Collection[int]) -> set[int]:
        """Return which of the versions `present` the server chooses when `versions` is empty: all, or the latest `num_versions` (default 1)."""
        policy = protos.model_server_config_pb2.ModelConfig.FromString(self.rest).model_version_policy
        if policy.HasField("all"):
            return set(present)
        return set(sorted(present)[-max(1, policy.latest.num_versions) :])

    def to_proto(self) -> Any:
        """Return the `tensorflow.serving.ModelConfig` message; raise `SpecError` if a label would be left without its version.

        A server takes that, and answers whoever asks for the label with NOT_FOUND.
        """
        for label, version in self.labels.items():
            if self.versions and version not in self.versions:
                raise SpecError(f"Label {label!r} of model {self.name!r} points at version {version}, which is not among {self.versions}. Add it.")
        message = protos.model_server_config_pb2.ModelConfig.FromString(self.rest)
        message.name, message.base_path = self.name, self.base_path
        if not message.model_platform and not message.model_type:
            message.model_platform = "tensorflow"
        if self.versions:
            message.model_version_policy.specific.versions[:] = self.versions
        message.version_labels.clear()
        message.version_labels.update(self.labels)
        return message

    @classmethod
    def from_proto(cls, message: Any) -> ModelConfig:
        """Return the configuration of a `tensorflow.serving.ModelConfig` message."""
        versions = tuple(message.model_version_policy.specific.versions)
        return cls(message.name, message.base_path, versions, dict(message.version_labels), message.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class ServerConfig:
    """All models of one server; raises `SpecError` if two have the same name."""

    models: tuple[ModelConfig, ...] = ()

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SpecError(f"The server configuration names {', '.join(twice)} more than once; the server needs one entry per model.")

    def get(self, name: str) -> ModelConfig | None:
        """Return the model's configuration, or None."""
        return next((model for model in self.models if model.name == name), None)

    def model(self, name: str) -> ModelConfig:
        """Return the model's configuration; raise `SpecError` suggesting the nearest name if there is none."""
        found = self.get(name)
        if found is None:
            raise unknown_name("model", name, (model.name for model in self.models))
        return found

    def with_model(self, model: ModelConfig) -> ServerConfig:
        """Return a configuration where `model` replaces the one of its name or is added; the others stay as they are."""
        if self.get(model.name) is None:
            return ServerConfig((*self.models, model))
        return ServerConfig(tuple(model if old.name == model.name else old for old in self.models))

    def without_model(self, name: str) -> ServerConfig:
        """Return a configuration that does not serve `name`; the others stay as they are."""
        return ServerConfig(tuple(model for model in self.models if model.name != name))

    def to_proto(self) -> Any:
        """Return the `tensorflow.serving.ModelServerConfig` message."""
        message = protos.model_server_config_pb2.ModelServerConfig()
        message.model_config_list.SetInParent()
        message.model_config_list.config.extend(model.to_proto() for model in self.models)
        return message

    @classmethod
    def from_proto(cls, message: Any) -> ServerConfig:
        """Return the configuration of a `ModelServerConfig` message; raise `SpecError` if it is a custom one."""
        if message.HasField("custom_model_config"):
            raise SpecError("The server configuration is a custom_model_config; expected a model_config_list. Rewrite it as one.")
        return cls(tuple(ModelConfig.from_proto(model) for model in message.model_config_list.config))


def read(path: Path) -> ServerConfig:
    """Return the configuration in a text-format file, the empty one if there is no file.

    Raises `SpecError` if it cannot be parsed, `ServingError` if it cannot be read.
    """
    message = protos.model_server_config_pb2.ModelServerConfig()
    try:
        protos.text_format.Parse(path.read_bytes(), message)
    except FileNotFoundError:
        return ServerConfig()
    except OSError as error:
        raise ServingError(f"The server configuration {path} cannot be read: {error}. Make it a readable file and retry.") from error
    except (protos.text_format.ParseError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not a model_config_list in protobuf text format: {error}. Correct the file; nothing was changed.") from error
    return ServerConfig.from_proto(message)


def write(path: Path, config: ServerConfig) -> None:
    """Write the configuration as a text-format file, all of it or nothing; raise `ServingError` if the disk refuses."""
    try:
        write_atomically(path, protos.text_format.MessageToString(config.to_proto()).encode())
    except OSError as error:
        raise ServingError(f"The server configuration {path} could not be written: {error}. The old one stands; free the disk and retry.") from error


@contextmanager
def exclusive(path: Path) -> Iterator[ServerConfig]:
    """Hold the file's lock and yield its configuration, so that two rollouts on one machine never overwrite each other's models."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise ServingError(f"The server configuration {path} cannot be locked: {error}. Make its directory writable and retry.") from error
    with lock:
        yield read(path)
