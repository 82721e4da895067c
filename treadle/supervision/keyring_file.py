"""The gateway's keyring on this machine: the first key, and a new one where that is asked for.

What the file means is said in `services.gateway.credentials.keyring`, which reads it; only this module writes it.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Set
from pathlib import Path

import msgspec

from treadle.supervision.private_files import write_private
from treadle.supervision.suite_error import SuiteError

_KEY_BYTES = 32
_NUMBERED = re.compile(r"k([0-9]{1,9})")


class Keyring(msgspec.Struct, frozen=True):
    """`keys` by their ids, in base64; what is encrypted anew gets the `current` one."""

    current: str
    keys: dict[str, str]

    def __repr__(self) -> str:
        return "Keyring(…)"


def make_keyring(path: Path) -> None:
    """Writes a keyring of one key where there is none."""
    if not path.exists():
        _write(path, Keyring("k1", {"k1": _new_key()}))


def read_keyring(path: Path) -> Keyring:
    """Raises SuiteError, which shows nothing of a key, and OSError."""
    try:
        ring = msgspec.json.decode(path.read_bytes(), type=Keyring)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise SuiteError(f"{path} is no keyring: put back the file as it was, its keys are nowhere else") from None
    if ring.current not in ring.keys:
        raise SuiteError(f"{path} names {ring.current!r} as its current key, but holds no such key")
    return ring


def add_key(path: Path, unused: Set[str]) -> str:
    """Adds a key and makes it the current one; drops those of `unused`, with which nothing is encrypted.

    The key that was the current one stays in any case. Returns the new key's id. Raises SuiteError and OSError.
    """
    ring = read_keyring(path)
    numbers = [int(match[1]) for key in ring.keys if (match := _NUMBERED.fullmatch(key))]
    made = f"k{max(numbers, default=0) + 1}"
    kept = {key: value for key, value in ring.keys.items() if key == ring.current or key not in unused}
    _write(path, Keyring(made, {**kept, made: _new_key()}))
    return made


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def _write(path: Path, ring: Keyring) -> None:
    write_private(path, msgspec.json.encode(ring).decode())
