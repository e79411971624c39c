"""A Kubernetes control plane of the tests' own, on loopback and without root: it validates, schedules and collects garbage as any other."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from airflow_mlops.local.services import free_port
from tests.certificates import Authority, Certificate
from tests.kubernetes.build import programs

T = TypeVar("T")
START_SECONDS = 90.0  # 9 s on two idle cores
USERS = {"admin": "system:masters", "system:kube-controller-manager": "", "system:kube-scheduler": ""}  # and their groups


class Cluster:
    """A cluster that a kubeconfig names, with namespaces and users for tests.

    :param kubeconfig: whose user may do everything.
    :param home: a directory for the kubeconfigs of others.
    """

    def __init__(self, kubeconfig: Path, home: Path) -> None:
        self.kubeconfig, self.home = kubeconfig, home

    def client(self, kubeconfig: Path | None = None) -> client.ApiClient:
        """Return a client for the administrator, or for whom another kubeconfig names; the caller closes it."""
        return config.new_client_from_config(str(kubeconfig or self.kubeconfig))

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """Yield the name of a new namespace in which pods can be made, and delete it in the end."""
        with self.client() as api:
            core, name = client.CoreV1Api(api), f"test-{uuid.uuid4().hex[:8]}"
            core.create_namespace({"metadata": {"name": name}})
            try:
                eventually(lambda: _account(core, name))
                yield name
            finally:
                core.delete_namespace(name)

    def service_account(self, namespace: str, name: str) -> Path:
        """Make a service account that may do nothing yet, and return a kubeconfig for it; its default namespace is its own."""
        with self.client() as api:
            core = client.CoreV1Api(api)
            core.create_namespaced_service_account(namespace, {"metadata": {"name": name}})
            token = core.create_namespaced_service_account_token(name, namespace, {"spec": {"audiences": [], "expirationSeconds": 3600}})
            settings = api.configuration
            authority = Path(settings.ssl_ca_cert).read_text() if settings.ssl_ca_cert else ""
            return _write_kubeconfig(self.home / f"{namespace}-{name}.json", settings.host, authority, {"token": token.status.token}, namespace)


class ControlPlane(Cluster):
    """etcd, the API server, the controllers and the scheduler, on free ports and with certificates of their own; they end with the block.

    Enter it in a thread that lives as long: when the thread dies, or the whole process by ``kill -9``, the kernel ends them. No node belongs
    to it and so no pod runs: `tests.kubernetes.kubelet` plays one. The controller that watches over nodes does not run either.
    """

    def __init__(self) -> None:
        home = Path(tempfile.mkdtemp(prefix="airflow-mlops-kubernetes-"))
        super().__init__(home / "admin.json", home)
        self.server = f"https://127.0.0.1:{free_port()}"
        self._authority, self._stack = Authority(), ExitStack()
        self._tokens = {user: secrets.token_hex(16) for user in USERS}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.home)
            self._write_secrets()
            etcd = f"http://127.0.0.1:{free_port()}"
            self._start(stack, "etcd", _etcd(self.home, etcd))
            apiserver = self._start(stack, "kube-apiserver", _apiserver(self.home, self.server, etcd))
            self._wait(f"{self.server}/readyz", apiserver)
            ports = {"kube-controller-manager": free_port(), "kube-scheduler": free_port()}
            started = [(port, self._start(stack, name, _follower(self.home, name, port))) for name, port in ports.items()]
            for port, process in started:
                self._wait(f"https://127.0.0.1:{port}/healthz", process)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def user(self, name: str) -> Path:
        """Return a kubeconfig for a person who may do nothing yet: the API server knows people by their certificates."""
        signed = self._authority.sign(name)
        return self._write_kubeconfig(name, {"client-certificate-data": _base64(signed.cert), "client-key-data": _base64(signed.key)})

    def log(self, program: str) -> str:
        """Return what one of the programs wrote."""
        return (self.home / f"{program}.log").read_text()

    def _write_secrets(self) -> None:
        serving, accounts = self._authority.sign("127.0.0.1", "localhost"), self._authority.sign("service-accounts")
        files = {"authority.crt": self._authority.cert, **_pem("serving", serving), **_pem("accounts", accounts)}
        files["tokens.csv"] = "".join(f"{self._tokens[user]},{user},{user},{group}\n" for user, group in USERS.items())
        for name, text in files.items():
            (self.home / name).write_text(text)
        for user, token in self._tokens.items():
            self._write_kubeconfig(user.removeprefix("system:"), {"token": token})

    def _write_kubeconfig(self, name: str, user: dict[str, str]) -> Path:
        return _write_kubeconfig(self.home / f"{name}.json", self.server, self._authority.cert, user, "default")

    def _start(self, stack: ExitStack, program: str, flags: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start one of the programs; it ends with the stack, or when this thread or process is killed."""
        command = ["setpriv", "--pdeathsig=KILL", str(programs() / program), *(f"--{name}={value}" for name, value in flags.items())]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}  # no proxy
        with (self.home / f"{program}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=environment)
        stack.callback(process.wait, 30)
        stack.callback(process.kill)
        return process

    def _wait(self, url: str, process: subprocess.Popen[bytes]) -> None:
        context, end = ssl.create_default_context(), time.monotonic() + START_SECONDS
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # each of the others signs a certificate for itself
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        while not _answers(opener, url):
            program = Path(str(process.args[2])).name  # type: ignore[index]
            assert process.poll() is None, f"{program} ended: {self.log(program)[-4000:]}"
            assert time.monotonic() < end, f"{program} did not start: {self.log(program)[-4000:]}"
            time.sleep(0.1)


def eventually(look: Callable[[], T], seconds: float = 60.0) -> T:
    """Return what `look` returns as soon as that is true; fail with what it returned last."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"expected within {seconds:.0f} s, got {seen!r}"
        time.sleep(0.05)
    return seen


def _account(core: client.CoreV1Api, namespace: str) -> bool:
    """Return whether the default service account can be used: Kubernetes 1.20 refuses pods until it has a secret, newer ones make none."""
    try:
        account = core.read_namespaced_service_account("default", namespace)
    except ApiException as error:
        if error.status == 404:
            return False
        raise
    minor = int("".join(filter(str.isdigit, client.VersionApi(core.api_client).get_code().minor)))
    return bool(account.secrets) or minor >= 24


def _etcd(home: Path, url: str) -> dict[str, Any]:
    peers = f"http://127.0.0.1:{free_port()}"
    own = {"listen-peer-urls": peers, "initial-advertise-peer-urls": peers, "initial-cluster": f"default={peers}"}
    return {"data-dir": home / "etcd", "listen-client-urls": url, "advertise-client-urls": url, **own}


def _apiserver(home: Path, server: str, etcd: str) -> dict[str, Any]:
    return {
        "etcd-servers": etcd,
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": server.rpartition(":")[2],
        "tls-cert-file": home / "serving.crt",
        "tls-private-key-file": home / "serving.key",
        "client-ca-file": home / "authority.crt",
        "token-auth-file": home / "tokens.csv",
        "authorization-mode": "RBAC",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": home / "accounts.crt",
        "service-account-signing-key-file": home / "accounts.key",
        "service-cluster-ip-range": "10.0.0.0/24",
        "endpoint-reconciler-type": "none",  # its own address is loopback, which no Endpoints may hold
        "kubelet-preferred-address-types": "InternalIP",  # where the logs of a node's pods are
    }


def _follower(home: Path, name: str, port: int) -> dict[str, Any]:
    """Return the flags of the controllers or the scheduler, which are clients of the API server like everyone."""
    flags = {"kubeconfig": home / f"{name}.json", "bind-address": "127.0.0.1", "secure-port": port, "port": 0, "leader-elect": "false"}
    if name == "kube-controller-manager":
        flags |= {"controllers": "*,-nodelifecycle,-nodeipam", "use-service-account-credentials": "true"}
        flags |= {"service-account-private-key-file": home / "accounts.key", "root-ca-file": home / "authority.crt"}
    return flags


def _answers(opener: urllib.request.OpenerDirector, url: str) -> bool:
    try:
        with opener.open(url, timeout=5):
            return True
    except OSError:
        return False


def _write_kubeconfig(path: Path, server: str, authority: str, user: dict[str, str], namespace: str) -> Path:
    trust = {"certificate-authority-data": _base64(authority)} if authority else {"insecure-skip-tls-verify": True}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, **trust}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(content))
    path.chmod(0o600)
    return path


def _pem(name: str, signed: Certificate) -> dict[str, str]:
    return {f"{name}.crt": signed.cert, f"{name}.key": signed.key}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
