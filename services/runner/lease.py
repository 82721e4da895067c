"""A lease: what this runner holds right now, and what it leaves behind if it is killed.

The journal lists the leases of a life, one small file each. A runner that comes back under the same name finds there
what its former life held and hands it back at once, instead of after the server's `ack_wait`.
"""

import asyncio
from pathlib import Path

import msgspec
from nats.aio.msg import Msg

from shared.events import Result, TaskDispatched, Usage


class Key(msgspec.Struct, frozen=True):
    """Names a lease."""

    plan: str
    task: str
    lease: int


class Lease:
    """One attempt in our hands."""

    def __init__(self, key: Key, seq: int, dispatch: TaskDispatched, delivery: Msg, correlation: str) -> None:
        self.key = key
        self.seq = seq
        """Sequence of the task's newest event as far as we know: ours."""
        self.dispatch = dispatch
        self.delivery = delivery
        """The newest delivery of the message: what is acknowledged in the end."""
        self.correlation = correlation
        self.work: asyncio.Task[None] | None = None
        self.stale = False
        """The log says that the lease is over: kill, and send nothing."""
        self.cancelling = False
        """Somebody asked the task to stop."""
        self._interrupted = False

    def interrupt(self) -> None:
        """Ends the work: stale, cancelled, or else because the runner stops. A second call changes nothing."""
        if self.work is not None and not self._interrupted:
            self._interrupted = True  # cancelling twice would cut off the killing of the agent's processes
            self.work.cancel()


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt succeeded: its commit is stored under the lease's ref."""

    base_commit: str
    commit: str
    result: Result
    usage: Usage = Usage()


class Journal:
    """The leases of this runner, on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, key: Key) -> None:
        """Notes a lease before its work begins."""
        path = self._path(key)
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(key))
        partial.replace(path)

    def remove(self, key: Key) -> None:
        """Forgets a lease that has ended."""
        self._path(key).unlink(missing_ok=True)

    def left_behind(self) -> list[Key]:
        """What a former life held when it ended."""
        return [msgspec.json.decode(path.read_bytes(), type=Key) for path in sorted(self._directory.glob("*.json"))]

    def _path(self, key: Key) -> Path:
        return self._directory / f"{key.plan}.{key.task}.{key.lease}.json"
