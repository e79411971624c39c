"""Signatures of SavedModels, by the tools of OpenSSF's model signing: who has the public key knows that the key's owner registered these files.

A signature is a Sigstore bundle of some kilobytes (JSON), made with an elliptic-curve key (P-256, P-384 or P-521) without any network. It names
every file with its SHA-256 digest. The only importer of ``model_signing``; it is imported when something is signed or verified.

Source: https://github.com/sigstore/model-transparency.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import RegistryError, SpecError

SIGNATURE = "signature"  # the tag of a version that holds the bundle
MAX_LENGTH = 100_000  # of a tag, in characters; MLflow refuses longer ones


def sign(directory: Path, private_key: Path) -> str:
    """Return the signature of all files below `directory` with the PEM file `private_key`, which has no password.

    Raises `SpecError` if there is no such key or it is of another kind, `RegistryError` if the directory cannot be signed.
    """
    signing = _library("signing")
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key).set_hashing_config(_hashing())
    except Exception as error:  # whatever a file can be that is no key
        raise SpecError(f"The signing key {private_key} cannot be used: {error}. {_ADVICE}") from error
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "signature.json"
        try:
            config.sign(directory, path)
        except (ValueError, OSError) as error:  # a symbolic link, a file that cannot be read
            raise RegistryError(f"{directory} cannot be signed: {error}. Expected regular files; export the model again.") from error
        bundle = path.read_text()
    if len(bundle) > MAX_LENGTH:
        raise RegistryError(
            f"The signature of {directory} has {len(bundle)} characters, and a tag of a version holds {MAX_LENGTH}: it names too many files. "
            "Put the model's assets into fewer files."
        )
    return bundle


def verify(directory: Path, signature: str, public_key: Path, what: str) -> None:
    """Raise `RegistryError` about `what` unless `signature` is that of exactly the files below `directory`, by the owner of `public_key`.

    Raises `SpecError` if the PEM file `public_key` cannot be used.
    """
    verifying = _library("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key).set_hashing_config(_hashing())
    except Exception as error:  # whatever a file can be that is no key
        raise SpecError(f"The verification key {public_key} cannot be used: {error}. {_ADVICE}") from error
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "signature.json"
        path.write_text(signature)
        try:
            config.verify(directory, path)
        except Exception as error:  # whatever somebody wrote in the place of a signature
            raise RegistryError(
                f"{what} has no valid signature by the owner of {public_key} ({type(error).__name__}: {error}): its files are not those that were "
                "registered, or somebody else signed them. Do not use it; find out who changed the registry, and train again."
            ) from error


_ADVICE = "Expected a PEM file with an elliptic-curve key, P-256, P-384 or P-521, and no password; make one with openssl genpkey."


def _hashing() -> Any:
    # Not the library's default, which leaves out .git and .github: what is not signed could be anything.
    return _library("hashing").Config().set_ignored_paths(paths=(), ignore_git_paths=False)


def _library(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise SpecError(
            f"Models are signed and verified with model-signing, which cannot be imported: {error}. Install airflow-mlops[signing]."
        ) from error
