"""Checkpoints of a pod in object storage: uploaded beside the training, and there again for the attempt after it.

They lie under ``checkpoints/<where they are on the pod>/`` as they do on the pod: a file, and once that is whole its marker. What comes back is
verified by its marker; where the newest does not hold, the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from pathlib import Path

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.exceptions import MlopsError, ResultInvalid, StageError
from airflow_mlops.stages.objects import Objects
from airflow_mlops.training.checkpoints import KEPT, MARKERS

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # a look costs a listing of a small directory


class CheckpointSync:
    """Keeps what lies below `directory` in `objects`; `bring` it, then enter the block in which new ones are uploaded from a thread of its own."""

    def __init__(self, objects: Objects, directory: Path) -> None:
        self._objects, self._directory = objects, directory
        self._folder = f"checkpoints/{hashlib.sha256(str(directory).encode()).hexdigest()[:20]}"
        self._sent: dict[str, bytes] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send_until_over, daemon=True, name="checkpoints")

    def bring(self) -> int:
        """Download the newest whole checkpoint of each training; return how many. What does not hold is passed over."""
        found: set[str] = set()
        for marker in sorted(self._markers(), reverse=True):
            training = marker.rpartition("/")[0]
            if training not in found and self._fetch(marker):
                found.add(training)
        return len(found)

    def __enter__(self) -> CheckpointSync:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Upload the last one too: the training may just have been told to stop."""
        self._over.set()
        self._thread.join()
        self._try_to_send()

    def drop_if_cleared(self) -> None:
        """Delete what was uploaded where the training has deleted its checkpoints, because it is done; other trainings' checkpoints stay."""
        left = {self._name(marker).rpartition("/")[0] for marker in self._directory.rglob(MARKERS)}
        over = {name.rpartition("/")[0] for name in self._sent} - left
        for marker in self._markers():
            if marker.rpartition("/")[0] in over:
                self._forget(marker)

    def send(self) -> None:
        """Upload the newest checkpoint of each training unless that is done: the file, then its marker; older ones than two are deleted."""
        newest = {marker.parent: marker for marker in sorted(self._directory.rglob(MARKERS))}
        for marker in newest.values():
            name = self._name(marker)
            try:
                text = marker.read_bytes()
                if self._sent.get(name) == text:
                    continue
                self._objects.write_file(name.removesuffix(".json"), marker.with_suffix(""))
            except (FileNotFoundError, StageError):
                if marker.exists():
                    raise
                continue  # the training has a newer one by now
            self._objects.write(name, text)
            self._sent[name] = text
            same = sorted((one for one in self._markers() if one.rpartition("/")[0] == name.rpartition("/")[0]), reverse=True)
            for old in same[KEPT:]:
                self._forget(old)

    def _send_until_over(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._try_to_send()

    def _try_to_send(self) -> None:
        try:
            self.send()
        except MlopsError as error:  # the training is worth more than its checkpoint, and the next one may be written
            log.warning("The newest checkpoint is not in the exchange; should this pod be lost, so is what it trained since the last. %s", error)

    def _fetch(self, marker: str) -> bool:
        path = self._directory / marker.removeprefix(f"{self._folder}/")
        text = self._objects.read(marker) or b""
        try:
            self._objects.fetch(marker.removesuffix(".json"), str(json.loads(text)["digest"]), path.with_suffix(""))
        except (ResultInvalid, ValueError, KeyError, TypeError) as error:
            log.warning("The checkpoint %s does not hold, the one before it is used: %s", marker, error)
            return False
        write_atomically(path, text)
        self._sent[marker] = text
        return True

    def _name(self, marker: Path) -> str:
        return f"{self._folder}/{marker.relative_to(self._directory).as_posix()}"

    def _markers(self) -> list[str]:
        return [name for name in self._objects.ages(self._folder) if name.endswith(".safetensors.json")]

    def _forget(self, marker: str) -> None:
        self._objects.remove(marker)  # first: without it the file is no checkpoint
        self._objects.remove(marker.removesuffix(".json"))
