"""Which Treadle a command talks to: the suite of this machine's data directory, or a gateway elsewhere."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import get_args
from urllib.parse import urlsplit

import click
import httpx
import msgspec

from services.runner.sandbox_mode import SandboxMode
from treadle.api import Address, Gateway
from treadle.bad_input import BadInput
from treadle.plain_text import plain
from treadle.supervision.data_dir import DataDir
from treadle.supervision.ensure import JoinedSuite, ensure_suite
from treadle.supervision.environment import Secrets
from treadle.supervision.suite_info import SuiteOptions

IDLE_AFTER_S = 10.0
AWAY_MAX_S = 60.0
"""How long a gateway elsewhere may be away while we watch: longer than a restart."""
KNOCK_EVERY_S = 1.0


@dataclass
class Reached:
    """A gateway in use. As long as this is open, our own suite does not stop for idleness."""

    address: Address
    suite: JoinedSuite | None = None
    """None: the gateway is elsewhere."""

    def gateway(self) -> Gateway:
        return Gateway(self.address)

    def close(self) -> None:
        if self.suite is not None:
            self.suite.close()

    def __enter__(self) -> Reached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Instance:
    """What `--data`, `--url` and the environment chose."""

    def __init__(self, data_dir: DataDir, elsewhere: Address | None = None, keys: Secrets | None = None) -> None:
        """`keys` are for a suite that is started; None: those of the environment."""
        self.data_dir = data_dir
        self.elsewhere = elsewhere
        self._keys = keys

    @classmethod
    def chosen(cls, data: Path | None, url: str | None, environment: Mapping[str, str]) -> Instance:
        """Raises `BadInput` for an address that is none, and where there is no token for it."""
        data_dir = DataDir.chosen(data, environment)
        url = url or environment.get("TREADLE_URL")
        return cls(data_dir, _address(url, environment) if url else None)

    def own(self, command: str) -> DataDir:
        """The data directory, for a command that is about this machine. Raises `BadInput`."""
        if self.elsewhere is not None:
            raise BadInput(
                f"`treadle {command}` is about this machine's own suite: run it without --url (and TREADLE_URL), "
                f"on the machine of {self.elsewhere.url} if it is that one that you mean"
            )
        return self.data_dir

    def usual_options(self) -> SuiteOptions:
        """Those of a suite that a command without options of its own starts: TREADLE_SANDBOX counts there too.

        Raises `BadInput`.
        """
        mode = os.environ.get("TREADLE_SANDBOX") or "preferred"
        try:
            return SuiteOptions(data_dir=str(self.data_dir.path), sandbox=msgspec.convert(mode, SandboxMode))
        except msgspec.ValidationError:
            raise BadInput(f"TREADLE_SANDBOX has to be one of {', '.join(get_args(SandboxMode))}") from None

    def reach(self, options: SuiteOptions | None = None) -> Reached:
        """The gateway elsewhere, or our running suite; none running, one is started that stops when nobody needs it.

        A wait that is longer than a moment is told on standard error. Raises `SuiteError`.
        """
        if self.elsewhere is not None:
            return Reached(self.elsewhere)
        chosen = options or self.usual_options()
        in_background = msgspec.structs.replace(chosen, idle_after_s=IDLE_AFTER_S)
        suite = ensure_suite(in_background, self._keys or Secrets.of(os.environ), say=_say)
        return Reached(Address(suite.info.gateway_url, suite.token), suite)

    def reach_again(self, options: SuiteOptions) -> Reached:
        """The same after the connection was lost. Blocks; raises `SuiteError`, or httpx's error for one elsewhere."""
        if self.elsewhere is not None:
            _wait_until_back(self.elsewhere)
        return self.reach(options)


def _say(words: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(plain(words), err=True)


def _address(url: str, environment: Mapping[str, str]) -> Address:
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise BadInput("--url wants a gateway's address, such as https://treadle.example.com")
    path = parts.path.rstrip("/").removesuffix("/api")
    return Address(f"{parts.scheme}://{parts.netloc}{path}", _token(environment), not _is_loopback(host))


def _token(environment: Mapping[str, str]) -> str:
    file = environment.get("TREADLE_TOKEN_FILE")
    try:
        token = Path(file).read_text(encoding="utf-8").strip() if file else environment.get("TREADLE_TOKEN", "")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"TREADLE_TOKEN_FILE can't be read: {error}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        where = f"{file} holds no token" if file else "there is no token for that gateway"
        raise BadInput(
            f"{where}: make one there (POST /api/auth/tokens), and name its file in TREADLE_TOKEN_FILE, "
            "or set TREADLE_TOKEN"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait_until_back(address: Address) -> None:
    until_s = time.monotonic() + AWAY_MAX_S
    with httpx.Client(**address.http(), timeout=KNOCK_EVERY_S) as http:
        while True:
            try:
                if http.get("/health/live").status_code < 500 or time.monotonic() > until_s:
                    return
            except httpx.TransportError:
                if time.monotonic() > until_s:
                    raise
            time.sleep(KNOCK_EVERY_S)
