"""Takes the listening sockets that a process inside a sandbox hands over, and has them served.

A sandbox has a network namespace of its own, so the runner can't listen there; but a socket that was made inside stays
inside wherever it is served from. `sandbox_enter` makes them and sends them through a Unix socket that is bound into
the sandbox. Each start has such a socket of its own, which takes one caller and is closed then: `sandbox_enter`
calls before the agent's first instruction, so an agent never reaches the runner this way. (It could do harm otherwise:
merely closing a socket that a hostile process sends can hold the closing thread up for hours, by SO_LINGER.)
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from services.runner.sandbox_enter import ADDRESS, TAKEN

Serve = Callable[[socket.socket], Awaitable[None]]
"""Serves a listening socket until it is cancelled."""

SPEAKS_WITHIN_S = 10.0
_SOCKETS_MAX = 4
_PEER = struct.Struct("3i")

_log = logging.getLogger(__name__)


class HandOver:
    """`async with HandOver(directory) as hand_over:` serves until the block ends."""

    def __init__(self, directory: Path) -> None:
        """The directory must be out of the agent's reach."""
        self._directory = directory
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> HandOver:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def expect(self, served: Mapping[int, Serve]) -> Path:
        """Announces one start, and who serves which of its ports; returns the Unix socket to be bound for it."""
        path = self._directory / str(next(self._numbers))
        task = asyncio.create_task(self._take(_bound(path), path, served))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return path

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("the network of a process in a sandbox broke off", exc_info=error)

    async def _take(self, listening: socket.socket, path: Path, served: Mapping[int, Serve]) -> None:
        """One start: what it hands over is served until its process has ended."""
        with contextlib.ExitStack() as held:
            held.callback(listening.close)
            held.callback(path.unlink, missing_ok=True)
            caller, _ = await asyncio.get_running_loop().sock_accept(listening)
            held.callback(caller.close)
            listening.close()
            async with asyncio.timeout(SPEAKS_WITHIN_S):
                await _readable(caller)
            sockets = _received(caller, held)
            if [made.getsockname() for made in sockets] != [(ADDRESS, port) for port in served]:
                raise OSError("what a sandbox handed over is not what was expected of it")
            pid, _, _ = _PEER.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            try:
                process = os.pidfd_open(pid)
                held.callback(os.close, process)
                caller.send(TAKEN)
            except (ProcessLookupError, BrokenPipeError):
                return  # it was ended meanwhile
            caller.close()
            await _until_gone(process, list(zip(served.values(), sockets, strict=True)))


async def _until_gone(process: int, serving: list[tuple[Serve, socket.socket]]) -> None:
    """Serves until the process has ended. Raises what one of those who serve raises."""
    tasks = [asyncio.ensure_future(serve(made)) for serve, made in serving]
    gone = asyncio.ensure_future(_readable(process))
    try:
        done, _ = await asyncio.wait((gone, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (gone, *tasks):
            task.cancel()
        await asyncio.gather(gone, *tasks, return_exceptions=True)


def _bound(path: Path) -> socket.socket:
    """Listens at a path of any length: an address of a Unix socket has room for hardly more than 100 bytes."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        path.unlink(missing_ok=True)
        listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        listening.listen(1)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    finally:
        os.close(directory)
    return listening


async def _readable(source: socket.socket | int) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(source, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(source)


def _received(caller: socket.socket, held: contextlib.ExitStack) -> list[socket.socket]:
    """The sockets that a caller sends; they are closed with `held`."""
    descriptors = array.array("i")
    room = socket.CMSG_LEN(_SOCKETS_MAX * descriptors.itemsize)
    _, extras, _, _ = caller.recvmsg(1, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in extras:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for made in sockets:
        held.callback(made.close)
        made.setblocking(False)
    return sockets
