"""The processes of a one-machine deployment: what each is called, how it is started, and which environment all of them share."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlencode

from airflow_mlops.artifacts import canonical_json, write_atomically

MARKER = "MLOPS_LOCAL_HOME"  # in the environment of every process that is started, so that one of no known session is found, too
# Who triggers a run does not approve what comes of it.
USERS = {"admin": "admin", "reviewer": "op"}
WANTED_PORTS = {"airflow": 8080, "mlflow": 5000, "serving_grpc": 8500, "serving_rest": 8501, "worker_logs": 8793, "trigger_logs": 8794}


@dataclass(frozen=True)
class Settings:
    """What a deployment keeps from one start to the next: ports, and secrets made for it alone."""

    ports: dict[str, int]
    password: str
    jwt_secret: str
    fernet_key: str

    @classmethod
    def of(cls, home: Path) -> Settings:
        """Return the settings stored in `home`, made on the first call."""
        path = home / "settings.json"
        if path.exists():
            return cls(**json.loads(path.read_bytes()))
        from cryptography.fernet import Fernet

        return cls(_ports(WANTED_PORTS), secrets.token_urlsafe(9), secrets.token_hex(48), Fernet.generate_key().decode())

    def store(self, home: Path) -> Settings:
        """Store these settings in `home`, with other ports for those that somebody else took meanwhile, and return them."""
        settings = replace(self, ports=_ports(self.ports))
        write_atomically(home / "settings.json", canonical_json(asdict(settings)), mode=0o600)
        return settings

    def url(self, service: str) -> str:
        """Return the address of a service on this machine."""
        return f"http://127.0.0.1:{self.ports[service]}"


def _ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Return the wanted port for each name where nobody listens on it, else a free one."""
    ports: dict[str, int] = {}
    for name, port in wanted.items():
        ports[name] = free_port(port, taken=ports.values())
    return ports


def free_port(wanted: int = 0, *, taken: Collection[int] = ()) -> int:
    """Return `wanted` if nobody listens there and it is not `taken`, else a free port of loopback."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            if found not in taken:
                return found
    return free_port(taken=taken)


def environment(home: Path, dags: Path, settings: Settings) -> dict[str, str]:
    """Return the environment variables that all processes share, without those of the caller."""
    airflow, ports = settings.url("airflow"), settings.ports
    serving = {"rest_url": settings.url("serving_rest"), "base_path": home / "models", "config_path": home / "models.config"}
    # As URLs, for Airflow complains of a connection type with an underscore in JSON each time it is looked up.
    connections = {
        "mlflow_default": f"mlflow://{settings.url('mlflow')}",
        "mlops_ledger_default": f"mlops-ledger:///{quote(str(home / 'ledger.db'), safe='')}",
        "tf_serving_default": f"tf-serving://127.0.0.1:{ports['serving_grpc']}/?{urlencode(serving)}",
    }
    options = {
        "CORE__DAGS_FOLDER": str(dags),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__EXECUTION_API_SERVER_URL": f"{airflow}/execution/",
        "CORE__PARALLELISM": "4",
        "CORE__FERNET_KEY": settings.fernet_key,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "airflow" / "passwords.json"),
        "API__HOST": "127.0.0.1",
        "API__PORT": str(ports["airflow"]),
        "API__BASE_URL": airflow,
        "API__SECRET_KEY": settings.jwt_secret,
        "API_AUTH__JWT_SECRET": settings.jwt_secret,
        "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "LOGGING__WORKER_LOG_SERVER_PORT": str(ports["worker_logs"]),
        "LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports["trigger_logs"]),
        "LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS": "0o700",
        "LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS": "0o600",
        # Tasks whose process, or whose scheduler, was killed are noticed in a minute instead of five.
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "MLOPS__WORKSPACE": str(home / "workspace"),
        "MLOPS__INBOX": str(home / "inbox"),
    }
    variables = {
        "AIRFLOW_HOME": str(home / "airflow"),
        MARKER: str(home),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for jobs that nothing here starts
        "DO_NOT_TRACK": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return {
        **variables,
        **{f"AIRFLOW__{name}": value for name, value in options.items()},
        **{f"AIRFLOW_CONN_{name.upper()}": connection for name, connection in connections.items()},
    }


def commands(home: Path, settings: Settings) -> dict[str, list[str]]:
    """Return the command line of each service, in the order they are started."""
    ports = settings.ports
    airflow = [sys.executable, "-m", "airflow"]
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(ports["mlflow"]), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--artifacts-destination", str(home / "mlflow-artifacts")]
    serving = ["--port", str(ports["serving_grpc"]), "--rest_api_port", str(ports["serving_rest"])]
    return {
        "api-server": [*airflow, "api-server", "--workers", "1"],
        "scheduler": [*airflow, "scheduler"],
        "dag-processor": [*airflow, "dag-processor"],
        "triggerer": [*airflow, "triggerer"],
        "mlflow": [*mlflow, *stores],
        "model-server": [sys.executable, "-m", "airflow_mlops", "serve", *serving, "--model_config_file", str(home / "models.config")],
    }
