"""Whose turn it is to look back: one question of an account at a time, so that nobody's keep others' from a thread."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """Those of one gateway, whose threads are few."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By account; each is there as long as somebody waits for it."""

    async def ask(self, account: str, answer: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What takes long, in a thread, once the account's questions before it are answered."""
        lock = self._locks.get(account)
        if lock is None:
            lock = self._locks[account] = asyncio.Lock()
        async with lock:
            return await asyncio.to_thread(answer, *args, **kwargs)
