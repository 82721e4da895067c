"""The gateway's settings, from the environment; what is secret comes from files.

`TREADLE_GATEWAY_HOST` (127.0.0.1), `TREADLE_GATEWAY_PORT` (8640)
`TREADLE_DATABASE_URL`, such as `sqlite:////var/lib/treadle/treadle.sqlite` or `postgresql://treadle@postgres/treadle`
`TREADLE_DATABASE_PASSWORD_FILE`, for PostgreSQL
`TREADLE_GATEWAY_KEYRING_FILE`: the keys that credentials are encrypted with (`services.gateway.credentials.keyring`)
`TREADLE_GATEWAY_SECRET_FILE`: signs sessions; needed unless the host is loopback
`TREADLE_ADMIN_PASSWORD_FILE`: of the first account, `admin`, which is made where there is none yet
`TREADLE_GATEWAY_TOKEN_FILE`: lets whoever can read it in as `local`, an admin; loopback only
`TREADLE_TRUSTED_PROXIES`: addresses or networks, with commas, of those whose X-Forwarded-For names the client; without
it, all who come through a proxy count as one address of which logins may fail
`TREADLE_LOCAL_REPOSITORIES` (0): 1 allows paths of this machine and private hosts as repositories, and such hosts as
receivers of notifications
`TREADLE_IMPORT_MAX_MB` (256): the largest archive of a plan that may be imported, in MiB; those of one account may take
eight times as much. They are unpacked where `TMPDIR` says
`TREADLE_GATEWAY_PUBLIC_URL`, such as `https://treadle.example.com`: where people reach it, for notifications to say
and those of `shared.bus`.
"""

import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
from sqlalchemy.engine import URL

from services.gateway.database.engine import database_url
from shared.bus import BusSettings, bus_settings_from_environment

SECRET_MIN_CHARS = 32
PASSWORD_MIN_CHARS = 12
SECRET_MIN_DISTINCT_CHARS = 10
"""`aaaa…` is long and weak."""
IMPORT_MAX_MB = 256
IMPORT_MOST_MB = 2047
_PUBLIC_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(?:/[A-Za-z0-9._~/-]*)?")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the gateway is told at its start."""

    host: str
    port: int
    bus: BusSettings
    database: URL
    keyring_file: Path
    session_secret: str
    admin_password: str | None = None
    local_token: str | None = None
    local_repositories: bool = False
    trusted_proxies: tuple[str, ...] = ()
    public_url: str | None = None
    import_max_bytes: int = IMPORT_MAX_MB * 1024**2

    def __repr__(self) -> str:
        return f"Settings({self.host}:{self.port})"


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises ValueError or OSError, in words, for settings that are missing, weak or readable by others."""
    host = environment.get("TREADLE_GATEWAY_HOST", "127.0.0.1")
    is_loopback = ipaddress.ip_address(host).is_loopback
    token_file = environment.get("TREADLE_GATEWAY_TOKEN_FILE")
    if token_file and not is_loopback:
        raise ValueError(
            f"TREADLE_GATEWAY_TOKEN_FILE makes its reader an admin without a login: on loopback only, not on {host}"
        )
    return Settings(
        host=host,
        port=int(environment.get("TREADLE_GATEWAY_PORT", "8640")),
        bus=bus_settings_from_environment(),
        database=database_from_environment(environment),
        keyring_file=Path(_wanted(environment, "TREADLE_GATEWAY_KEYRING_FILE")),
        session_secret=_session_secret(environment, is_loopback),
        admin_password=_admin_password(environment),
        local_token=strong_secret(Path(token_file)) if token_file else None,
        local_repositories=environment.get("TREADLE_LOCAL_REPOSITORIES", "0") == "1",
        trusted_proxies=_trusted_proxies(environment),
        public_url=_public_url(environment),
        import_max_bytes=_import_max_bytes(environment),
    )


def database_from_environment(environment: Mapping[str, str] = os.environ) -> URL:
    """The database's address alone: all that a migration needs. Raises ValueError or OSError."""
    password_file = environment.get("TREADLE_DATABASE_PASSWORD_FILE")
    return database_url(_wanted(environment, "TREADLE_DATABASE_URL"), Path(password_file) if password_file else None)


def _wanted(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise ValueError(f"{name} is not set")
    return value


def _trusted_proxies(environment: Mapping[str, str]) -> tuple[str, ...]:
    written = environment.get("TREADLE_TRUSTED_PROXIES", "")
    proxies = tuple(proxy.strip() for proxy in written.split(",") if proxy.strip())
    for proxy in proxies:
        try:
            network = ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ValueError(f"TREADLE_TRUSTED_PROXIES: {error}") from error
        if network.prefixlen == 0:
            raise ValueError(f"TREADLE_TRUSTED_PROXIES: {proxy} is everybody: name your proxies")
    return proxies


def _public_url(environment: Mapping[str, str]) -> str | None:
    written = environment.get("TREADLE_GATEWAY_PUBLIC_URL", "").rstrip("/")
    if written and not _PUBLIC_URL.fullmatch(written):
        raise ValueError("TREADLE_GATEWAY_PUBLIC_URL is not an address such as https://treadle.example.com")
    return written or None


def _import_max_bytes(environment: Mapping[str, str]) -> int:
    written = environment.get("TREADLE_IMPORT_MAX_MB", str(IMPORT_MAX_MB))
    if not (written.isascii() and written.isdecimal() and 1 <= int(written[:5]) <= IMPORT_MOST_MB):
        raise ValueError(f"TREADLE_IMPORT_MAX_MB is a number of MiB from 1 to {IMPORT_MOST_MB}, not {written[:40]}")
    return int(written) * 1024**2


def _session_secret(environment: Mapping[str, str], is_loopback: bool) -> str:
    file = environment.get("TREADLE_GATEWAY_SECRET_FILE")
    if file:
        return strong_secret(Path(file))
    if is_loopback:
        return secrets.token_urlsafe(48)  # sessions end with this process; nobody else can ask on loopback
    raise ValueError("TREADLE_GATEWAY_SECRET_FILE is not set: without it anybody could make a session of their own")


def _admin_password(environment: Mapping[str, str]) -> str | None:
    file = environment.get("TREADLE_ADMIN_PASSWORD_FILE")
    if not file:
        return None
    password = Path(file).read_text().strip()
    if len(password) < PASSWORD_MIN_CHARS:
        raise ValueError(f"{file} holds no password of at least {PASSWORD_MIN_CHARS} characters")
    return password


def strong_secret(path: Path) -> str:
    """A file's secret. Raises ValueError where others may write it or read it, or where it is weak."""
    mode = path.stat().st_mode
    if mode & 0o022:
        raise ValueError(f"{path} can be written by others: run chmod 600 on it")
    if mode & 0o007:
        raise ValueError(f"{path} can be read by everybody: run chmod 600 on it")
    secret = path.read_text().strip()
    if len(secret) < SECRET_MIN_CHARS or len(set(secret)) < SECRET_MIN_DISTINCT_CHARS:
        raise ValueError(f"{path} holds no secret of at least {SECRET_MIN_CHARS} random characters")
    return secret
