"""Notices that nats-server can't store any more, and when restarting it will help.

After one failed write (a full disk, a quota) nats-server leaves the stream's writers without an answer until it is
restarted, however much space there is by then; the rest of its API answers as if nothing were wrong. What it had
acknowledged is kept. So its log is read for the failure, and the server is started again as soon as there is room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from treadle.supervision.data_dir import DataDir

_LOOK_EVERY_S = 1.0
_SIGNS = ("critical write error", "no space left on device", "disk quota exceeded", "resource limits exceeded")


async def watch_store(data_dir: DataDir, log: Path, restart: Callable[[], None], say: Callable[[str], None]) -> None:
    """Runs until it is cancelled."""
    read_to, failed = _size(log), False
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        news, read_to = _news(log, read_to)
        if any(sign in news for sign in _SIGNS) and not failed:
            failed = True
            say(data_dir.space_trouble() or f"nats-server could not store an event (its log: {log})")
        if failed and data_dir.space_trouble() is None:
            failed = False
            say("there is room on the disk again: restarting nats-server")
            restart()


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _news(log: Path, read_to: int) -> tuple[str, int]:
    """What was written to the log since `read_to`, in lower case, and where it ends now."""
    size = _size(log)
    if size < read_to:  # a new file
        read_to = 0
    if size == read_to:
        return "", size
    with log.open("rb") as file:
        file.seek(read_to)
        return file.read(size - read_to).decode("utf-8", "replace").lower(), size
