"""What a fake API server keeps: objects of any kind, their versions, and how they change, are chosen and go, as Kubernetes documents it."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

Json = dict[str, Any]
# Lists that a strategic merge patch merges by a key of their items; it replaces all others.
MERGED_BY = {"conditions": "type", "containers": "name", "env": "name", "volumes": "name", "addresses": "type", "ownerReferences": "uid"}
HISTORY = 1000  # changes that a watch can still begin at; before them it is answered 410


class Refused(Exception):
    """An answer that is no success, with Kubernetes' words for it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Kind(NamedTuple):
    """A resource: its group (empty for the core), version and plural."""

    group: str
    version: str
    plural: str


class Key(NamedTuple):
    """Which object: its kind, its namespace (empty where it has none) and its name."""

    kind: Kind
    namespace: str
    name: str


class Store:
    """All objects and the history of their changes; every method may be called from any thread, and what it returns is a copy."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.version = 0
        self.history: list[tuple[int, str, Key, Json]] = []
        self._objects: dict[Key, Json] = {}

    def get(self, key: Key) -> Json:
        with self.lock:
            if key not in self._objects:
                raise Refused(404, "NotFound", f'{key.kind.plural} "{key.name}" not found')
            return copy.deepcopy(self._objects[key])

    def create(self, key: Key, data: Json) -> Json:
        with self.lock:
            about = data.setdefault("metadata", {})
            if not key.name:
                key = key._replace(name=f"{about['generateName']}{uuid.uuid4().hex[:5]}")
            if key in self._objects:
                raise Refused(409, "AlreadyExists", f'{key.kind.plural} "{key.name}" already exists')
            about |= {
                "name": key.name,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": now(),
                **({"namespace": key.namespace} if key.namespace else {}),
            }
            return self._write("ADDED", key, data)

    def change(self, key: Key, change: Callable[[Json], Json]) -> Json:
        """Write what `change` makes of the object, unless that is nothing new; identity and versions stay Kubernetes' own."""
        with self.lock:
            old = self.get(key)
            new = change(copy.deepcopy(old))
            claimed = new["metadata"]
            for name, code in (("uid", "Conflict"), ("resourceVersion", "Conflict")):
                if claimed.get(name) not in (None, old["metadata"][name]):
                    raise Refused(
                        409, code, f'{key.kind.plural} "{key.name}": the object has been modified; please apply your changes to the latest version'
                    )
            claimed |= {name: old["metadata"][name] for name in ("uid", "resourceVersion", "creationTimestamp", "name")}
            if new == old:
                return new
            if claimed.get("deletionTimestamp") and not claimed.get("finalizers") and old["metadata"].get("finalizers"):
                return self.remove(key)
            return self._write("MODIFIED", key, new)

    def delete(self, key: Key, options: Mapping[str, Any]) -> Json:
        """Delete an object at once, or note that it is to go: a pod that its node still has, or whatever has finalizers."""
        with self.lock:
            old = self.get(key)
            wanted = (options.get("preconditions") or {}).get("uid")
            if wanted not in (None, old["metadata"]["uid"]):
                raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {old['metadata']['uid']}")
            grace = _grace(key, old, options)
            if not grace and not old["metadata"].get("finalizers"):
                return self.remove(key, orphan=options.get("propagationPolicy") == "Orphan")
            old["metadata"].setdefault("deletionTimestamp", now())
            old["metadata"]["deletionGracePeriodSeconds"] = min(grace, old["metadata"].get("deletionGracePeriodSeconds", grace))
            return self._write("MODIFIED", key, old)

    def remove(self, key: Key, *, orphan: bool = False) -> Json:
        """Take the object out, and what it owns with it."""
        with self.lock:
            gone = self._objects.pop(key)
            self._note("DELETED", key, gone)
            for other, data in list(self._objects.items()):
                owners = data["metadata"].get("ownerReferences") or []
                if other in self._objects and not orphan and owners and all(one["uid"] == gone["metadata"]["uid"] for one in owners):
                    self.delete(other, {})
            if key.kind == Kind("", "v1", "namespaces"):
                for other in [one for one in self._objects if one.namespace == key.name]:
                    if other in self._objects:
                        self.remove(other)
            return copy.deepcopy(gone)

    def list(self, kind: Kind, namespace: str = "", labels: str = "", fields: str = "") -> list[Json]:
        """Return the objects of a kind, in one namespace or in all, that both selectors choose."""
        with self.lock:
            found = [data for key, data in self._objects.items() if key.kind == kind and namespace in ("", key.namespace)]
            return [copy.deepcopy(one) for one in found if chosen(one, labels, fields)]

    def _write(self, event: str, key: Key, data: Json) -> Json:
        data["metadata"].pop("resourceVersion", None)
        self._objects[key] = data
        self._note(event, key, data)
        return copy.deepcopy(data)

    def _note(self, event: str, key: Key, data: Json) -> None:
        self.version += 1
        data["metadata"]["resourceVersion"] = str(self.version)
        self.history = [*self.history[-HISTORY + 1 :], (self.version, event, key, copy.deepcopy(data))]
        self.lock.notify_all()


