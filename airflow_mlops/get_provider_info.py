"""What Airflow shows of this package: connection types with their fields, operators, sensors, hooks, triggers, messages, settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_mlops import __version__

OPERATORS = "approval dataset evidence gate job messages model pod publish reconciliation registration rollback search serving stage"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description in the schema of Airflow 3.3."""
    integration = "MLOps"

    def modules(kind: str, *names: str) -> list[dict[str, Any]]:
        return [{"integration-name": integration, "python-modules": [f"airflow_mlops.{kind}.{name}" for name in names]}]

    return {
        "package-name": "airflow-mlops",
        "name": integration,
        "description": "Validated, robustness-tested, approved and audited retraining of deep-learning models.",
        "versions": [__version__],
        "integrations": [{"integration-name": integration, "external-doc-url": "https://airflow.apache.org/", "tags": ["service"]}],
        "operators": modules("operators", *OPERATORS.split()),
        "sensors": modules("sensors", "dataset", "mlflow", "tf_serving"),
        "hooks": modules("hooks", "ledger", "mlflow", "tf_serving"),
        "triggers": modules("triggers", "dataset", "job", "mlflow", "pod", "tf_serving"),
        "notifications": ["airflow_mlops.notifications.slack.PipelineNotifier", "airflow_mlops.notifications.slack.ApprovalNotifier"],
        "extra-links": ["airflow_mlops.operators.links.ReportLink"],
        "connection-types": [_mlflow(), _tf_serving(), _ledger()],
        "config": {"mlops": {"description": "Where the pipelines keep their files, and what their pods are made of.", "options": _options()}},
    }


def _mlflow() -> dict[str, Any]:
    return {
        "connection-type": "mlflow",
        "hook-class-name": "airflow_mlops.hooks.mlflow.MlflowHook",
        "hook-name": "MLflow",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port", "extra"],
            "relabeling": {"host": "Tracking URI", "login": "User, for basic authentication", "password": "Token, or the user's password"},
            "placeholders": {"host": "http://mlflow:5000"},
        },
    }


def _tf_serving() -> dict[str, Any]:
    return {
        "connection-type": "tf_serving",
        "hook-class-name": "airflow_mlops.hooks.tf_serving.TFServingHook",
        "hook-name": "TensorFlow Serving",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login", "password"],
            "relabeling": {"host": "gRPC host", "port": "gRPC port"},
            "placeholders": {"host": "serving", "port": "8500"},
        },
        "conn-fields": {
            "rest_url": _field("REST URL", "For instance http://serving:8501; empty: nobody asks by REST. Releases ask by gRPC"),
            "replicas": {
                "label": "Replicas",
                "description": 'Several, instead of host, port and REST URL: [{"grpc": "serving-0:8500", "rest": "http://serving-0:8501"}, ...]',
                "schema": {"type": ["array", "null"], "items": {"type": "object"}},
            },
            "base_path": _field("Base path", "Directory the server loads models from; each model has its own below it"),
            "config_path": _field("Config file", "The server's --model_config_file, writable by the workers"),
            "storage_options": {
                "label": "Storage options",
                "description": "What fsspec needs to write to a base path in an object store: credentials, endpoint",
                "schema": {"type": ["object", "null"]},
            },
            "deadline_seconds": {
                "label": "Deadline",
                "description": "Seconds each call may take",
                "schema": {"type": "number", "default": 10, "exclusiveMinimum": 0},
            },
            "unsafe_models_allowed": {
                "label": "Unsafe models allowed",
                "description": "Publish SavedModels that run Python or reach files or the network: only where the server is a sandbox",
                "schema": {"type": "boolean", "default": False},
            },
            **_tls(),
        },
    }


def _tls() -> dict[str, Any]:
    return {
        "tls": {"label": "TLS", "description": "Encrypt gRPC, and REST where it has a URL", "schema": {"type": "boolean", "default": False}},
        "ca_cert": _field("CA certificate", "PEM, or the path of a file with it; empty: the public authorities", "multiline"),
        "client_cert": _field("Client certificate", "PEM, or the path of a file with it; where the server asks for one", "multiline"),
        "client_key": _field("Client key", "PEM without a password, or the path of a file with it", "password"),
        "tls_server_name": _field("Server name", "Name in the server's certificate, where it is not the host's"),
        "plain_rest_allowed": {
            "label": "Plain REST allowed",
            "description": "With TLS, let the REST URL be http:// all the same: TensorFlow Serving's own REST port speaks no TLS",
            "schema": {"type": "boolean", "default": False},
        },
    }


def _ledger() -> dict[str, Any]:
    return {
        "connection-type": "mlops_ledger",
        "hook-class-name": "airflow_mlops.hooks.ledger.MlopsLedgerHook",
        "hook-name": "MLOps ledger",
        "ui-field-behaviour": {
            "hidden-fields": ["extra"],
            "relabeling": {"schema": "Database"},
            "placeholders": {"schema": "/srv/mlops/ledger.db, or the database's name"},
        },
        "conn-fields": {"driver": _field("Driver", "Empty: postgresql+psycopg2 with a host, sqlite without one")},
    }


def _field(label: str, description: str, format_: str | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": ["string", "null"], **({"format": format_} if format_ else {})}
    return {"label": label, "description": description, "schema": schema}


def _options() -> dict[str, Any]:
    def option(description: str, default: str, example: str) -> dict[str, Any]:
        return {"description": description, "version_added": "0.1.0", "type": "string", "default": default, "example": example}

    return {
        "workspace": option(
            "Directory of every run's files (specs, results, models, reports); shared by the workers and the API server.",
            "{AIRFLOW_HOME}/mlops",
            "/srv/mlops",
        ),
        "inbox": option("Directory that dataset versions arrive in.", "{AIRFLOW_HOME}/mlops/inbox", "/srv/mlops/inbox"),
        "signing_key": option(
            "PEM file of the private key that signs every registered version; empty: nothing is signed.",
            "",
            "/etc/mlops/signing.pem",
        ),
        "verification_key": option(
            "PEM file of the public key that must have signed what is published; empty: signatures are not looked at.",
            "",
            "/etc/mlops/verification.pem",
        ),
        "outbox": option(
            "File that messages go to when there is no Slack connection; empty: outbox.jsonl in the workspace.", "", "/srv/mlops/outbox.jsonl"
        ),
        **_pods(option),
        **_prices(option),
    }


def _pods(option: Callable[[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    return {
        "stage_image": option("Image of the digits' stages as pods; empty: there is no cluster, and no such DAG.", "", "registry/stage:cpu"),
        "stage_image_cuda": option("Image of their training, which has a GPU.", "", "registry/stage:cuda"),
        "namespace": option("Namespace of their pods.", "default", "mlops"),
        "volume_claim": option("Persistent volume claim that their pods share with the workers.", "", "mlops"),
        "mount_path": option("Where it is for both: workspace, inbox and DAG files lie in it.", "", "/srv/mlops"),
    }


def _prices(option: Callable[[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    return {
        "price_gpu_hour": option("What an hour of one GPU costs, as long as a stage holds it; 0: no costs are shown of it.", "0", "2.10"),
        "price_cpu_hour": option("What an hour of one busy CPU costs.", "0", "0.04"),
        "price_memory_gib_hour": option("What an hour of one GiB of memory costs; the stage's peak counts.", "0", "0.005"),
        "currency": option("The prices' currency, as the costs are shown with.", "", "EUR"),
    }
