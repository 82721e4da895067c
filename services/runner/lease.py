"""A lease: what this runner holds right now, and what it leaves behind if it is killed.

The journal lists the deliveries in a life's hands, one small file each, from their arrival on: also the one that has no
lease yet. A runner that comes back under the same name finds there what its former life had taken and hands it back at
once, instead of after the server's `ack_wait`.
"""

import asyncio
from pathlib import Path

import msgspec
from nats.aio.msg import Msg

from services.runner.credentials import LeaseCredentials
from shared.clock import new_id
from shared.events import Result, TaskDispatched, Usage


class Key(msgspec.Struct, frozen=True):
    """Names a lease."""

    plan: str
    task: str
    lease: int


class Lease:
    """One attempt in our hands."""

    def __init__(
        self,
        key: Key,
        seq: int,
        dispatch: TaskDispatched,
        delivery: Msg,
        correlation: str,
        credentials: LeaseCredentials,
    ) -> None:
        self.key = key
        self.seq = seq
        """Sequence of the task's newest event as far as we know: ours."""
        self.dispatch = dispatch
        self.delivery = delivery
        """The newest delivery of the message: what is acknowledged in the end."""
        self.correlation = correlation
        self.credentials = credentials
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


class Taken(msgspec.Struct, frozen=True):
    """A delivery: which dispatch of which task."""

    plan: str
    task: str
    dispatch: int


class Journal:
    """The deliveries in this runner's hands, on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, taken: Taken) -> Path:
        """Notes a delivery before anything comes of it; returns the note."""
        path = self._directory / f"{new_id()}.json"
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(taken))
        partial.replace(path)
        return path

    def remove(self, note: Path) -> None:
        """Forgets a delivery that was dealt with."""
        note.unlink(missing_ok=True)

    def left_behind(self) -> dict[Path, Taken]:
        """The notes of a former life: what it had in its hands when it ended."""
        found: dict[Path, Taken] = {}
        for path in self._directory.glob("*.json"):
            try:
                found[path] = msgspec.json.decode(path.read_bytes(), type=Taken)
            except msgspec.DecodeError:
                # Torn by a power cut: the server redelivers after `ack_wait` what it spoke of.
                path.unlink()
        return found
