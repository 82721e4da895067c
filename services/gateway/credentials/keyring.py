"""The keys that secrets are encrypted with, in a file that every gateway can read.

    {"current": "k2", "keys": {"k1": "<base64 of 32 bytes>", "k2": "…"}}

New secrets get the current key; the others open what is older. The file may be replaced while gateways run: they look
at it again whenever it has changed, and when they meet a key that they don't know. A key may leave the file once no
credential is encrypted with it any more (`GET /api/keys`), and a day has passed (answers to idempotent requests).
"""

import base64
import binascii
import logging
import os
import re
import secrets
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

log = logging.getLogger("treadle.gateway.credentials")

KEY_BYTES = 32
NONCE_BYTES = 12
KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
ANSWER = "answer"
"""The kind of what `encrypt_answer` encrypts."""
_FILE_MAX_BYTES = 1024 * 1024


class CredentialUnreadable(Exception):
    """A secret was encrypted with a key that is gone, belongs to another holder, or was tampered with."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: str
    keys: dict[str, str]

    def __repr__(self) -> str:
        return "_File(…)"


class _Ring(msgspec.Struct, frozen=True):
    """What a file held, and which state of the file that was."""

    current: str
    keys: dict[str, AESGCM]
    stamp: tuple[int, ...]


class Keyring:
    """Encrypts and decrypts secrets, each bound to its holder: another holder's can't be put in its place."""

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises OSError or ValueError, in words, for one that can't be used."""
        self._path = path
        self._ring = _read(path)
        self._rejected: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"Keyring({self._path})"

    @property
    def current(self) -> str:
        """Id of the key that new secrets are encrypted with."""
        return self._up_to_date().current

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of all keys in the file, sorted."""
        return tuple(sorted(self._up_to_date().keys))

    def reload(self) -> None:
        """Reads the file again. Raises OSError or ValueError; the keys read before then stay in use."""
        self._ring = _read(self._path)
        self._rejected = None

    def encrypt(self, kind: str, holder_id: str, plaintext: bytes) -> tuple[str, bytes]:
        """The id of the key, and nonce with ciphertext (AES-256-GCM)."""
        ring = self._up_to_date()
        nonce = secrets.token_bytes(NONCE_BYTES)
        bound = _bound_to(ring.current, kind, holder_id)
        return ring.current, nonce + ring.keys[ring.current].encrypt(nonce, plaintext, bound)

    def decrypt(self, kind: str, holder_id: str, key_id: str, sealed: bytes) -> bytes:
        """What was encrypted for that holder. Raises `CredentialUnreadable`."""
        ring = self._up_to_date()
        if key_id not in ring.keys:
            ring = self._up_to_date(key_id)
        key = ring.keys.get(key_id)
        if key is None:
            raise CredentialUnreadable(
                f"the {kind} secret of {holder_id} is encrypted with key {key_id!r}, which the gateway's keyring does "
                "not hold: put that key back into its file, or set the secret anew"
            )
        try:
            return key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(key_id, kind, holder_id))
        except (InvalidTag, ValueError) as error:
            raise CredentialUnreadable(
                f"the {kind} secret of {holder_id} can't be opened with key {key_id!r}: it was changed or belongs to "
                "something else; set it anew"
            ) from error

    def encrypt_answer(self, holder_id: str, plaintext: bytes) -> bytes:
        """Like `encrypt`, with the key's id in front, for a column of its own."""
        key_id, sealed = self.encrypt(ANSWER, holder_id, plaintext)
        return key_id.encode() + b":" + sealed

    def decrypt_answer(self, holder_id: str, stored: bytes) -> bytes:
        """What `encrypt_answer` encrypted. Raises `CredentialUnreadable`."""
        key_id, _, sealed = stored.partition(b":")
        return self.decrypt(ANSWER, holder_id, key_id.decode(errors="replace"), sealed)

    def _up_to_date(self, wanted: str | None = None) -> _Ring:
        """The keys of the file as it is now; those of before while it can't be used, since secrets must stay open."""
        try:
            stamp = _stamp(self._path.stat())
            if stamp == self._ring.stamp and (wanted is None or wanted in self._ring.keys):
                return self._ring
            if stamp != self._rejected:
                self._ring = _read(self._path)
        except (OSError, ValueError) as error:
            log.error("the keyring can't be read again, the keys of before stay in use: %s", error)
            self._rejected = _stamp_or_none(self._path)
        return self._ring


def _read(path: Path) -> _Ring:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o022:
            raise ValueError(f"{path} can be written by others: run chmod 600 on it")
        if status.st_mode & 0o007:
            raise ValueError(f"{path} can be read by everybody: run chmod 600 on it")
        text = file.read(_FILE_MAX_BYTES)
    try:
        written = msgspec.json.decode(text, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Without its cause, which could show a part of a key.
        raise ValueError(
            f'{path} is no keyring: it wants {{"current": id, "keys": {{id: base64 of 32 bytes}}}}'
        ) from None
    if written.current not in written.keys:
        raise ValueError(f"{path} names {written.current!r} as its current key, but holds no such key")
    keys = {key_id: _key(path, key_id, encoded) for key_id, encoded in written.keys.items()}
    return _Ring(written.current, keys, _stamp(status))


def _key(path: Path, key_id: str, encoded: str) -> AESGCM:
    if not KEY_ID.fullmatch(key_id):
        raise ValueError(f"{path} has a key of the id {key_id!r}: up to 32 letters, digits, '-', '_' and '.'")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"key {key_id!r} in {path} is not base64") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"key {key_id!r} in {path} has {len(key)} bytes, not {KEY_BYTES}")
    return AESGCM(key)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode


def _stamp_or_none(path: Path) -> tuple[int, ...] | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _bound_to(key_id: str, kind: str, holder_id: str) -> bytes:
    """The associated data. A JSON list, since ids joined by any character could be split at another place."""
    return msgspec.json.encode(["treadle credential 1", key_id, kind, holder_id])
