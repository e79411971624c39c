"""Is ``requirements.lock`` the one of ``setup.cfg``? Answers without the network: ``python -m tests.check_lock [--stamp]``.

Resolving again would break whenever somebody publishes a package. So ``make lock`` stamps the lock with a digest of the dependencies it was
made for (``--stamp``), and the check compares that digest and proves from the lock's own text that it keeps what ``setup.cfg`` asks for.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
STAMP = "# Dependencies in setup.cfg: "
ADVICE = "Run `make lock`."


def dependencies(setup_cfg: str) -> tuple[str, list[str]]:
    """Return the Python range and every direct requirement, with those of all extras."""
    parser = configparser.ConfigParser()
    parser.read_string(setup_cfg)
    lists = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    lines = [line.strip() for text in lists for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    return parser["options"]["python_requires"], lines


def digest(setup_cfg: str) -> str:
    """Return the digest by which a lock names the dependencies it was made for."""
    return "sha256:" + hashlib.sha256(json.dumps(dependencies(setup_cfg)).encode()).hexdigest()


def stamped(lock: str, setup_cfg: str) -> str:
    """Return the lock with the digest in its first line."""
    return f"{STAMP}{digest(setup_cfg)}\n" + "".join(line for line in lock.splitlines(keepends=True) if not line.startswith(STAMP))


def problems(lock: str, setup_cfg: str) -> list[str]:
    """Return a sentence for everything that is wrong with the lock, none if it holds."""
    pins = [Requirement(text) for text in _pins(lock)]
    return [*_stale(lock, setup_cfg), *_unsafe(lock), *_unhashed(lock), *_unsatisfied(pins, setup_cfg), *_wrong_python(lock, setup_cfg)]


def _entries(lock: str) -> list[str]:
    """Return the entries of the lock, each with its hashes on one line."""
    text = re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def _pins(lock: str) -> list[str]:
    return [entry.partition(" --hash=")[0].strip() for entry in _entries(lock) if not entry.startswith("-")]


def _stale(lock: str, setup_cfg: str) -> list[str]:
    stamps = [line.removeprefix(STAMP) for line in lock.splitlines() if line.startswith(STAMP)]
    if stamps == [digest(setup_cfg)]:
        return []
    return [f"The lock was made for other dependencies ({', '.join(stamps) or 'it says none'}) than setup.cfg has ({digest(setup_cfg)}). {ADVICE}"]


def _unsafe(lock: str) -> list[str]:
    """Whoever installs chooses the index: the lock names none, and nothing that is fetched from elsewhere."""
    return [
        f"The lock names where to fetch from: {line.strip()!r}. {ADVICE}"
        for line in lock.splitlines()
        if re.search(r"://|--(extra-)?index|--find", line)
    ]


def _unhashed(lock: str) -> list[str]:
    return [f"{entry!r} has no SHA-256. {ADVICE}" for entry in _entries(lock) if not re.search(r" --hash=sha256:[0-9a-f]{64}\b", entry)]


def _unsatisfied(pins: list[Requirement], setup_cfg: str) -> list[str]:
    found = []
    for line in dependencies(setup_cfg)[1]:
        wanted = Requirement(line)
        locked = [pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
        if canonicalize_name(wanted.name) == "airflow-mlops":  # an extra that includes another one
            continue
        if not locked:
            found.append(f"setup.cfg asks for {wanted}, and the lock has no {wanted.name}. {ADVICE}")
        found += [f"setup.cfg asks for {wanted}, the lock has {pin}. {ADVICE}" for pin in locked if not _satisfies(pin, wanted.specifier)]
    return found


def _satisfies(pin: Requirement, wanted: SpecifierSet) -> bool:
    versions = [one.version for one in pin.specifier if one.operator == "=="]
    return len(versions) == 1 and wanted.contains(versions[0], prereleases=True)


def _wrong_python(lock: str, setup_cfg: str) -> list[str]:
    wanted = dependencies(setup_cfg)[0]
    made_for = re.search(r"--python-version (\S+)", lock)
    if made_for and SpecifierSet(wanted).contains(made_for[1]) and f">={made_for[1]}" in wanted.split(","):
        return []
    return [f"The lock was made for Python {made_for[1] if made_for else '?'}, setup.cfg begins at {wanted}. {ADVICE}"]


def main(arguments: list[str]) -> int:
    """Check, or with ``--stamp`` write the digest; return 0 when all is well."""
    path, setup_cfg = ROOT / "requirements.lock", (ROOT / "setup.cfg").read_text()
    if arguments == ["--stamp"]:
        path.write_text(stamped(path.read_text(), setup_cfg))
    found = problems(path.read_text(), setup_cfg)
    print("\n".join(found) or f"requirements.lock holds {len(_entries(path.read_text()))} pins and is the one of setup.cfg.")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