def chosen(data: Json, labels: str, fields: str) -> bool:
    """Return whether an object has the labels and fields that selectors ask for: ``a=b,c!=d,e,!f``, and for labels ``g in (h,i)``."""
    return all(_holds(term, data["metadata"].get("labels") or {}) for term in _terms(labels)) and all(
        _holds(term, {_name(term): _field(data, _name(term))}) for term in _terms(fields)
    )


def patched(old: Any, patch: Any, name: str = "", *, strategic: bool) -> Any:
    """Return `old` changed by a merge patch; a strategic one merges the lists of `MERGED_BY`."""
    if isinstance(patch, dict):
        base = dict(old) if isinstance(old, dict) else {}
        for key, value in patch.items():
            if value is None:
                base.pop(key, None)
            else:
                base[key] = patched(base.get(key), value, key, strategic=strategic)
        return base
    key = MERGED_BY.get(name)
    if not (strategic and key and isinstance(patch, list) and isinstance(old, list)):
        return patch
    new = {one[key]: one for one in patch}
    kept = [patched(one, new.pop(one[key]), strategic=True) if one[key] in new else one for one in old]
    return [*kept, *new.values()]


def now() -> str:
    """Return the time as Kubernetes writes it, in whole seconds."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _grace(key: Key, data: Json, options: Mapping[str, Any]) -> int:
    """Return how long a deletion waits for the node: only a pod that one has, and that has not ended, is waited for."""
    ended = data.get("status", {}).get("phase") in ("Succeeded", "Failed")
    if key.kind.plural != "pods" or not data["spec"].get("nodeName") or ended:
        return 0
    asked = options.get("gracePeriodSeconds")
    return int(data["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)


def _terms(selector: str) -> list[str]:
    terms: list[str] = []
    for part in filter(None, selector.split(",")):
        if terms and terms[-1].count("(") > terms[-1].count(")"):
            terms[-1] += f",{part}"
        else:
            terms.append(part)
    return terms


def _name(term: str) -> str:
    return term.strip("! ").replace("!=", "=").partition("=")[0].split(" ")[0]


def _holds(term: str, values: Mapping[str, str]) -> bool:
    name, value = _name(term), values.get(_name(term))
    if " in (" in term or " notin (" in term:
        among = value in [one.strip() for one in term.partition("(")[2].rstrip(")").split(",")]
        return among == (" in (" in term)
    if "!=" in term:
        return value != term.partition("!=")[2]
    if "=" in term:
        return value == term.rpartition("=")[2]
    return (name in values) != term.startswith("!")


def _field(data: Json, path: str) -> str:
    found: Any = data
    for name in path.split("."):
        found = found.get(name, "") if isinstance(found, dict) else ""
    return str(found)
