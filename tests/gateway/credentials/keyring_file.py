"""Keyring files as an operator writes them."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path


def key(key_id: str) -> str:
    """The same key for the same id, so that a file may be written in steps."""
    return base64.b64encode(hashlib.sha256(key_id.encode()).digest()).decode()


def write_keyring(path: Path, current: str, *others: str) -> None:
    """In place of the file that was there, as one step."""
    written = path.with_suffix(".new")
    written.touch(mode=0o600)
    written.write_text(json.dumps({"current": current, "keys": {id_: key(id_) for id_ in (current, *others)}}))
    written.replace(path)


def rotate(path: Path, new: str) -> None:
    """Adds a key and makes it the current one; the others stay."""
    ring = json.loads(path.read_text())
    ring["keys"][new] = key(new)
    written = path.with_suffix(".new")
    written.touch(mode=0o600)
    written.write_text(json.dumps({**ring, "current": new}))
    written.replace(path)
