"""The script that fills an image: what it does with a broken download, a lock that does not fit, and when it is started again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kubernetes.stage_root import SCRIPT


class Shop:
    """A copy of the script with a lock of two small packages, one of them large by its name, and a directory in the place of an index."""

    def __init__(self, home: Path) -> None:
        self.home, self.prefix, self.temporary = home, home / "prefix", home / "temporary"
        self.temporary.mkdir()
        self.index = home / "index"
        self.index.mkdir()
        (home / "docker").mkdir()
        self.script = Path(shutil.copy(SCRIPT, home / "docker"))
        pins = {"tensorflow-cpu": self.wheel("tensorflow_cpu", "tensorflow/include/header.h"), "small": self.wheel("small", "small.py")}
        lock = "".join(f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in pins.items())
        (home / "docker" / "stage-cpu.lock").write_text(f"# a lock\n{lock}")

    def wheel(self, name: str, file: str) -> Path:
        path, about = self.index / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(file, "")
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(
                f"{about}/RECORD", "".join(f"{each},,\n" for each in (file, *(f"{about}/{one}" for one in ("METADATA", "WHEEL", "RECORD"))))
            )
        return path

    def install(self, *parts: str, variant: str = "cpu", **env: str) -> subprocess.CompletedProcess[str]:
        own = {"PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "TMPDIR": str(self.temporary), **env}
        return subprocess.run([self.script, self.prefix, variant, *parts], capture_output=True, text=True, check=False, env={**os.environ, **own})

    def installed(self) -> set[str]:
        return {path.name.partition("-")[0] for path in self.prefix.glob("lib/*/site-packages/*.dist-info")}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_a_download_that_broke_fails_and_the_same_command_goes_on_where_it_ended(shop: Shop) -> None:
    whole = (shop.index / "small-1.0-py3-none-any.whl").read_bytes()
    (shop.index / "small-1.0-py3-none-any.whl").write_bytes(whole[:-20])
    broken = shop.install("framework", "dependencies")
    assert broken.returncode == 1
    assert "DO NOT MATCH THE HASHES" in broken.stderr
    assert shop.installed() == {"tensorflow_cpu"}
    (shop.index / "small-1.0-py3-none-any.whl").write_bytes(whole)
    again = shop.install("framework", "dependencies")
    assert again.returncode == 0, again.stderr
    assert shop.installed() == {"tensorflow_cpu", "small"}
    assert not list(shop.prefix.rglob("include/header.h"))
    assert [*shop.temporary.iterdir(), *shop.prefix.glob("*.txt")] == []


def test_what_lies_on_the_path_of_whoever_installs_is_not_taken_for_installed(shop: Shop) -> None:
    elsewhere = shop.home / "elsewhere"
    with zipfile.ZipFile(shop.index / "small-1.0-py3-none-any.whl") as archive:
        archive.extractall(elsewhere)
    assert shop.install("framework", "dependencies", PYTHONPATH=str(elsewhere)).returncode == 0
    assert shop.installed() == {"tensorflow_cpu", "small"}


@pytest.mark.parametrize(
    ("parts", "variant", "words"),
    [
        ((), "gpu", "stage-gpu.lock does not exist; the variants are cpu and cuda."),
        (("everything",), "cpu", "there is no part everything; expected framework, dependencies or package."),
    ],
)
def test_what_is_not_there_is_said(shop: Shop, parts: tuple[str, ...], variant: str, words: str) -> None:
    done = shop.install(*parts, variant=variant)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_python_that_the_lock_is_not_for_is_refused_before_anything_is_installed(shop: Shop, tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text(
        f'#!/bin/sh\ntest "$1" = --version && echo "Python 3.10.0" && exit\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10)\n$2"\n'
    )
    old.chmod(0o755)
    done = shop.install(PYTHON=str(old))
    assert done.returncode == 2
    assert "python3.10 is Python 3.10.0; the locks are for Python 3.11, 3.12 or 3.13." in done.stderr
    assert not shop.prefix.exists()
