"""What is cancelled ends, also in the very turn in which it gets what it waits for."""

from __future__ import annotations

import asyncio

import pytest

from shared.waiting import mend_wait_for


@pytest.fixture(autouse=True)
def mended() -> None:
    mend_wait_for()


async def test_a_cancellation_that_comes_with_the_answer_is_not_swallowed() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(_waits(answer))
    await asyncio.sleep(0)
    answer.set_result("there")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_answer_is_given_and_a_late_one_is_a_timeout() -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    loop.call_soon(answer.set_result, "there")
    assert await asyncio.wait_for(answer, 60) == "there"
    assert await asyncio.wait_for(_at_once(), None) == "at once"
    for timeout_s in (0.01, 0):
        never: asyncio.Future[str] = loop.create_future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(never, timeout_s)
        assert never.cancelled()


async def test_a_fault_of_what_is_waited_for_comes_through() -> None:
    with pytest.raises(LookupError):
        await asyncio.wait_for(_fails(), 60)


async def _waits(answer: asyncio.Future[str]) -> str:
    return await asyncio.wait_for(answer, 60)


async def _at_once() -> str:
    return "at once"


async def _fails() -> None:
    raise LookupError
