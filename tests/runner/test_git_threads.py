"""A remote that hangs holds up its own task only, and its git dies with that task."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.runner.failed import Failed
from services.runner.git import GitFailed, run_git
from services.runner.git_faults import in_git
from services.runner.git_threads import git_threads


@pytest.fixture
def hanging_remote() -> Iterator[int]:
    """Accepts connections and never says a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.close()
    for connection in held:
        connection.close()


async def test_cancelled_git_is_killed_and_its_thread_is_free_again(hanging_remote: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{hanging_remote}/repo.git"
    began = threading.Event()

    def work() -> None:
        began.set()
        run_git("-c", "protocol.http.allow=always", "ls-remote", url, doing="asking", as_operator=True,
                env={"GIT_ALLOW_PROTOCOL": "http"})  # fmt: skip

    asking = asyncio.create_task(in_git(work, "unavailable", git_threads()))
    async with asyncio.timeout(60):
        while not _children():  # noqa: ASYNC110 - see below
            await asyncio.sleep(0.01)  # a process says nothing when it begins
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert began.is_set()
    assert _children() == []


async def test_a_time_limit_ends_waiting_for_git_too(hanging_remote: int) -> None:
    url = f"http://127.0.0.1:{hanging_remote}/repo.git"

    def work() -> None:
        run_git("ls-remote", url, doing="asking", as_operator=True, env={"GIT_ALLOW_PROTOCOL": "http"})

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await in_git(work, "unavailable", git_threads())
    assert _children() == []


async def test_what_git_refuses_reaches_the_log_in_words() -> None:
    def work() -> None:
        raise GitFailed("fetching from x: no such host")

    with pytest.raises(Failed, match=r"^Fetching from x: no such host\.$"):
        await in_git(work, "unavailable", git_threads())


def _children() -> list[str]:
    names = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
            if process.status() != psutil.STATUS_ZOMBIE:
                names.append(process.name())
    return [name for name in names if name.startswith("git")]
