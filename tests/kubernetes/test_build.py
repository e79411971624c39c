"""The programs of the control plane are built once, and who cannot build them is told why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kubernetes.build import BuildError, build, home, programs, with_sources


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was built, and nothing is installed but what a test puts into the directory returned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_who_did_not_build_is_told_how(empty_cache: Path) -> None:
    with pytest.raises(BuildError, match=r"There is no Kubernetes control plane in .*: 'make kubernetes' builds it"):
        programs()


def test_what_is_missing_is_named(empty_cache: Path) -> None:
    with pytest.raises(BuildError, match=r"^Missing: apt-get, dpkg-deb, nice, tar\. "):
        build()
    assert not home().exists()


def test_a_command_that_failed_is_shown_with_its_words_and_nothing_half_built_is_found(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = empty_cache / "apt-get"
    refusing.write_text("#!/bin/sh\necho no route to any mirror\nexit 100\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{empty_cache}{os.pathsep}/usr/bin{os.pathsep}/bin")
    for _ in range(2):  # the second time over what the first left
        with pytest.raises(BuildError, match=r"(?s)^apt-get .* update\nended with 100, in .*no route to any mirror"):
            build()
        with pytest.raises(BuildError, match="make kubernetes"):
            programs()


def test_what_was_built_is_not_built_again(empty_cache: Path) -> None:
    home().mkdir(parents=True)  # nothing could be built here: a second build would fail
    assert build() == programs() == home()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("Types: deb\nURIs: http://a/debian\n", "Types: deb deb-src\nURIs: http://a/debian\n"),
        ("deb [trusted=yes] http://a/debian b main\n", "deb [trusted=yes] http://a/debian b main\ndeb-src [trusted=yes] http://a/debian b main\n"),
    ],
)
def test_sources_are_found_where_packages_are(entries: str, expected: str) -> None:
    assert with_sources(entries) == expected
