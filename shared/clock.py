"""Time and identifiers: the shells call these and hand the values to the deciders, which never call them."""

import secrets
from base64 import b32encode
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Gives the present as an aware UTC time."""


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def new_plan_id() -> str:
    """`p` and 60 random bits: a subject token and a ref component that nobody guesses."""
    return "p" + b32encode(secrets.token_bytes(8)).decode().lower()[:12]


def new_id() -> str:
    """A random id for a command, a taking of a message or a request: 96 bits in hex."""
    return secrets.token_hex(12)
