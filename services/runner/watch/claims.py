"""Whose turn it is to look at a repository: one fetch for each interval, however many runners watch.

For each repository a key of the bucket `TREADLE_WATCHES` says who looks or looked last, and when. Who wants to look
writes it on the condition that it is as he read it; whoever loses that, waits. While he looks he renews it, so that a
runner that dies loses its turn after `LAPSES_S`. The one that looked last comes first again, as it has the copy: others
wait a little longer. The times are of the runners' own clocks; where those disagree, it is looked a little more or
less often, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from hashlib import sha256

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from services.runner.watch.watched import Repository
from shared.clock import Clock
from shared.streams import WATCHES, declare_watches

LAPSES_S = 20.0
"""Of a turn whose holder does not renew it."""
RENEW_S = 5.0
JITTER = 0.2
OTHERS_WAIT = 0.25
"""By so large a part of the interval longer than the one that looked last."""
BACKOFF_MAX_S = 300.0
ANSWER_WITHIN_S = 2.0


class Turn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a repository's key holds."""

    holder: str
    at: datetime
    """When the look began or, once `done`, when it ended."""
    done: bool = False
    jitter: float = 1.0
    """By which the interval that follows is stretched, drawn once for everybody."""
    failures: int = 0
    """Looks that failed in a row."""
    since: datetime | None = None
    """The first one of them."""


class Claim(msgspec.Struct):
    """A turn that is ours, and the revision of its key."""

    repository: Repository
    turn: Turn
    revision: int


class ClaimsUnavailable(Exception):
    """NATS does not answer: nobody knows whose turn it is."""


def pause_s(poll_interval_s: float, failures: int) -> float:
    """Between two looks, without jitter: longer and longer while they fail."""
    if not failures:
        return poll_interval_s
    return max(poll_interval_s, min(BACKOFF_MAX_S, poll_interval_s * 2.0 ** min(failures - 1, 20)))


class Claims:
    """One watcher's way to its turns."""

    def __init__(self, nc: Client, holder: str, clock: Clock) -> None:
        """`holder` is of this process alone."""
        self._nc = nc
        self._holder = holder
        self._clock = clock
        self._bucket: KeyValue | None = None

    async def take(self, repository: Repository, poll_interval_s: float) -> Claim | float:
        """Our turn; or for how many seconds it is not. Raises `ClaimsUnavailable`."""
        with self._answered():
            bucket = await self._open()
            revision, turn = await self._read(bucket, repository)
            if turn is not None and (left_s := self._left_s(turn, poll_interval_s)) > 0:
                return left_s
            failures, since = (turn.failures, turn.since) if turn else (0, None)
            mine = Turn(holder=self._holder, at=self._clock(), failures=failures, since=since)
            written = await self._write(bucket, repository, mine, revision)
            if written is None:
                return poll_interval_s * OTHERS_WAIT
            return Claim(repository, mine, written)
        raise AssertionError("either of these returns or raises")

    def _left_s(self, turn: Turn, poll_interval_s: float) -> float:
        """Until we may look. A time to come, as a clock that is wrong may write it, counts as now."""
        age_s = max(0.0, (self._clock() - turn.at).total_seconds())
        if not turn.done:
            # Our own: NATS did not answer when we took it or ended it, and nobody looks.
            return 0.0 if turn.holder == self._holder else LAPSES_S - age_s
        wait_s = pause_s(poll_interval_s, turn.failures) * turn.jitter
        if turn.holder != self._holder:
            wait_s += poll_interval_s * OTHERS_WAIT
        return wait_s - age_s

    @asynccontextmanager
    async def held(self, claim: Claim) -> AsyncIterator[None]:
        """Renews the turn for the length of the block. One that was lost meanwhile is not regained."""
        renewing = asyncio.create_task(self._renew(claim))
        try:
            yield
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            claim.turn = msgspec.structs.replace(claim.turn, at=self._clock())
            with contextlib.suppress(ClaimsUnavailable), self._answered():
                written = await self._write(await self._open(), claim.repository, claim.turn, claim.revision)
                if written is None:
                    return
                claim.revision = written

    async def settle(self, claim: Claim, *, failed: bool) -> Turn:
        """Says how the look ended, and returns that. Raises `ClaimsUnavailable`."""
        now = self._clock()
        claim.turn = Turn(
            holder=self._holder,
            at=now,
            done=True,
            jitter=random.uniform(1 - JITTER, 1 + JITTER),  # noqa: S311 - spreads load, guards nothing
            failures=claim.turn.failures + 1 if failed else 0,
            since=(claim.turn.since or now) if failed else None,
        )
        with self._answered():
            await self._write(await self._open(), claim.repository, claim.turn, claim.revision)
        return claim.turn

    async def recover(self, repository: Repository) -> None:
        """Ends a pause for failures: a look out of turn has worked. Raises `ClaimsUnavailable`."""
        with self._answered():
            bucket = await self._open()
            revision, turn = await self._read(bucket, repository)
            if turn is not None and turn.done and turn.failures:
                await self._write(bucket, repository, msgspec.structs.replace(turn, failures=0, since=None), revision)

    async def _read(self, bucket: KeyValue, repository: Repository) -> tuple[int, Turn | None]:
        try:
            entry = await bucket.get(_key(repository))
        except KeyNotFoundError:
            return 0, None
        try:
            return entry.revision or 0, msgspec.json.decode(entry.value or b"", type=Turn)
        except msgspec.DecodeError:  # of another version, or not ours: it is written anew
            return entry.revision or 0, None

    async def _write(self, bucket: KeyValue, repository: Repository, turn: Turn, revision: int) -> int | None:
        """The new revision; None where somebody else was first."""
        key, value = _key(repository), msgspec.json.encode(turn)
        try:
            return await (bucket.update(key, value, last=revision) if revision else bucket.create(key, value))
        except KeyWrongLastSequenceError:
            return None

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            js = self._nc.jetstream(timeout=ANSWER_WITHIN_S)
            await declare_watches(js)
            self._bucket = await js.key_value(WATCHES)
        return self._bucket

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except (NatsError, APIError, OSError, TimeoutError) as error:
            self._bucket = None  # it lives in the server's memory, so it may be gone
            raise ClaimsUnavailable(f"NATS does not say whose turn it is: {error!r}") from error


def _key(repository: Repository) -> str:
    return sha256("\n".join(repository).encode()).hexdigest()[:24]
