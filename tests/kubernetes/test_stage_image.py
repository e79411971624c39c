"""The image that a script makes of a checkout is a valid one, runs as a user without rights, and changes only in its last layer with the code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.check_lock import ROOT
from tests.kubernetes.stage_image import UID, fill, write_image
from tests.kubernetes.stage_root import stage_root

pytestmark = pytest.mark.timeout(900)  # the packages are installed once per lock, and a busy machine takes its time


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of this package and its smallest dependency: TensorFlow's gigabytes would be copied as these are."""
    path = tmp_path_factory.mktemp("stage") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    packages = next(path.glob("lib/*/site-packages"))
    shutil.copytree(ROOT / "airflow_mlops", packages / "airflow_mlops", ignore=shutil.ignore_patterns("__pycache__"))
    (packages / "dependency.py").write_text("VALUE = 1\n")
    script = path / "bin/airflow-mlops"
    script.write_text(f"#!{path}/bin/python\nfrom airflow_mlops.cli import main\nraise SystemExit(main())\n")
    script.chmod(0o755)
    return path


class Image:
    """The files of an image's layout; every blob has the digest that is its name, or it is not read."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
            self.files = {name: stream.read() for name, stream in files.items() if stream is not None}
        (entry,) = json.loads(self.files["index.json"])["manifests"]
        self.name = entry["annotations"]["io.containerd.image.name"]
        self.manifest = json.loads(self.blob(entry))
        self.config = json.loads(self.blob(self.manifest["config"]))

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        data = self.files[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (descriptor["size"], descriptor["digest"].removeprefix("sha256:"))
        return data


@pytest.fixture(scope="module")
def root(environment: Path) -> Path:
    """The root of a container, filled."""
    fill(environment.parent / "root", environment)
    return environment.parent / "root"


@pytest.fixture(scope="module")
def image(root: Path) -> Image:
    write_image(root, root.with_name("image.tar"))
    return Image(root.with_name("image.tar"))


def test_every_part_of_the_image_has_the_digest_by_which_it_is_named(image: Image) -> None:
    assert json.loads(image.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert (image.name, image.config["os"]) == ("docker.io/library/airflow-mlops-stage:test", "linux")
    layers = image.manifest["layers"]
    assert [image.blob(layer)[257:262] for layer in layers] == [b"ustar"] * 3
    assert image.config["rootfs"]["diff_ids"] == [layer["digest"] for layer in layers]  # they are not compressed
    assert len(image.files) == 2 + 2 + len(layers)


def test_the_code_changes_only_the_last_layer(image: Image, environment: Path, tmp_path: Path) -> None:
    changed = tmp_path / "environment"
    shutil.copytree(environment, changed, symlinks=True)
    (changed / "bin/airflow-mlops").write_text((environment / "bin/airflow-mlops").read_text().replace(str(environment), str(changed)))
    next(changed.glob("lib/*/site-packages/airflow_mlops")).joinpath("new.py").write_text("VALUE = 2\n")
    fill(tmp_path / "root", changed)
    write_image(tmp_path / "root", tmp_path / "image.tar")
    before, after = image.manifest["layers"], Image(tmp_path / "image.tar").manifest["layers"]
    assert before[:2] == after[:2] and before[2] != after[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter another root directory")
def test_its_python_runs_as_a_user_without_rights_and_sees_nothing_of_this_machine(root: Path) -> None:
    def run(*words: str) -> str:
        command = ["chroot", f"--userspec={UID}:{UID}", root, f"/opt/mlops/bin/{words[0]}", *words[1:]]
        return subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/bin", "LANG": "C.UTF-8"}).stdout

    assert run("python", "-c", "import ctypes, lzma, sqlite3, ssl, dependency, os, pwd; print(pwd.getpwuid(os.getuid()).pw_name)") == "mlops\n"
    assert "run one stage" in run("airflow-mlops", "--help").replace("\n", " ")
    assert run("python", "-c", "import os; print(sorted(os.listdir('/home')))") == "['mlops']\n"


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """What the script installs for the image ``cpu``."""
    with stage_root() as environment:
        yield environment


def test_the_image_s_packages_are_those_of_its_lock_without_airflow(installed: Path) -> None:
    code = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    listed = subprocess.run([installed / "bin/python", "-I", "-c", code], check=True, capture_output=True, text=True).stdout.split()
    names = sorted(map(canonicalize_name, listed))
    pins = set(re.findall(r"^([a-z0-9.-]+)==[^;\n]*$", (ROOT / "docker/stage-cpu.lock").read_text().replace(" \\\n", "\n"), flags=re.MULTILINE))
    assert [name for name in names if "airflow" in name or name == "kubernetes"] == ["airflow-mlops"]
    assert len(pins) > 90 and pins <= {*names}
    shown = subprocess.run([installed / "bin/airflow-mlops", "stage", "--help"], check=True, capture_output=True, text=True).stdout
    assert "--result" in shown


def test_the_package_s_own_layer_is_small(installed: Path) -> None:
    files = [path for path in installed.rglob("*") if path.is_file() and not path.is_symlink()]
    own = [path for path in files if path.stat().st_nlink == 1]  # the dependencies are links to what is kept
    assert own and [path for path in own if not re.search("airflow[_-]mlops", str(path.relative_to(installed)))] == []
    assert sum(path.stat().st_size for path in own) < 8e6


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Path]:
    """A directory of the only programs there are, with one that calls itself podman, and keeps what it was asked."""
    for name in ("bash", "make"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    script = tmp_path / "podman"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    script.chmod(0o755)
    yield tmp_path


def test_make_images_builds_both_with_the_engine_that_works(engine: Path) -> None:
    subprocess.run(["make", "images"], cwd=ROOT, check=True, env={"PATH": str(engine)}, capture_output=True)
    *_, cpu, cuda = (engine / "asked").read_text().splitlines()
    assert cpu == "build --file docker/Dockerfile --build-arg VARIANT=cpu --tag airflow-mlops-stage:cpu ."
    assert cuda == "build --file docker/Dockerfile --build-arg VARIANT=cuda --tag airflow-mlops-stage:cuda ."


def test_make_images_says_what_is_missing_where_no_engine_works(tmp_path: Path) -> None:
    for name in ("sh", "bash", "make"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(["make", "images"], cwd=ROOT, check=False, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0 and "Neither docker nor podman nor buildah works here" in done.stderr
