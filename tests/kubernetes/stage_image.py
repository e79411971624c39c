"""An OCI image of a stage from this checkout, without a registry and without a container engine: ``python -m tests.kubernetes.stage_image FILE``.

For clusters that the tests cannot push to: ``ctr --namespace k8s.io images import FILE`` or ``kind load image-archive FILE``. Its base is this
machine's own Python with the libraries that it and the packages ask for, and nothing else, no shell either. Layers as in the Dockerfile: a change
of the code changes only the last. The same files give the same digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kubernetes.stage_root import stage_root

NAME = "docker.io/library/airflow-mlops-stage:test"
PREFIX, HOME, UID = Path("opt/mlops"), Path("home/mlops"), 10001
ETC = {
    "passwd": f"root:x:0:0::/:/sbin/nologin\nmlops:x:{UID}:{UID}::/{HOME}:/sbin/nologin\n",
    "group": f"mlops:x:{UID}:\n",
    "nsswitch.conf": "hosts: files dns\n",
}
CONFIG = {
    "User": f"{UID}:{UID}",
    "Env": [f"PATH=/{PREFIX}/bin", f"HOME=/{HOME}", "PYTHONUNBUFFERED=1", "TF_CPP_MIN_LOG_LEVEL=2", "LANG=C.UTF-8"],
    "Entrypoint": ["airflow-mlops"],
    "WorkingDir": f"/{HOME}",
}
OCI = "application/vnd.oci.image"


def fill(root: Path, environment: Path) -> None:
    """Make of an empty directory the root of a container that has a stage's `environment`: it can be entered with ``chroot`` too."""
    shutil.copytree(environment, root / PREFIX, symlinks=True, copy_function=os.link)
    script = root / PREFIX / "bin/airflow-mlops"
    words = script.read_text().replace(str(environment), f"/{PREFIX}", 1)
    script.unlink()  # a hard link: the environment keeps its own
    script.write_text(words)
    script.chmod(0o755)
    for path in _base(environment):
        copy = root / path.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    for directory in ("etc", "tmp", HOME):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name, text in ETC.items():
        (root / "etc" / name).write_text(text)


def _base(environment: Path) -> Iterator[Path]:
    """Yield the files of this machine's Python, under the name by which the environment calls it, and of the libraries they all need."""
    python = environment / "bin/python"
    while environment in python.parents:
        python = python.parent / python.readlink()
    library = Path(sysconfig.get_path("stdlib"))
    own = [one for one in library.rglob("*") if one.is_file() and not re.search(r"/(site-packages|test|tests|config-[^/]*|__pycache__)/", str(one))]
    linked = [one for one in (*own, *environment.rglob("*")) if ".so" in one.name and one.is_file()]
    # It fails for what is no library, and says all the same what the others need.
    told = subprocess.run(["ldd", python, *linked], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}).stdout
    needed = {Path(name) for name in re.findall(r"(?:=> |^\t)(/\S+) \(0x", told, flags=re.MULTILINE)}
    yield from [python, *own, *(one for one in needed if environment not in one.parents)]


def write_image(root: Path, path: Path) -> None:
    """Write the files below `root` as an OCI layout to the tar file `path`."""
    with tarfile.open(path, "w") as image:
        layers = [_add_layer(image, root, number) for number in range(3)]
        machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
        digests = [layer["digest"] for layer in layers]
        config = {"architecture": machine, "os": "linux", "config": CONFIG, "rootfs": {"type": "layers", "diff_ids": digests}}
        manifest = {"config": _add_json(image, config, "config"), "layers": layers}
        entry = _add_json(image, {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", **manifest}, "manifest")
        names = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME.rpartition(":")[2]}
        _add(image, "index.json", {"schemaVersion": 2, "manifests": [{**entry, "annotations": names}]})
        _add(image, "oci-layout", {"imageLayoutVersion": "1.0.0"})


def _layer(path: Path) -> int:
    """Return the layer of a file by its path in the image: Python, the dependencies, this package."""
    if PREFIX not in path.parents:
        return 0
    return 2 if any(part.startswith(("airflow_mlops", "airflow-mlops")) for part in path.parts) else 1


def _add_layer(image: tarfile.TarFile, root: Path, number: int) -> dict[str, Any]:
    """Add a layer to the image and return its descriptor; it is not compressed, for it goes no further than this machine's cluster."""
    with tempfile.TemporaryFile(dir=Path(str(image.name)).parent) as stream:
        with tarfile.open(fileobj=stream, mode="w") as layer:
            for path in sorted(root.rglob("*")):
                if _layer(name := path.relative_to(root)) == number:
                    layer.add(path, str(name), recursive=False, filter=_plain)
        stream.seek(0)
        digest, size = hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
        stream.seek(0)
        about = tarfile.TarInfo(f"blobs/sha256/{digest}")
        about.size = size
        image.addfile(about, stream)
    return {"mediaType": f"{OCI}.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}


def _plain(about: tarfile.TarInfo) -> tarfile.TarInfo:
    """Take out what differs from one machine or day to the next."""
    about.uid = about.gid = UID if Path(about.name) == HOME else 0
    about.uname, about.gname, about.mtime = "", "", 0
    return about


def _add_json(image: tarfile.TarFile, content: dict[str, Any], kind: str) -> dict[str, Any]:
    """Add a blob and return its descriptor."""
    data = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    _add(image, f"blobs/sha256/{digest}", content)
    return {"mediaType": f"{OCI}.{kind}.v1+json", "digest": f"sha256:{digest}", "size": len(data)}


def _add(image: tarfile.TarFile, name: str, content: dict[str, Any]) -> None:
    data = json.dumps(content, sort_keys=True).encode()
    about = tarfile.TarInfo(name)
    about.size = len(data)
    image.addfile(about, io.BytesIO(data))


def main(arguments: list[str]) -> int:
    """Write the image to the file that the first argument names; return 0."""
    path = Path(arguments[0]).absolute()
    with stage_root() as environment, tempfile.TemporaryDirectory(dir=environment.parent) as name:
        fill(Path(name) / "root", environment)
        write_image(Path(name) / "root", path)
    print(f"{path} holds {NAME}: import it with ctr --namespace k8s.io images import, or kind load image-archive.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
