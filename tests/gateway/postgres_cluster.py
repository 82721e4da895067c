"""A private PostgreSQL for tests: the machine's own binaries, or a container where there is only Docker."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from testcontainers.community.postgres import PostgresContainer

from treadle.supervision.ports import LOOPBACK, ReservedPort
from treadle.supervision.processes import die_with_parent

CONTAINER_IMAGE = "postgres:15-bookworm"
START_TIMEOUT_S = 60.0


class NoPostgres(Exception):
    """There is nothing here to run PostgreSQL with; the message says what was looked for."""


class PostgresCluster:
    """A running cluster. Whoever asks on loopback is let in: it holds nothing but tests' data."""

    def __init__(self, url: str) -> None:
        self.url = url
        """Of its maintenance database."""

    def fresh_database(self, template_url: str | None = None) -> str:
        """The address of a new database: an empty one, or a copy of one that nobody is connected to."""
        name = f"test_{secrets.token_hex(6)}"
        template = f' TEMPLATE "{make_url(template_url).database}"' if template_url else ""
        self._execute(f'CREATE DATABASE "{name}"{template}')
        return make_url(self.url).set(database=name).render_as_string()

    def drop(self, url: str) -> None:
        """Removes such a database, whoever is still connected to it."""
        self._execute(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        _execute(self.url, statement)


def _execute(url: str, statement: str) -> None:
    async def execute() -> None:
        engine = create_async_engine(
            make_url(url).set(drivername="postgresql+asyncpg"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        async with engine.connect() as connection:
            await connection.execute(text(statement))

    # In a thread of its own, so that fixtures may ask for it while a test's event loop runs.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, execute()).result()


class OwnCluster(PostgresCluster):
    """A cluster of the machine's binaries, which may be stopped and started again."""

    def __init__(self, bin_dir: Path, directory: Path) -> None:
        self._port = ReservedPort()
        super().__init__(f"postgresql://treadle@{LOOPBACK}:{self._port.number}/postgres")
        self._bin_dir = bin_dir
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        # initdb and the server refuse to be root.
        self._account = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        if self._account:
            os.chown(directory, self._account.pw_uid, self._account.pw_gid)
        options = "-U treadle -A trust -E UTF8 --locale=C --no-sync"
        done = subprocess.run(
            [str(bin_dir / "initdb"), "-D", str(directory / "data"), *options.split()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=directory,
            **self._as_account(),
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}\n{done.stderr}")

    def start(self) -> None:
        """Starts the server, on the port of its former life, and waits until it answers."""
        assert self._process is None
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self._port.number),
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "200",
        }
        argv = [str(self._bin_dir / "postgres"), "-D", str(self._directory / "data")]
        argv += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = self._directory / "log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                preexec_fn=die_with_parent(),
                **self._as_account(),
            )
        self._process = process
        deadline = monotonic() + START_TIMEOUT_S
        while True:
            try:
                _execute(self.url, "SELECT 1")
                return
            except (OSError, DBAPIError) as error:
                if process.poll() is not None or monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from error
                sleep(0.05)  # between two looks, not instead of one

    def stop(self) -> None:
        """Stops the server, if it runs, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """Stops the server for good and gives its port back."""
        self.stop()
        self._port.release()

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}


@contextmanager
def postgres_cluster() -> Iterator[PostgresCluster]:
    """Raises NoPostgres where there are neither binaries nor Docker."""
    bin_dir = _bin_dir()
    if bin_dir is None:
        with _container() as container:
            yield container
        return
    # Not under pytest's own directory, which only its owner may enter.
    directory = Path(tempfile.mkdtemp(prefix="treadle-postgres-"))
    cluster = None
    try:
        cluster = OwnCluster(bin_dir, directory)
        cluster.start()
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        shutil.rmtree(directory)


def _bin_dir() -> Path | None:
    """Where `initdb` and `postgres` are: distributions keep them off the PATH."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if pg_config := shutil.which("pg_config"):
        said = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True)
        candidates.append(Path(said.stdout.strip()))
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).parent)
    return next((found for found in candidates if (found / "initdb").exists() and (found / "postgres").exists()), None)


@contextmanager
def _container() -> Iterator[PostgresCluster]:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        raise NoPostgres("neither PostgreSQL's binaries (initdb, postgres) nor a running Docker are here")
    container = PostgresContainer(CONTAINER_IMAGE, username="treadle", dbname="postgres", driver=None)
    container.with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
    container.start()
    try:
        host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
        yield PostgresCluster(f"postgresql://treadle@{host}:{port}/postgres")
    finally:
        container.stop()
