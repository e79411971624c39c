"""The mounts of a played container: real ones, in a mount namespace of its own, where the tests may make such."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubernetes.utils.quantity import parse_quantity

# Sources are held before anything is hidden: they may lie below what is. Its words: a holding place, the hidden paths and the mounts, each group
# after its number.
SCRIPT = """
set -e
own=$PATH PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
hold=$1 hidden=$2; shift 2
paths= number=0
while [ "$number" -lt "$hidden" ]; do paths="$paths$1
"; shift; number=$((number + 1)); done
mounts=$1; shift
number=0 sources=$mounts
mount -t tmpfs tmpfs "$hold"
while [ "$sources" -gt 0 ]; do
    target=$2 ro=$3 size=$4
    mkdir "$hold/$sources"
    if [ -n "$size" ]; then mount -t tmpfs -o "size=$size" tmpfs "$hold/$sources"; else mount --bind "$1" "$hold/$sources"; fi
    printf '%s\\n%s\\n' "$target" "$ro" > "$hold/$sources.to"
    shift 4; sources=$((sources - 1))
done
printf '%s' "$paths" | while read -r path; do mount -t tmpfs tmpfs "$path"; done
sources=$mounts
while [ "$sources" -gt 0 ]; do
    { read -r target; read -r ro; } < "$hold/$sources.to"
    mkdir -p "$target"
    mount --bind "$hold/$sources" "$target"
    [ -z "$ro" ] || mount -o remount,bind,ro "$target"
    sources=$((sources - 1))
done
PATH=$own
exec "$@"
"""


@functools.cache
def possible() -> bool:
    """Return whether this process may make mount namespaces: as root, where the system lets it."""
    unshare = shutil.which("unshare")
    return bool(unshare) and os.geteuid() == 0 and subprocess.run([str(unshare), "--mount", "true"], check=False).returncode == 0


def real(pod: Any, container: Any, places: Mapping[str, Path], hidden: Sequence[Path]) -> list[Any]:
    """Return the mounts of a container that are made: of directories, at a path that this machine has, or that a hidden one will have."""
    if not possible():
        return []
    return [
        mount
        for mount in container.volume_mounts or []
        if _source(mount, places).is_dir()
        and (Path(mount.mount_path).is_dir() or any(Path(mount.mount_path).is_relative_to(path) for path in hidden))
    ]


def wrapped(command: list[str], pod: Any, mounts: list[Any], places: Mapping[str, Path], hidden: Sequence[Path], hold: Path) -> list[str]:
    """Return a command that makes the mounts in a namespace of its own, over empty `hidden` directories, and then is `command`.

    Memory volumes have their size; each container has one of its own, where a kubelet has one for all of a pod.

    :param hold: an empty directory of the container's own.
    """
    if not mounts and not hidden:
        return command
    assert possible(), "only root, where the system lets it make mount namespaces, can hide directories"
    volumes = {volume.name: volume for volume in pod.spec.volumes or []}
    words: list[str] = []
    for mount in sorted(mounts, key=lambda mount: len(mount.mount_path)):
        volume = volumes[mount.name]
        read_only = "ro" if mount.read_only or volume.secret is not None or volume.config_map is not None else ""
        words += [str(_source(mount, places)), mount.mount_path, read_only, _memory(volume)]
    told = [str(hold), str(len(hidden)), *map(str, hidden), str(len(mounts)), *words]
    return [str(shutil.which("unshare")), "--mount", "--propagation", "private", "/bin/sh", "-c", SCRIPT, "mounts", *told, *command]


def _memory(volume: Any) -> str:
    """Return the size of a volume in memory, in bytes, empty for others; without a limit half of the machine's memory, as Linux has it."""
    if volume.empty_dir is None or volume.empty_dir.medium != "Memory":
        return ""
    return str(int(parse_quantity(volume.empty_dir.size_limit))) if volume.empty_dir.size_limit else "50%"


def _source(mount: Any, places: Mapping[str, Path]) -> Path:
    return places[mount.name] / (mount.sub_path or "")
