"""Sealing: what only the holder of one private key can open (X25519, HKDF-SHA256, AES-256-GCM).

The construction is that of RFC 9180 (HPKE) in its base mode, in the same order, without its negotiation: a fresh key
pair for each message, both public keys and a context in the key's derivation. The context is what the message is for:
one sealed for a lease can't be passed off as another's.
"""

import base64
import binascii

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_PUBLIC_KEY_BYTES = 32
_NONCE = bytes(12)
"""Constant: each key is used for one message."""


class NotForUs(Exception):
    """It was sealed to another key or for another purpose, or it was changed on its way."""


class SealKey:
    """A process's key pair. The private half never leaves it."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self._public = self._private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"SealKey({self.public})"

    @property
    def public(self) -> str:
        """What others seal to, as text."""
        return base64.urlsafe_b64encode(self._public).decode()

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The message. Raises `NotForUs`."""
        sender, ciphertext = sealed[:_PUBLIC_KEY_BYTES], sealed[_PUBLIC_KEY_BYTES:]
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(sender))
            return AESGCM(_key(shared, sender, self._public, context)).decrypt(_NONCE, ciphertext, context)
        except (InvalidTag, ValueError) as error:
            raise NotForUs("these sealed bytes can't be opened: they are for another key or purpose") from error


def seal(to: str, message: bytes, context: bytes) -> bytes:
    """The message for the holder of the key `to`. Raises ValueError for what is no public key."""
    try:
        recipient = base64.b64decode(to.encode(), altchars=b"-_", validate=True)
        public = X25519PublicKey.from_public_bytes(recipient)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{to!r} is no public key") from error
    once = X25519PrivateKey.generate()
    sender = once.public_key().public_bytes_raw()
    key = _key(once.exchange(public), sender, recipient, context)
    return sender + AESGCM(key).encrypt(_NONCE, message, context)


def _key(shared: bytes, sender: bytes, recipient: bytes, context: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"treadle seal 1" + sender + recipient + context).derive(shared)
