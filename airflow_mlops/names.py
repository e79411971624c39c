"""Names from outside, made fit for people to read and for paths."""

from __future__ import annotations

import hashlib
import re

MAX_SHOWN = 250  # characters: the ledger's shortest column for a name, with room for a mark
MAX_FILE_NAME = 250  # as long as Airflow's ids; file systems take 255 bytes
_ESCAPED = re.compile(r"~([0-9a-f]{2})")
_DOTS = re.compile(r"^\.|(?<=\.)\.")  # none in front, and never two
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]")


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Return `text` on one line of at most `limit` characters: what does not print (control, direction and half characters) is escaped.

    Every database, terminal and page takes what this returns; two texts may look the same afterwards.
    """
    plain = "".join(letter if letter.isprintable() else _escaped(letter) for letter in text[: limit + 1])
    return plain if len(plain) <= limit and len(text) <= limit else plain[: limit - 3] + "..."


def file_name(text: str) -> str:
    """Return a file's name for `text`: another one for every other text, of at most `MAX_FILE_NAME` safe characters, never hidden or empty.

    Letters, digits and ``_ . + -`` stay as they are, other bytes are written as ``~`` and two hex digits. Of a long text the beginning stays,
    and its digest follows.
    """
    if text == "":
        return "~"
    name = _UNSAFE.sub(_hex, text)
    name = _DOTS.sub("~2e", name)
    if len(name) <= MAX_FILE_NAME:
        return name
    digest = hashlib.sha256(_bytes(text)).hexdigest()[:40]
    return f"{name[: MAX_FILE_NAME - len(digest) - 2]}~~{digest}"  # nowhere else do two tildes follow each other


def text_of(name: str) -> str | None:
    """Return the text whose `file_name` is `name`; None for a name that is of no text, or of one that was shortened."""
    raw = b"".join(bytes([int(part, 16)]) if index % 2 else part.encode("utf-8", "replace") for index, part in enumerate(_ESCAPED.split(name)))
    text = "" if name == "~" else raw.decode("utf-8", "surrogateescape")
    return text if file_name(text) == name else None


def _hex(found: re.Match[str]) -> str:
    return "".join(f"~{byte:02x}" for byte in _bytes(found.group()))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
