"""How every service connects to NATS, and as whom: the same options everywhere, and they reconnect for ever.

The client libraries are loaded when something connects: whoever only reads the settings starts in half the time.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shared.waiting import mend_wait_for

if TYPE_CHECKING:
    from faststream.nats import NatsBroker
    from nats.aio.client import Client

GATEWAY, PLANNER, DISPATCHER, RUNNER = "gateway", "planner", "dispatcher", "runner"
SERVICES = (GATEWAY, PLANNER, DISPATCHER, RUNNER)
"""Each is a user of its own; `shared.nats_permissions` says what it may do."""
OPERATOR = "operator"
"""May do everything: for the supervisor and for people with the `nats` program. No service uses it."""
READER = "reader"
"""May read the log and say nothing in it: for who looks back, such as `treadle replay --verify --all`."""
USERS = (*SERVICES, READER, OPERATOR)
LOG_KEY_MIN_CHARS = 32
_DENIED = "permissions violation"


class BusSettings(msgspec.Struct, frozen=True):
    """Where NATS is and who we are there. The user also says where we hear answers (`shared.nats_permissions`)."""

    url: str
    user: str | None = None
    password: str | None = None
    log_key: bytes | None = None
    """What makes the codes of those events that only gateway, planner and dispatcher may write (`shared.authentic`)."""

    def __repr__(self) -> str:
        return f"BusSettings({self.url}, {self.user})"


def bus_settings_from_environment() -> BusSettings:
    """Reads `TREADLE_NATS_URL`, `TREADLE_NATS_USER`, `TREADLE_NATS_PASSWORD_FILE` and `TREADLE_LOG_KEY_FILE`.

    What is secret comes from files, so that no environment and no argument list shows it. Raises OSError, and
    ValueError for a key that is too short.
    """
    password_file = os.environ.get("TREADLE_NATS_PASSWORD_FILE")
    key_file = os.environ.get("TREADLE_LOG_KEY_FILE")
    return BusSettings(
        url=os.environ.get("TREADLE_NATS_URL", "nats://127.0.0.1:4222"),
        user=os.environ.get("TREADLE_NATS_USER"),
        password=Path(password_file).read_text().strip() if password_file else None,
        log_key=_log_key(Path(key_file)) if key_file else None,
    )


def _log_key(path: Path) -> bytes:
    key = path.read_bytes().strip()
    if len(key) < LOG_KEY_MIN_CHARS:
        raise ValueError(f"{path} holds no key of at least {LOG_KEY_MIN_CHARS} random characters")
    return key


def inbox_prefix(user: str | None) -> str:
    """Where a user hears answers. Users that are not ours, on a server that was given, keep NATS's own."""
    return f"_INBOX_{user}" if user in USERS else "_INBOX"


def make_broker(settings: BusSettings, name: str) -> "NatsBroker":
    """FastStream's broker, not yet connected. Streams are declared by `shared.streams` alone."""
    from faststream.nats import NatsBroker
    from faststream.security import SASLPlaintext

    options = _options(settings, name)
    if settings.user is None:
        return NatsBroker(settings.url, **_LOGGING, **options)
    security = SASLPlaintext(username=settings.user, password=settings.password or "")
    return NatsBroker(settings.url, **_LOGGING, security=security, **options)


_LOGGING: dict[str, Any] = {"logger": logging.getLogger("treadle.bus"), "log_level": logging.DEBUG}
"""A handler's exception is logged as an error; that a message came is not worth a line."""


async def connect(settings: BusSettings, name: str) -> "Client":
    """A bare client with the same options. Waits a few seconds for a server that is just starting."""
    import nats

    return await nats.connect(settings.url, user=settings.user, password=settings.password, **_options(settings, name))


_log = logging.getLogger("treadle.bus")


async def _on_error(error: Exception) -> None:
    """nats-py prints a traceback for each of ten tries a second otherwise; the two lines below say enough."""
    if _DENIED in str(error).lower():
        _log.error("NATS denies what this service does (see shared/nats_permissions.py): %s", error)
    else:
        _log.debug("NATS: %r", error)


async def _on_disconnected() -> None:
    _log.warning("the connection to NATS is lost; trying again")


async def _on_reconnected() -> None:
    _log.info("connected to NATS again")


def _options(settings: BusSettings, name: str) -> dict[str, Any]:
    mend_wait_for()  # before anybody awaits an answer
    # A client tries again ten times a second: the default of two seconds is most of the time that a restart takes.
    return {
        "name": name,
        "inbox_prefix": inbox_prefix(settings.user),
        "error_cb": _on_error,
        "disconnected_cb": _on_disconnected,
        "reconnected_cb": _on_reconnected,
        "allow_reconnect": True,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": 2,
        "ping_interval": 10,
        "max_outstanding_pings": 2,
        "pending_size": 64 * 1024 * 1024,
    }
