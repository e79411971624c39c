"""A fake of Kubernetes' API server in this process: the same answers as the control plane's where the tests ask both, and faults on demand.

No program is built and none is started, so that thousands of runs take minutes. It admits, schedules and collects garbage in the little way that
pods of tests need; `tests/kubernetes/test_api_conformance.py` asks the real control plane and it the same questions.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

import urllib3

from tests.kubernetes.control_plane import Cluster, _write_kubeconfig
from tests.kubernetes.fake_store import Json, Key, Kind, Refused, Store, chosen, patched

PODS, NODES, NAMESPACES = (Kind("", "v1", plural) for plural in ("pods", "nodes", "namespaces"))
TOKEN = "the-administrator-s-token"
KINDS = {"pods": "Pod", "nodes": "Node", "namespaces": "Namespace", "services": "Service", "secrets": "Secret", "jobs": "Job", "events": "Event"}
VERSION = ("buildDate", "compiler", "gitCommit", "gitTreeState", "gitVersion", "goVersion", "platform")


class Fault(NamedTuple):
    """What goes wrong with one request: it is answered with `code`, or with 0 its connection is dropped; `applied`: after it was done."""

    code: int
    applied: bool = False


class Request(NamedTuple):
    """One request, as its path and query name it."""

    verb: str
    kind: Kind
    namespace: str
    name: str
    part: str
    query: dict[str, str]
    body: Any


class FakeApi(Cluster):
    """A cluster without nodes, until a played kubelet adds some; it listens on loopback while the block lasts.

    :param home: a directory for kubeconfigs.

    `before` is called with every request before it is answered: time can pass there, and it may return a `Fault`. `logs` returns the lines of a
    pod's log where no node has it.
    """

    def __init__(self, home: Path) -> None:
        self.store = Store()
        self.before: Callable[[Request], Fault | None] = lambda _: None
        self.logs: Callable[[str, str], list[str]] | None = None
        self._pool = urllib3.PoolManager(cert_reqs="CERT_NONE")
        super().__init__(home / "fake.json", home)

    def __enter__(self) -> Self:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def answer(self) -> None:
                with contextlib.suppress(ConnectionError):  # who asked went away
                    api._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        _write_kubeconfig(self.kubeconfig, f"http://127.0.0.1:{self._server.server_address[1]}", "", {"token": TOKEN}, "default")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._pool.clear()

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        body = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        try:
            if http.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            request = _request(http, json.loads(body) if body else None)
            fault = self.before(request)
            answer = self._do(request, http.headers.get("Content-Type", "")) if fault is None or fault.applied else None
            if fault is not None and not fault.code:
                http.close_connection = True
                return http.connection.shutdown(socket.SHUT_RDWR)
            if fault is not None:
                raise Refused(fault.code, "InternalError", "a fault of the test")
            if isinstance(answer, Iterator):
                return _stream(http, answer)
            code = 201 if request.verb == "POST" else 200
        except Refused as error:
            code = error.code
            answer = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": error.reason, "message": str(error)}
        content = json.dumps(answer).encode()
        http.send_response(code)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(len(content)))
        http.end_headers()
        http.wfile.write(content)
        return None

    def _do(self, request: Request, content_type: str) -> Any:
        key = Key(request.kind, request.namespace, request.name)
        if request.kind.plural == "version":
            return dict.fromkeys(VERSION, "fake") | {"major": "1", "minor": "30"}
        if request.verb == "GET":
            return self._read(request, key)
        if request.verb == "POST":
            made = self.store.create(key._replace(name=(request.body.get("metadata") or {}).get("name", "")), _admitted(request))
            if request.kind == NAMESPACES:
                account = Key(Kind("", "v1", "serviceaccounts"), made["metadata"]["name"], "default")
                self.store.create(account, {"secrets": [{"name": "default-token"}]})
            self._schedule()
            return self.store.get(key._replace(name=made["metadata"]["name"]))
        if request.verb == "DELETE":
            query = {"gracePeriodSeconds": request.query["gracePeriodSeconds"]} if "gracePeriodSeconds" in request.query else {}
            return self.store.delete(key, {**query, **(request.body or {})})
        changed = self.store.change(key, lambda old: _changed(old, request, content_type))
        self._schedule()
        return changed

    def _read(self, request: Request, key: Key) -> Any:
        if request.part == "log":
            return self._log(request, key)
        if request.name:
            return self.store.get(key)
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        if request.query.get("watch") in ("true", "1"):
            return self._watch(request, labels, fields)
        items = self.store.list(request.kind, request.namespace, labels, fields)
        kind = KINDS.get(request.kind.plural, "Object")
        version = "/".join(filter(None, (request.kind.group, request.kind.version)))
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": str(self.store.version)}, "items": items}

    def _watch(self, request: Request, labels: str, fields: str) -> Iterator[bytes]:
        store, since = self.store, int(request.query.get("resourceVersion") or self.store.version)
        if store.history and since + 1 < store.history[0][0]:
            raise Refused(410, "Expired", f"too old resource version: {since} ({store.history[0][0]})")

        def events() -> Iterator[bytes]:
            seen = since
            while True:
                with store.lock:
                    if not store.lock.wait_for(lambda seen=seen: store.version > seen, timeout=float(request.query.get("timeoutSeconds") or 60)):
                        return
                    new, seen = [one for one in store.history if one[0] > seen], store.version
                for _, event, key, data in new:
                    if key.kind == request.kind and request.namespace in ("", key.namespace) and chosen(data, labels, fields):
                        yield json.dumps({"type": event, "object": data}).encode() + b"\n"

        return events()

    def _log(self, request: Request, key: Key) -> Iterator[bytes]:
        pod, query = self.store.get(key), dict(request.query)
        if self.logs is not None:
            return iter([f"{line}\n".encode() for line in self.logs(key.namespace, key.name)])
        node = self.store.get(Key(NODES, "", pod["spec"]["nodeName"])) if pod["spec"].get("nodeName") else None
        container = query.pop("container", "") or pod["spec"]["containers"][0]["name"]
        if node is None:
            raise Refused(400, "BadRequest", f'container "{container}" in pod "{key.name}" is waiting to start: ContainerCreating')
        port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        url = f"https://127.0.0.1:{port}/containerLogs/{key.namespace}/{key.name}/{container}"
        answer = self._pool.request("GET", url, fields=query, preload_content=False)
        if answer.status != 200:
            answer.release_conn()
            raise Refused(400, "BadRequest", f'container "{container}" in pod "{key.name}" is waiting to start: ContainerCreating')
        return iter(lambda: answer.read1(), b"")

    def _schedule(self) -> None:
        """Bind every pod that waits to a node that has room for it, or note on it that none has."""
        with self.store.lock:
            pods, nodes = self.store.list(PODS), self.store.list(NODES)
            for pod in [one for one in pods if not one["spec"].get("nodeName") and nodes]:
                fits = [
                    node for node in nodes if not _lacks(node, pod, [one for one in pods if one["spec"].get("nodeName") == node["metadata"]["name"]])
                ]
                key = Key(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
                if fits:
                    pod["spec"]["nodeName"] = fits[0]["metadata"]["name"]
                    condition = {"type": "PodScheduled", "status": "True"}
                else:
                    lack = ", ".join(sorted({_lacks(node, pod, pods) or "node(s) had taints" for node in nodes}))
                    message = f"0/{len(nodes)} nodes are available: {lack}."
                    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
                pod["status"]["conditions"] = [condition]
                self.store.change(key, lambda _, pod=pod: pod)


def _request(http: BaseHTTPRequestHandler, body: Any) -> Request:
    asked = urlsplit(http.path)
    parts = asked.path.strip("/").split("/")
    group, version, *rest = ["", *parts[1:]] if parts[0] == "api" else parts[1:] if parts[0] == "apis" else ["", "v1", parts[0]]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    name, part = [*rest[1:3], "", ""][:2]
    return Request(
        http.command,
        Kind(group, version, rest[0]),
        namespace,
        name,
        part,
        {key: {"True": "true", "False": "false"}.get(value, value) for key, value in parse_qsl(asked.query)},
        body,
    )


def _admitted(request: Request) -> Json:
    """Return a new object as the API server completes it; refuse what no node could run."""
    data = dict(request.body)
    data.setdefault("kind", KINDS.get(request.kind.plural, "Object"))
    data.setdefault("apiVersion", "/".join(filter(None, (request.kind.group, request.kind.version))))
    if request.kind == PODS:
        for at, one in enumerate(data["spec"]["containers"]):
            resources = one.setdefault("resources", {})
            wanted, most = resources.setdefault("requests", {}), resources.get("limits") or {}
            for name in most.keys() | wanted.keys():
                wanted.setdefault(name, most.get(name))
                if name in most and _quantity(wanted[name]) > _quantity(most[name]):
                    field = f"spec.containers[{at}].resources.requests"
                    raise Refused(422, "Invalid", f"{field}: Invalid value: {wanted[name]!r}: must be less than or equal to {name} limit")
        data["spec"].setdefault("restartPolicy", "Always")
        data["spec"].setdefault("terminationGracePeriodSeconds", 30)
        data["status"] = {"phase": "Pending", "qosClass": "Burstable"}
    return data


def _changed(old: Json, request: Request, content_type: str) -> Json:
    """Return what a PUT or PATCH makes of an object: its status changes through its own address alone."""
    new = request.body if request.verb == "PUT" else patched(old, request.body, strategic="strategic" in content_type or "json-patch" in content_type)
    if request.part == "status":
        return {**old, "metadata": new["metadata"], "status": new.get("status", {})}
    if request.kind == PODS and new["spec"].get("containers") != old["spec"]["containers"]:
        images = [{**one, "image": ""} for one in new["spec"]["containers"]], [{**one, "image": ""} for one in old["spec"]["containers"]]
        if images[0] != images[1]:
            raise Refused(422, "Invalid", "spec: Forbidden: pod updates may not change fields other than the images of containers")
    return {**new, **({"status": old["status"]} if "status" in old else {})}


def _lacks(node: Json, pod: Json, beside: list[Json]) -> str:
    """Return what a node has too little of for a pod, empty when it takes it."""
    tolerated = {one.get("key") for one in pod["spec"].get("tolerations") or []}
    for taint in node.get("spec", {}).get("taints") or []:
        if taint["key"] not in tolerated:
            return f"node(s) had taint {{{taint['key']}: }}, that the pod didn't tolerate"
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(name) != value for name, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return "node(s) didn't match Pod's node affinity"
    alive = [one for one in beside if one["status"].get("phase") not in ("Succeeded", "Failed")]
    for name, wanted in _requests(pod).items():
        room = _quantity(node.get("status", {}).get("allocatable", {}).get(name, "0"))
        if wanted > room - sum(_requests(one).get(name, 0.0) for one in alive):
            return f"Insufficient {name}"
    return ""


def _requests(pod: Json) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in pod["spec"]["containers"]:
        for name, value in one["resources"]["requests"].items():
            total[name] = total.get(name, 0.0) + _quantity(value)
    return total


def _quantity(text: Any) -> float:
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
    number = str(text).rstrip("mkMGTKi")
    return float(number) * units.get(str(text)[len(number) :], 1.0)


def _stream(http: BaseHTTPRequestHandler, chunks: Iterator[bytes]) -> None:
    http.send_response(200)
    http.send_header("Content-Type", "text/plain")
    http.send_header("Transfer-Encoding", "chunked")
    http.end_headers()
    for chunk in chunks:
        http.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    http.wfile.write(b"0\r\n\r\n")
