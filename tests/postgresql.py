"""A PostgreSQL server of the tests' own: Debian's programs in a temporary directory, on a free port of loopback, with a password of its own."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg2
from sqlalchemy.engine import URL, make_url

from airflow_mlops.ledger.store import Store
from airflow_mlops.local.services import free_port

START_SECONDS = 60.0
EMPTY = "empty"
USER = "postgres"  # it refuses to run as root; Debian's package makes this user


class PostgresqlServer:
    """A server that ends with the block; with `fsync` it writes as in production, without it as fast as tests like it."""

    def __init__(self, *, fsync: bool = False) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="airflow-mlops-postgresql-"))
        password = secrets.token_hex(16)
        self.url = URL.create("postgresql+psycopg2", USER, password, "127.0.0.1", free_port(), "postgres")
        self._numbers, self._fsync = itertools.count(1), fsync

    def __enter__(self) -> Self:
        secret = self.home / "password"
        secret.write_text(str(self.url.password))
        if os.geteuid() == 0:
            shutil.chown(self.home, USER)
            shutil.chown(secret, USER)
        try:
            self._popen("initdb", f"--pwfile={secret}", f"--username={USER}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8").wait()
            self.start()
        except BaseException:
            shutil.rmtree(self.home)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.home)

    def start(self) -> None:
        """Start it and return when it answers."""
        settings = [f"port={self.url.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", f"fsync={'on' if self._fsync else 'off'}"]
        self.process = self._popen("postgres", *(f"--{setting}" for setting in settings))
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, f"the server ended: {self.log}"
            assert time.monotonic() < end, f"the server did not start: {self.log}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, as a crash would: every connection is cut."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def run(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Run statements as the administrator, each in a transaction of its own, and return the rows of the last one."""
        return execute(self.url.set(database=database), *statements)

    @contextmanager
    def database(self, like: str = "template1") -> Iterator[str]:
        """Yield the URL of a new database, an empty one unless it is to be `like` another, and drop it in the end."""
        name = f"ledger_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {like}")
        try:
            yield self._at(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def ledger(self) -> Iterator[str]:
        """Yield the URL of a new database that holds an empty ledger, copied: its tables take longer to make than most tests."""
        if not self.run(f"SELECT 1 FROM pg_database WHERE datname = '{EMPTY}'"):
            self.run(f"CREATE DATABASE {EMPTY}")
            Store(self._at(EMPTY)).close()
        with self.database(EMPTY) as url:
            yield url

    def _at(self, database: str) -> str:
        return self.url.set(database=database).render_as_string(hide_password=False)

    def _answers(self) -> bool:
        try:
            self.run("SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def _popen(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program of the server, not as root; it ends when this process is killed."""
        other = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []
        command = ["setpriv", "--pdeathsig=QUIT", *other, str(programs() / program), "-D", str(self.home / "data"), *arguments]
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home)


def programs() -> Path:
    """Return the directory of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL's server is missing: 'make postgresql' installs it"
    return found[-1].parent


def execute(url: str | URL, *statements: str) -> list[Any]:
    """Run statements on the database at `url`, each in a transaction of its own, and return the rows of the last one."""
    fields = make_url(url)
    with closing(
        psycopg2.connect(host=fields.host, port=fields.port, user=fields.username, password=fields.password, dbname=fields.database)
    ) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
