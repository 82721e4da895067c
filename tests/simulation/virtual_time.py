"""An event loop whose clock jumps: waiting takes no time, and the same program always runs in the same order."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Nothing but the clock can end a wait here, so a wait only moves the clock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the simulated world stands still: everybody waits for somebody else")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class _InPlace(ThreadPoolExecutor):
    """Does at once what would be given to a thread: no thread of ours knows of the jumping clock."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to whoever asked for it
            done.set_exception(error)
        return done


class VirtualLoop(asyncio.SelectorEventLoop):
    """`loop.time()` begins at 0 and jumps to the next thing that is to happen."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self.set_default_executor(_InPlace())
        # Timers are compared with this resolution; ours are exact.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now_s

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing: there is no thread, and to wait for one would stop the world."""


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, without the waiting."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
