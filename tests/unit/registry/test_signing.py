"""Signatures by real keys: of what was signed, and of everything that is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_mlops.exceptions import MlopsError, RegistryError, SpecError
from airflow_mlops.registry.signing import sign, verify

ROOT = Path(__file__).parents[3]


def keys(directory: Path) -> tuple[Path, Path]:
    """Make a pair of keys by the commands of docs/supply-chain.md and return the private and the public one."""
    directory.mkdir()
    (commands,) = re.findall(r"^```bash\n(openssl.*?)^```$", (ROOT / "docs" / "supply-chain.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-ec", commands], cwd=directory, check=True, capture_output=True)
    return directory / "signing.pem", directory / "verification.pem"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "saved_model"
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph")
    (directory / "variables" / "variables.index").write_bytes(b"index")
    return directory


def test_the_private_key_of_the_documented_commands_is_readable_by_its_owner_only(pair: tuple[Path, Path]) -> None:
    assert [path.stat().st_mode & 0o777 for path in pair] == [0o400, 0o444]


def test_what_was_signed_is_verified_wherever_it_lies(model: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    signature = sign(model, pair[0])
    verify(model, signature, pair[1], "Version 3")
    verify(model.rename(tmp_path / "downloaded"), signature, pair[1], "Version 3")
    assert json.loads(signature)["mediaType"].startswith("application/vnd.dev.sigstore.bundle")
    assert len(signature) < 5_000


def rename(model: Path) -> None:
    (model / "variables" / "variables.index").rename(model / "variables.index")


CHANGES: dict[str, Callable[[Path], object]] = {
    "altered": lambda model: (model / "saved_model.pb").write_bytes(b"grapf"),
    "removed": lambda model: (model / "saved_model.pb").unlink(),
    "renamed": rename,
    "added": lambda model: (model / "assets.txt").write_bytes(b""),
    "hidden from Git": lambda model: (model / ".gitignore").write_bytes(b"what the library leaves out unless it is told not to"),
    "linked": lambda model: (model / "link").symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_after_it_was_signed_is_refused(model: Path, pair: tuple[Path, Path], change: Callable[[Path], object]) -> None:
    signature = sign(model, pair[0])
    change(model)
    with pytest.raises(
        RegistryError, match=r"Version 3 has no valid signature by the owner of .* were registered, or somebody else signed"
    ) as caught:
        verify(model, signature, pair[1], "Version 3")
    assert not caught.value.retryable


@pytest.mark.parametrize("kind", ["another key", "another model", "no bundle", "no JSON", "empty", "claims our key"])
def test_a_signature_that_is_not_ours_of_these_files_is_refused(model: Path, pair: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    theirs = sign(model, keys(tmp_path / "theirs")[0])
    ours = json.loads(sign(model, pair[0]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "saved_model.pb").write_bytes(b"another graph")
    signatures = {
        "another key": theirs,
        "another model": sign(tmp_path / "other", pair[0]),
        "no bundle": "{}",
        "no JSON": "signed, honestly",
        "empty": "",
        "claims our key": json.dumps({**json.loads(theirs), "verificationMaterial": ours["verificationMaterial"]}),
    }
    with pytest.raises(RegistryError, match="has no valid signature"):
        verify(model, signatures[kind], pair[1], "Version 3")


@pytest.mark.parametrize("content", [None, "no key", "rsa", "secp256k1"])
def test_a_key_that_cannot_be_used_is_an_impossible_request(model: Path, pair: tuple[Path, Path], tmp_path: Path, content: str | None) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    if content == "no key":
        private.write_text(content)
        public.write_text(content)
    elif content is not None:
        options = ["RSA"] if content == "rsa" else ["EC", "-pkeyopt", f"ec_paramgen_curve:{content}"]
        subprocess.run(["openssl", "genpkey", "-algorithm", *options, "-out", private], check=True, capture_output=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    signature = sign(model, pair[0])
    with pytest.raises(SpecError, match=r"signing key .*private\.pem cannot be used: .* make one with openssl"):
        sign(model, private)
    with pytest.raises(SpecError, match=r"verification key .*public\.pem cannot be used"):
        verify(model, signature, public, "Version 3")


def test_a_model_with_a_link_is_not_signed(model: Path, pair: tuple[Path, Path]) -> None:
    (model / "link").symlink_to("/etc/passwd")
    with pytest.raises(RegistryError, match=r"cannot be signed: .* Expected regular files"):
        sign(model, pair[0])


def test_a_signature_longer_than_a_tag_is_refused_before_the_registry_does(model: Path, pair: tuple[Path, Path]) -> None:
    for number in range(500):
        (model / f"{number:03}{'x' * 30}").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"has \d{6} characters, and a tag of a version holds 100000"):
        sign(model, pair[0])


def test_without_the_extra_the_error_says_what_to_install(model: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(MlopsError, match=r"Install airflow-mlops\[signing\]"):
        sign(model, pair[0])
