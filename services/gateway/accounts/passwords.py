"""Passwords: argon2id, worked out off the event loop and by few at a time, since each takes much memory."""

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

CHARS_MIN = 12
CHARS_MAX = 256
AT_ONCE = 2
"""Each takes 64 MiB: many logins at once must not take the machine's memory."""

NewPassword = Annotated[str, msgspec.Meta(min_length=CHARS_MIN, max_length=CHARS_MAX)]
"""What a password must be."""
GivenPassword = Annotated[str, msgspec.Meta(max_length=CHARS_MAX)]
"""What somebody says their password is."""


class Checked(msgspec.Struct, frozen=True):
    """Whether a password was the right one."""

    is_right: bool
    new_hash: str | None = None
    """To be stored instead: the old one was made with weaker parameters than today's."""


class Passwords:
    """Hashes and checks with argon2id and the library's present parameters (RFC 9106, low memory)."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="argon2")
        self._nobodys = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        """What to store."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hasher.hash, password)

    async def check(self, stored: str | None, password: str) -> Checked:
        """Takes as long where there is no such account (`stored` is None) as where the password is wrong."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._check, stored, password)

    def _check(self, stored: str | None, password: str) -> Checked:
        try:
            self._hasher.verify(stored or self._nobodys, password)
        except (VerificationError, InvalidHashError):
            return Checked(False)
        if stored is None:
            return Checked(False)
        return Checked(True, self._hasher.hash(password) if self._hasher.check_needs_rehash(stored) else None)

    def close(self) -> None:
        """Waits for what is being worked out."""
        self._threads.shutdown()
