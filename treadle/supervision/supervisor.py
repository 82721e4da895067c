"""Keeps a list of child processes running, and ends them in order.

    start(group) ──► running ──dies──► pause (0.1 s, doubled up to 5 s) ──► running
                                         └─ hopeless (below) ──► ChildFailed, raised by `during`
    stop() ──► SIGTERM, last group first ──deadline──► SIGKILL

A child is hopeless when it ends with EX_CONFIG three times in a row, or, before `settled`, five times with any status.
A life of ten seconds clears its record. Everything runs on the main thread: the kernel ends a child together with the
*thread* that started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from treadle.supervision.log_files import last_useful_line, open_log
from treadle.supervision.private_files import write_private
from treadle.supervision.processes import born_at, die_with_parent
from treadle.supervision.suite_error import SuiteError

T = TypeVar("T")

_PAUSE_MIN_S = 0.1
_PAUSE_MAX_S = 5.0
_LIVED_WELL_S = 10.0
_PROMISING_S = 2.0
_HOPELESS_DEATHS_AT_START = 5
_HOPELESS_CONFIGURATION_ERRORS = 3
_KILL_AGAIN_S = 0.2


class ChildFailed(SuiteError):
    """A child that can't be kept running; the message ends with the line of its log that says why."""


@dataclass(frozen=True)
class Child:
    """One program to keep running. `stdin` is written to each of its lives, then closed."""

    name: str
    argv: Sequence[str]
    env: dict[str, str] = field(repr=False)
    log: Path
    cwd: Path
    stdin: bytes = field(default=b"", repr=False)
    stop_after_s: float = 5.0
    # From the log and the byte at which the life that ended began in it.
    explain: Callable[[Path, int], str] = last_useful_line


class _Kept:
    """A child, the process that it is at the moment, and the task that starts it again."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.process: asyncio.subprocess.Process | None = None
        self.keeper: asyncio.Task[Any]  # set by `start` and `run_once`
        self.stopping = asyncio.Event()
        self.deaths = 0
        self.born_s = 0.0

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Supervisor:
    def __init__(self, children_file: Path, say: Callable[[str], None]) -> None:
        """`children_file` records what runs, for the next supervisor; `say` hears what happens, one line at a time."""
        self._children_file = children_file
        self._say = say
        self._groups: list[list[_Kept]] = []
        self._settled = False
        self._hurry = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, group: Sequence[Child]) -> None:
        """Starts children, and starts each again whenever it dies. Groups are stopped in the reverse order."""
        self._groups.append([_Kept(child) for child in group])
        for one in self._groups[-1]:
            one.keeper = asyncio.create_task(self._keep(one))
            one.keeper.add_done_callback(self._keeper_ended)

    async def run_once(self, child: Child) -> None:
        """Runs a child to its end. Raises ChildFailed, with its words, for one that ends with another status than 0."""
        one = _Kept(child)
        self._groups.append([one])
        life = asyncio.create_task(self._live(one))
        one.keeper = life
        await asyncio.wait({life})  # cancelling us leaves it to `stop`
        status, why = life.result()
        self._groups.remove([one])
        if status != 0:
            raise ChildFailed(f"{_end_in_words(child, status, why)} (its log: {child.log})")

    def troubled(self) -> bool:
        """True while a child that has died may be about to die again."""
        now_s = asyncio.get_running_loop().time()
        return any(one.deaths and now_s - one.born_s < _PROMISING_S for one in self._all())

    def settled(self) -> None:
        """From now on a child that dies is started again for ever, unless its configuration is wrong."""
        self._settled = True

    def restart(self, name: str) -> None:
        """Ends the named child politely; its next life follows."""
        for one in self._all():
            if one.child.name == name:
                one.signal(signal.SIGTERM)

    async def during(self, work: Awaitable[T]) -> T:
        """What `work` returns. Raises ChildFailed, and cancels it, when a child turns out to be hopeless."""
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        first: list[asyncio.Future[T] | asyncio.Future[None]] = [task, self._failure]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
            return await task
        finally:
            task.cancel()

    async def stop(self) -> None:
        """Ends all children, the last group first, each group together."""
        for group in reversed(self._groups):
            await asyncio.gather(*(self._end(one) for one in group))
        self._record()
        self._failure.cancel()

    def hurry(self) -> None:
        """Makes `stop` kill at once what has not ended yet."""
        self._hurry.set()

    def _all(self) -> Iterator[_Kept]:
        return (one for group in self._groups for one in group)

    async def _keep(self, one: _Kept) -> None:
        clock = asyncio.get_running_loop().time
        pause_s, configuration_errors = _PAUSE_MIN_S, 0
        while not one.stopping.is_set():
            one.born_s = clock()
            status, why = await self._live(one)
            if one.stopping.is_set():
                return
            if clock() - one.born_s >= _LIVED_WELL_S:
                pause_s, one.deaths, configuration_errors = _PAUSE_MIN_S, 0, 0
            one.deaths += 1
            configuration_errors = configuration_errors + 1 if status == os.EX_CONFIG else 0
            message = _end_in_words(one.child, status, why)
            hopeless = configuration_errors >= _HOPELESS_CONFIGURATION_ERRORS
            if hopeless or (not self._settled and one.deaths >= _HOPELESS_DEATHS_AT_START):
                raise ChildFailed(f"{message} (its log: {one.child.log})")
            self._say(f"{message}; starting it again in {pause_s:g} s")
            await _set_within(one.stopping, pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _live(self, one: _Kept) -> tuple[int, str]:
        """One life of a child: its exit status and the line of its log that explains it."""
        child = one.child
        try:
            with open_log(child.log) as log:
                began = log.seek(0, os.SEEK_END)
                one.process = await asyncio.create_subprocess_exec(
                    *child.argv,
                    env=child.env,
                    cwd=child.cwd,
                    stdin=asyncio.subprocess.PIPE if child.stdin else asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C on our terminal is for us, who stop the children in order.
                    start_new_session=True,
                    preexec_fn=die_with_parent(),
                )
        except OSError as error:
            return os.EX_OSERR, f"it can't be started: {error}"
        if one.stopping.is_set():
            one.signal(signal.SIGTERM)
        self._record()
        await one.process.communicate(child.stdin or None)
        status = await one.process.wait()
        self._record()
        return status, child.explain(child.log, began)

    async def _end(self, one: _Kept) -> None:
        one.stopping.set()
        one.signal(signal.SIGTERM)
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({one.keeper, hurry}, timeout=one.child.stop_after_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not one.keeper.done():
            self._say(f"{one.child.name} has not stopped: killed")
        while not one.keeper.done():
            one.signal(signal.SIGKILL)
            await asyncio.wait({one.keeper}, timeout=_KILL_AGAIN_S)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _record(self) -> None:
        running = [one.process.pid for one in self._all() if one.process and one.process.returncode is None]
        births = {str(pid): born for pid in running if (born := born_at(pid)) is not None}
        try:
            write_private(self._children_file, json.dumps(births))
        except OSError as error:
            # Only a supervisor that is itself killed leaves a use for this record; a full disk must not stop ours.
            self._say(f"the list of running processes could not be stored: {error}")


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


def _end_in_words(child: Child, status: int, why: str) -> str:
    how = f"exit status {status}" if status >= 0 else f"signal {-status} ({signal.strsignal(-status)})"
    return f"{child.name} ended with {how}" + (f": {why}" if why else "")
