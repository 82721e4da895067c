"""A real gateway for tests: `python -m services.gateway` against a real NATS and a real database."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from services.gateway.__main__ import main
from tests import warm_process
from tests.nats_process import NatsServer
from treadle.supervision.ports import LOOPBACK, ReservedPort

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
CLIENT_TIMEOUT_S = 120.0


class GatewayProcess:
    """A gateway on a loopback port that it keeps over restarts. As a context: migrates, starts, and stops in the end.

    Several gateways on one database: give them all the first one's `directory`, which holds secret and keyring.
    """

    def __init__(
        self,
        directory: Path,
        nats: NatsServer,
        database_url: str,
        environment: Mapping[str, str] | None = None,
        is_migrated: bool = False,
    ) -> None:
        """With `is_migrated`, the database has its tables already."""
        self.directory = directory / "gateway"
        self.database_url = database_url
        self.environment = dict(environment or {})
        """More settings; whoever changes it restarts the gateway."""
        self._nats = nats
        self._is_migrated = is_migrated
        self._port = ReservedPort()
        self.url = f"http://{LOOPBACK}:{self._port.number}"
        self.log = self.directory / f"gateway-{self._port.number}.log"
        self._process: ForkServerProcess | None = None
        self._tokens: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self.directory.mkdir(exist_ok=True)
        self.admin_password = self._file("admin-password", secrets.token_urlsafe(18))
        self.session_secret = self._file("secret", secrets.token_urlsafe(48))
        self._file("keyring.json", json.dumps({"current": "k1", "keys": {"k1": _key()}}))

    # Its life

    def __enter__(self) -> Self:
        try:
            if not self._is_migrated:
                self.migrate()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None and self._process.pid is not None
        return self._process.pid

    def migrate(self) -> None:
        """Makes or updates the tables."""
        done = subprocess.run(
            [*_PROGRAM, "migrate"], env=self._environment(), capture_output=True, text=True, timeout=START_TIMEOUT_S
        )
        assert done.returncode == 0, f"migrate failed: {done.stdout}\n{done.stderr}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        assert self._process is None
        self._process = warm_process.start(_serve, self._environment(), self.log)
        deadline = monotonic() + START_TIMEOUT_S
        with httpx.Client(base_url=self.url, timeout=10, **_PLAIN) as client:
            while not _is_live(client):
                if not self._process.is_alive() or monotonic() > deadline:
                    raise AssertionError(f"the gateway did not start:\n{self.log.read_text()}")
                sleep(0.02)  # between two looks, not instead of one

    def stop(self) -> None:
        """Stops it politely, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._wait()

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        self._process.join(STOP_TIMEOUT_S)
        assert self._process.exitcode is not None, f"it has not ended within {STOP_TIMEOUT_S:g} s"
        self._process = None

    def close(self) -> None:
        """Stops it for good and gives its port back."""
        self.stop()
        self._port.release()

    # Its clients

    def client(self, token: str | None = None, **more: Any) -> httpx.AsyncClient:
        """With a bearer token, or without any."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=CLIENT_TIMEOUT_S, **_PLAIN, **more)

    def anonymous(self) -> httpx.AsyncClient:
        """Nobody in particular."""
        return self.client()

    def as_admin(self) -> httpx.AsyncClient:
        """The first account, `admin`."""
        return self.client(self.token_of("admin"))

    def as_user(self, name: str, role: Literal["admin", "user"] = "user") -> httpx.AsyncClient:
        """An account of that name, which is made when it is first asked for."""
        if name not in self._ids:
            made = self._call("POST", "/api/users", {"name": name, "role": role, "password": password_of(name)})
            self._ids[name] = made["id"]
        return self.client(self.token_of(name))

    def token_of(self, name: str) -> str:
        """A session's token of `admin` or of an account that `as_user` made."""
        if name not in self._tokens:
            password = self.admin_password if name == "admin" else password_of(name)
            answer = httpx.post(
                f"{self.url}/api/auth/login",
                json={"name": name, "password": password},
                timeout=CLIENT_TIMEOUT_S,
                **_PLAIN,
            )
            assert answer.status_code == 200, answer.text
            self._tokens[name] = answer.json()["token"]
        return self._tokens[name]

    def id_of(self, name: str) -> str:
        """The id of an account that `as_user` made."""
        return self._ids[name]

    def _call(self, method: str, path: str, body: object) -> Any:
        headers = {"Authorization": f"Bearer {self.token_of('admin')}"}
        url = f"{self.url}{path}"
        answer = httpx.request(method, url, json=body, headers=headers, timeout=CLIENT_TIMEOUT_S, **_PLAIN)
        assert answer.is_success, answer.text
        return answer.json()

    # Its files and settings

    def _file(self, name: str, text: str) -> str:
        """What a private file holds, which is `text` unless the file was there before."""
        path = self.directory / name
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(text)
        return path.read_text()

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "TREADLE_NATS_URL": self._nats.url,
            "TREADLE_NATS_USER": self._nats.user,
            "TREADLE_NATS_PASSWORD_FILE": str(self._nats.password_file),
            "TREADLE_GATEWAY_HOST": LOOPBACK,
            "TREADLE_GATEWAY_PORT": str(self._port.number),
            "TREADLE_DATABASE_URL": self.database_url,
            "TREADLE_GATEWAY_KEYRING_FILE": str(self.directory / "keyring.json"),
            "TREADLE_GATEWAY_SECRET_FILE": str(self.directory / "secret"),
            "TREADLE_ADMIN_PASSWORD_FILE": str(self.directory / "admin-password"),
            **self.environment,
        }


_PROGRAM = [sys.executable, "-P", "-m", "services.gateway"]
# Plain HTTP on loopback. Loading the machine's certificates, which nothing asks for, would take longer than most tests.
_PLAIN: dict[str, Any] = {"trust_env": False, "verify": False}


def _serve() -> int:
    return main(["serve"])


def _is_live(client: httpx.Client) -> bool:
    try:
        return client.get("/api/health/live").is_success
    except httpx.TransportError:
        return False


def password_of(name: str) -> str:
    """The password of an account that `as_user` makes."""
    return f"{name} and its long password"


def _key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()
