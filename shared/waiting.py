"""Waiting that can be cancelled for certain, on every Python that we run on."""

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def mend_wait_for() -> None:
    """Replaces `asyncio.wait_for` of Python 3.11, which swallows a cancellation that comes in one turn with the answer.

    nats-py awaits all answers with it. Work that was cancelled just then went on, and whoever waited for its end hung:
    a gateway that was told to stop while it read. Python 3.12 has it right (CPython issue 86296); a second call, or one
    there, changes nothing.
    """
    if sys.version_info < (3, 12):
        asyncio.wait_for = _wait_for  # type: ignore[assignment]  # generators, which it takes too, were coroutines once


async def _wait_for(fut: Awaitable[T], timeout: float | None) -> T:
    async with asyncio.timeout(timeout):
        return await fut
