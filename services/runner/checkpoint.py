"""What a lease leaves to the next one: how far it came, and its agent's conversation. Fenced by the lease.

It is kept in the stream `TREADLE_SESSIONS`. A task's checkpoint is the newest message on its subject; the entries of a
conversation are the messages on the subjects of the leases that had part in it.

The fence is the one of the log: every message is stored on the condition that the task's newest one is that which its
writer saw. A new lease *claims* the checkpoint first, that is, it writes one with its own number; from then on whatever
its predecessor still tries to store is refused, so the predecessor's conversation is complete and does not change any
more. Who may claim is not decided here: the number of a lease comes from the log.

An outage of NATS holds up no agent: what can't be stored waits here, up to `WAITING_MAX_BYTES` a lease, and those who
store wait for `APPEND_PATIENCE_S` at most. Past that size nothing more of the conversation is stored, so that what is
there stays its true beginning.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import msgspec
from nats.aio.client import Client

from services.runner.agents.leaves import storable
from services.runner.lease import Key
from services.runner.stored_session import Incomplete, Overtaken, Segment, StoredSession
from shared.events import TaskStarted, Usage
from shared.jetstream import JetStreamStore
from shared.subjects import checkpoint as checkpoint_subject
from shared.transact import patiently

log = logging.getLogger("treadle.runner")

WAITING_MAX_BYTES = 32 * 1024 * 1024
APPEND_PATIENCE_S = 2.0
CLAIM_TRIES_MAX = 16
"""How often a predecessor that lives on may get in between; it stops at the first claim that is stored."""


class Fenced(Exception):
    """A newer lease has taken over: nothing of this one is stored any more."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far an attempt came."""

    attempt: int
    lease: int
    """Who may store now."""
    session_id: str
    segments: tuple[Segment, ...] = ()
    """The conversation before this lease."""
    base: str = ""
    """The commit that the work rests on."""
    head: str = ""
    """The agent's own HEAD, when the files were saved."""
    wip: str = ""
    """The commit that holds its files; empty: none were saved."""
    usage: Usage = Usage()
    """Of this lease alone."""
    verify_round: int = 0


class Checkpoints:
    """The way to what leases left."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._store = JetStreamStore(nc)

    async def open(self, key: Key, resumes: int, attempt: int) -> LeaseMemory:
        """Claims the checkpoint for a new lease. Waits out any outage. Raises `Fenced`.

        `resumes` is the lease to go on with, as `started` names it. Where that never came to claim anything, what
        its own predecessor left is still good.
        """
        for _ in range(CLAIM_TRIES_MAX):
            session = StoredSession(self._nc, key.plan, key.task)
            await session.look()
            found = await self._newest(session, key)
            if found is not None and found.lease > key.lease:
                raise Fenced(f"lease {found.lease} has taken over from {key.lease}")
            former, why_afresh, begun = await self._former(session, key, found, resumes)
            claimed = _claim(key.lease, attempt, former)
            try:
                await session.write(checkpoint_subject(key.plan, key.task), msgspec.json.encode(claimed))
            except Overtaken:
                continue
            return LeaseMemory(session, key, claimed, former, why_afresh, resumes=begun)
        raise Fenced(f"somebody else goes on storing what lease {key.lease} claims")

    async def reopen(self, key: Key) -> LeaseMemory | None:
        """For what a former life of this runner has left: its lease's own memory. None where it has claimed none."""
        session = StoredSession(self._nc, key.plan, key.task)
        await session.look()
        found = await self._newest(session, key)
        if found is None or found.lease != key.lease:
            return None
        return LeaseMemory(session, key, found, None, "", resumes=False)

    async def usage_of(self, key: Key) -> Usage | None:
        """What a lease that was lost had consumed when it last told; None: nobody knows."""
        found = await self._newest(StoredSession(self._nc, key.plan, key.task), key)
        if found is None or found.lease > key.lease:
            return None
        # One that has not even claimed its memory never came to its agent.
        return found.usage if found.lease == key.lease else Usage()

    async def _newest(self, session: StoredSession, key: Key) -> Checkpoint | None:
        stored = await session.last(checkpoint_subject(key.plan, key.task))
        if stored is None:
            return None
        try:
            return msgspec.json.decode(stored.body, type=Checkpoint)
        except msgspec.DecodeError as error:
            log.warning("%s: the checkpoint can't be read, it starts afresh: %s", key, error)
            return None

    async def _former(
        self, session: StoredSession, key: Key, found: Checkpoint | None, resumes: int
    ) -> tuple[Checkpoint | None, str, bool]:
        """What to go on with, or why with nothing; and whether there is a conversation."""
        if not resumes:
            return None, "", False
        if found is None:
            return None, f"nothing is stored any more of what lease {resumes} left", False
        if found.lease != resumes and found.lease not in await self._before(key, resumes):
            return None, f"lease {resumes} left nothing", False
        segments = found.segments
        if messages := await session.messages_of(found.lease):
            segments = (*segments, Segment(found.lease, messages))
        try:
            entries = await session.read_entries(segments)
        except Incomplete as incomplete:
            return None, f"the conversation of lease {found.lease} is not there as a whole: {incomplete}", False
        if not entries and not found.wip:
            return None, f"lease {resumes} left nothing", False
        return msgspec.structs.replace(found, segments=segments), "", bool(entries)

    async def _before(self, key: Key, resumes: int) -> set[int]:
        """The leases that `resumes` went on with, as the log has it."""
        events = await patiently(lambda: self._store.read(key.plan, key.task))
        starts = [record.event for record in events if isinstance(record.event, TaskStarted)]
        before = {start.lease: start.resumes for start in starts}
        found = set[int]()
        while (resumes := before.get(resumes, 0)) and resumes not in found:
            found.add(resumes)
        return found


