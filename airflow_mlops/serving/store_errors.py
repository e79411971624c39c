"""What the clients of object stores raise: what passes by itself, and what must not be printed of it."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import Any

# How the clients of object stores call what passes: names, because none of these packages is needed by this one.
_PASSING = {"ConnectionError", "HTTPClientError", "ClientError", "TransportError", "IncompleteRead", "ResponseParserError", "FSTimeoutError"}
_PASSING_NUMBERS = {errno.EBUSY, errno.EAGAIN, errno.EREMOTEIO}  # what s3fs makes of 409, 500 and 503
_SHOWN_OPTIONS = ("endpoint", "url", "region")
_SHORTEST_SECRET = 4  # taking out shorter texts would make messages unreadable and keep nothing safe
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def secrets_of(options: Mapping[str, Any]) -> list[str]:
    """Return what messages must not hold of storage options, the longest first; for `masked`."""
    return sorted(_secrets(options), key=len, reverse=True)


def masked(text: str, secrets: Sequence[str]) -> str:
    """Return a text without these secrets, and without the user in any URL."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _USER_INFO.sub("***", text)


def _secrets(value: Any) -> set[str]:
    """Return every text of some length in nested options but those that say where the store is; who knows what a secret is called."""
    if isinstance(value, Mapping):
        named = [item for key, item in value.items() if not any(shown in str(key).lower() for shown in _SHOWN_OPTIONS)]
        return set().union(*map(_secrets, named))
    if isinstance(value, list | tuple):
        return set().union(*map(_secrets, value))
    return {value} if isinstance(value, str) and len(value) >= _SHORTEST_SECRET else set()


def passes(error: Exception) -> bool:
    """Return whether the network or the store's load was at fault, so that a retry may help."""
    if isinstance(error, TimeoutError | ConnectionError) or getattr(error, "errno", None) in _PASSING_NUMBERS:
        return True
    code = getattr(error, "code", None)  # of gcsfs
    busy = isinstance(code, int) and (code == 429 or code >= 500)
    return busy or any(kind.__name__ in _PASSING for kind in type(error).__mro__)
