"""Are the locks those of ``setup.cfg``? Answers without the network: ``python -m tests.check_lock [--stamp | --requirements LOCK]``.

``requirements.lock`` holds everything; the locks of the stage images hold the extra ``stage``, each with a TensorFlow of its own, and no Airflow.
Resolving again would break whenever somebody publishes a package. So ``make lock`` stamps a lock with a digest of the dependencies it was made
for (``--stamp``), and the check compares that digest and proves from the lock's own text that it keeps what ``setup.cfg`` asks for.
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
# Each lock, and what stands for TensorFlow in those of the stage images: without CUDA's kernels it is a third smaller.
LOCKS = {"requirements.lock": "", "docker/stage-cpu.lock": "tensorflow-cpu", "docker/stage-cuda.lock": "tensorflow[and-cuda]"}


def dependencies(setup_cfg: str, tensorflow: str = "") -> tuple[str, list[str]]:
    """Return the Python range and every direct requirement, with those of all extras, or those of a stage image with its `tensorflow`."""
    parser = configparser.ConfigParser()
    parser.read_string(setup_cfg)
    extras = parser["options.extras_require"]
    lists = [extras["stage"]] if tensorflow else [parser["options"]["install_requires"], *extras.values()]
    lines = [line.strip() for text in lists for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    return parser["options"]["python_requires"], [re.sub("^tensorflow>", f"{tensorflow}>", line) if tensorflow else line for line in lines]


def digest(setup_cfg: str, tensorflow: str = "") -> str:
    """Return the digest by which a lock names the dependencies it was made for."""
    return "sha256:" + hashlib.sha256(json.dumps(dependencies(setup_cfg, tensorflow)).encode()).hexdigest()


def stamped(lock: str, setup_cfg: str, tensorflow: str = "") -> str:
    """Return the lock with the digest in its first line."""
    return f"{STAMP}{digest(setup_cfg, tensorflow)}\n" + "".join(line for line in lock.splitlines(keepends=True) if not line.startswith(STAMP))


def problems(lock: str, setup_cfg: str, tensorflow: str = "") -> list[str]:
    """Return a sentence for everything that is wrong with the lock, none if it holds."""
    pins = [Requirement(text) for text in _pins(lock)]
    direct = dependencies(setup_cfg, tensorflow)[1]
    airflow = [f"An image of a stage must hold no {pin}. Nothing in the extra stage may ask for it." for pin in pins if "airflow" in pin.name]
    found = [*_stale(lock, digest(setup_cfg, tensorflow)), *_unsafe(lock), *_unhashed(lock), *_unsatisfied(pins, direct)]
    return [*found, *_wrong_python(lock, setup_cfg), *(airflow if tensorflow else [])]


def _entries(lock: str) -> list[str]:
    """Return the entries of the lock, each with its hashes on one line."""
    text = re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def _pins(lock: str) -> list[str]:
    return [entry.partition(" --hash=")[0].strip() for entry in _entries(lock) if not entry.startswith("-")]


def _stale(lock: str, wanted: str) -> list[str]:
    stamps = [line.removeprefix(STAMP) for line in lock.splitlines() if line.startswith(STAMP)]
    if stamps == [wanted]:
        return []
    return [f"The lock was made for other dependencies ({', '.join(stamps) or 'it says none'}) than setup.cfg has ({wanted}). {ADVICE}"]


def _unsafe(lock: str) -> list[str]:
    """Whoever installs chooses the index: the lock names none, and nothing that is fetched from elsewhere."""
    return [
        f"The lock names where to fetch from: {line.strip()!r}. {ADVICE}"
        for line in lock.splitlines()
        if re.search(r"://|--(extra-)?index|--find", line)
    ]


def _unhashed(lock: str) -> list[str]:
    return [f"{entry!r} has no SHA-256. {ADVICE}" for entry in _entries(lock) if not re.search(r" --hash=sha256:[0-9a-f]{64}\b", entry)]


def _unsatisfied(pins: list[Requirement], direct: list[str]) -> list[str]:
    found = []
    for line in direct:
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
    """Check, with ``--stamp`` write the digests first, or with ``--requirements LOCK`` print what it is made from; return 0 when all is well."""
    setup_cfg, wrong = (ROOT / "setup.cfg").read_text(), 0
    if arguments[:1] == ["--requirements"]:
        print("\n".join(dependencies(setup_cfg, LOCKS[arguments[1]])[1]))
        return 0
    for name, tensorflow in LOCKS.items():
        path = ROOT / name
        if arguments == ["--stamp"]:
            path.write_text(stamped(path.read_text(), setup_cfg, tensorflow))
        found = problems(path.read_text(), setup_cfg, tensorflow)
        print(
            "\n".join(f"{name}: {problem}" for problem in found)
            or f"{name} holds {len(_entries(path.read_text()))} pins and is the one of setup.cfg."
        )
        wrong += len(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