def _claim(lease: int, attempt: int, former: Checkpoint | None) -> Checkpoint:
    """A lease's first checkpoint: what it was left, so that it is not lost where the lease comes to nothing."""
    if former is None:
        return Checkpoint(attempt=attempt, lease=lease, session_id=str(uuid4()))
    verify_round = former.verify_round if former.attempt == attempt else 0
    return msgspec.structs.replace(
        former, attempt=attempt, lease=lease, usage=Usage(), verify_round=verify_round
    )  # fmt: skip


class _Waiting:
    """Something to store."""

    def __init__(self, body: bytes, *, is_checkpoint: bool) -> None:
        self.body = body
        self.is_checkpoint = is_checkpoint
        self.is_stored = False
        self.dealt_with = asyncio.Event()
        """Stored, or never to be."""


class LeaseMemory:
    """See `services.runner.agents.Memory`; made by `Checkpoints.open`.

    Everything is stored in the order in which it was given. Close it in the end.
    """

    def __init__(
        self,
        session: StoredSession,
        key: Key,
        checkpoint: Checkpoint,
        former: Checkpoint | None,
        why_afresh: str,
        *,
        resumes: bool,
    ) -> None:
        self.former = former
        """What a former lease left, its conversation or its files; None: there is nothing to go on with."""
        self.why_afresh = why_afresh
        """For a person, where there should be something to go on with and is not."""
        self.resumes = resumes
        self.usage = checkpoint.usage
        """Of this lease, as its agent told last."""
        self.on_turn_ended: Callable[[], None] | None = None
        self.on_fenced: Callable[[], None] | None = None
        """Called when somebody else turns out to have taken over."""
        self._session = session
        self._key = key
        self._checkpoint = checkpoint
        self._number = 1
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._behind = False
        self._is_full = False
        self._over: str | None = None

    @property
    def session_id(self) -> str:
        """Of the conversation."""
        return self._checkpoint.session_id

    async def load(self) -> list[dict[str, Any]]:
        """See `Memory.load`. Waits out any outage."""
        own = Segment(self._key.lease, self._number - 1)
        try:
            return await self._session.read_entries((*self._checkpoint.segments, *([own] if own.messages else [])))
        except Incomplete as incomplete:
            # It was whole when this lease began: it grew too old in these seconds, or somebody removes it.
            log.error("%s: the conversation is lost: %s", self._key, incomplete)
            return []

    async def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """See `Memory.append`. Returns when they are stored, or in an outage after a while."""
        self._check()
        if not entries or self._is_full:
            return
        body = msgspec.json.encode(storable(entries))
        if self._waiting_bytes + len(body) > WAITING_MAX_BYTES:
            self._is_full = True
            log.warning("%s: NATS is gone for so long that the rest of the conversation is not stored", self._key)
            return
        waiting = self._put(_Waiting(body, is_checkpoint=False))
        if self._behind:
            return
        try:
            async with asyncio.timeout(APPEND_PATIENCE_S):
                await waiting.dealt_with.wait()
        except TimeoutError:
            self._behind = True
            log.warning("%s: NATS does not take the conversation; it waits here", self._key)
        else:
            self._check(waiting)

    async def save(self, base: str, head: str, wip: str, usage: Usage, verify_round: int) -> None:
        """Stores how far the lease came, behind all that was appended. Waits out any outage. Raises `Fenced`.

        What may not wait is to be cancelled: it is stored then as soon as NATS is there, if the lease still is.
        """
        self.usage = usage
        await self._store(base=base, head=head, wip=wip, usage=usage, verify_round=verify_round)

    async def start_afresh(self, why: str) -> None:
        """To be called before the agent starts where its files are not to be had: the conversation is not either.

        Raises `Fenced`.
        """
        self.former, self.why_afresh, self.resumes = None, why, False
        await self._store(session_id=str(uuid4()), segments=(), base="", head="", wip="", verify_round=0)

    def turn_ended(self, usage: Usage) -> None:
        """See `Memory.turn_ended`. What was consumed is stored at once: a killed lease is charged that."""
        self.usage = usage
        self._checkpoint = msgspec.structs.replace(self._checkpoint, usage=usage)
        if self._over is None:
            self._put_checkpoint()
        if self.on_turn_ended is not None:
            self.on_turn_ended()

    async def close(self) -> None:
        """Stores nothing more: what was not stored until now is lost."""
        if self._writer is not None:
            self._writer.cancel()
            (end,) = await asyncio.gather(self._writer, return_exceptions=True)
            if isinstance(end, Exception):
                log.error("%s: its memory failed", self._key, exc_info=end)

    async def _store(self, **changes: Any) -> None:
        self._check()
        self._checkpoint = msgspec.structs.replace(self._checkpoint, **changes)
        waiting = self._put_checkpoint()
        await waiting.dealt_with.wait()
        self._check(waiting)

    def _check(self, waiting: _Waiting | None = None) -> None:
        if self._over is not None:
            raise Fenced(self._over)
        if waiting is not None and not waiting.is_stored:
            raise Fenced(f"the memory of lease {self._key.lease} was closed")

    def _put_checkpoint(self) -> _Waiting:
        body = msgspec.json.encode(self._checkpoint)
        if self._waiting and self._waiting[-1].is_checkpoint:
            self._waiting[-1].body = body
            return self._waiting[-1]
        return self._put(_Waiting(body, is_checkpoint=True))

    def _put(self, waiting: _Waiting) -> _Waiting:
        self._waiting.append(waiting)
        self._waiting_bytes += 0 if waiting.is_checkpoint else len(waiting.body)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return waiting

    async def _write(self) -> None:
        """Stores what waits, one after another."""
        subject = checkpoint_subject(self._key.plan, self._key.task)
        while self._waiting:
            now = self._waiting.popleft()
            try:
                if now.is_checkpoint:
                    await self._session.write(subject, now.body)
                else:
                    self._number = await self._session.write_entries(self._key.lease, self._number, now.body)
                    self._waiting_bytes -= len(now.body)
                now.is_stored = True
                self._behind = False
            except Overtaken as overtaken:
                log.warning("%s: another lease has taken over: %s", self._key, overtaken)
                self._over = f"lease {self._key.lease} is over: {overtaken}"
                for waiting in self._waiting:
                    waiting.dealt_with.set()
                self._waiting.clear()
                if self.on_fenced is not None:
                    self.on_fenced()
            finally:
                now.dealt_with.set()
