"""Which keys sign and verify models: ``[mlops] signing_key`` where versions are registered, ``[mlops] verification_key`` where they are published.

Only the path of a key is configured, and only the task that needs it reads the file. The private key belongs to the workers that register and
not to those that train: a train function may read whatever its worker's user may.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import conf

from airflow_mlops.exceptions import RegistryError

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelVersion


def signature_tags(saved_model: Path) -> dict[str, str]:
    """Return the tag with the SavedModel's signature; none where no signing key is configured."""
    from airflow_mlops.registry.signing import SIGNATURE, sign

    key = conf.get("mlops", "signing_key", fallback="")
    return {SIGNATURE: sign(saved_model, Path(key))} if key else {}


def check_signature(version: ModelVersion, saved_model: Path) -> None:
    """Raise `RegistryError` if a verification key is configured and the downloaded SavedModel is unsigned or not the one that was signed."""
    from airflow_mlops.registry.signing import SIGNATURE, verify

    key, what = conf.get("mlops", "verification_key", fallback=""), f"Version {version.version} of {version.name!r}"
    if not key:
        return
    if SIGNATURE not in version.tags:
        raise RegistryError(
            f"{what} is not signed, and [mlops] verification_key is set: expected a version that was registered with [mlops] signing_key. "
            "Nothing was published; register it again where the key is."
        )
    verify(saved_model, version.tags[SIGNATURE], Path(key), what)
