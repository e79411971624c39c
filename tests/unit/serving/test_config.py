from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_mlops.exceptions import ServingError, SpecError
from airflow_mlops.serving import config, protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig

FOREIGN = """
model_config_list {
  config {
    name: "other" base_path: "gs://bucket/other" model_platform: "tensorflow"
    model_version_policy { latest { num_versions: 2 } }
    version_labels { key: "canary" value: 7 }
    logging_config { sampling_config { sampling_rate: 0.25 } }
  }
  config { name: "digits" base_path: "/models/digits" model_platform: "tensorflow" }
}
"""


def test_a_written_file_reads_back_equal(tmp_path: Path) -> None:
    wanted = ServerConfig((ModelConfig("digits", "/models/digits", (3, 4), {"stable": 3, "canary": 4}), ModelConfig("b", "/models/b")))
    config.write(tmp_path / "models.config", wanted)
    assert config.read(tmp_path / "models.config") == wanted


def test_replacing_one_model_keeps_every_field_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text(FOREIGN)
    before = protos.text_format.Parse(FOREIGN, protos.model_server_config_pb2.ModelServerConfig())
    config.write(path, config.read(path).with_model(ModelConfig("digits", "/models/digits", (1,), {"stable": 1})))
    after = protos.text_format.Parse(path.read_text(), protos.model_server_config_pb2.ModelServerConfig())
    assert after.model_config_list.config[0] == before.model_config_list.config[0]
    assert list(after.model_config_list.config[1].model_version_policy.specific.versions) == [1]


def test_a_new_model_is_added_and_a_removed_one_is_gone() -> None:
    both = ServerConfig((ModelConfig("a", "/a"),)).with_model(ModelConfig("b", "/b"))
    assert [model.name for model in both.models] == ["a", "b"]
    assert [model.name for model in both.without_model("a").models] == ["b"]


def test_two_writers_never_lose_each_other_s_model(tmp_path: Path) -> None:
    path = tmp_path / "models.config"

    def add(number: int) -> None:
        with config.exclusive(path) as served:
            config.write(path, served.with_model(ModelConfig(f"m{number}", "/m")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert {model.name for model in config.read(path).models} == {f"m{number}" for number in range(40)}


def test_a_file_that_cannot_be_locked_written_or_read_is_a_serving_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServingError, match="cannot be locked"), config.exclusive(tmp_path / "file" / "models.config"):
        pass
    with pytest.raises(ServingError, match="could not be written"):
        config.write(tmp_path / "file" / "models.config", ServerConfig())
    with pytest.raises(ServingError, match="cannot be read"):
        config.read(tmp_path)


def test_a_file_system_without_locks_is_a_serving_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(config.fcntl, "flock", no_locks)
    with pytest.raises(ServingError, match=r"cannot be locked: .*No locks available"), config.exclusive(tmp_path / "models.config"):
        raise AssertionError("not reached")


def test_a_missing_file_is_the_empty_configuration(tmp_path: Path) -> None:
    assert config.read(tmp_path / "none") == ServerConfig()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", "/m"), "non-empty"),
        (("a/b", "/m"), "without '/'"),
        (("m", "relative/path"), "absolute path"),
        (("m", "/m", (1, 1)), "different numbers"),
        (("m", "/m", (-1,)), "different numbers"),
        (("m", "/m", (1,), {"stable-1": 1}), "letters, digits and underscores"),
    ],
)
def test_what_the_server_would_refuse_is_refused_here(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        ModelConfig(*arguments)  # type: ignore[arg-type]


def test_a_label_without_its_version_is_read_but_never_written() -> None:
    left = ModelConfig("m", "/m", (1,), {"stable": 2})  # a server may have been given that
    with pytest.raises(SpecError, match="not among"):
        ServerConfig((left,)).to_proto()


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(SpecError, match="more than once"):
        ServerConfig((ModelConfig("m", "/a"), ModelConfig("m", "/b")))


@pytest.mark.parametrize("text", ["model_config_list { config { nam", "custom_model_config { }", "\xff"])
def test_a_file_that_is_no_model_list_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.config"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SpecError):
        config.read(path)
    assert path.read_text(encoding="latin-1") == text


def test_an_unknown_model_suggests_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="Did you mean 'digits'"):
        ServerConfig((ModelConfig("digits", "/m"),)).model("digit")
