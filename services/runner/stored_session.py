"""A task's messages in the stream `TREADLE_SESSIONS`: stored each behind the newest one that its writer has seen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from shared.authentic import EXPECTED
from shared.clock import new_id
from shared.jetstream import APPEND_TIMEOUT_S, READ_TIMEOUT_S, WRONG_LAST_SEQUENCE
from shared.streams import SESSIONS
from shared.subjects import conversation, session_filter
from shared.tail import follow_messages

log = logging.getLogger("treadle.runner")

MESSAGE_MAX_BYTES = 4 * 1024 * 1024
"""Half of what the server takes: longer ones are cut into several."""
AGAIN_S = 0.1
WRITE, NUMBER, MORE = "Treadle-Write", "Treadle-Number", "Treadle-More"
"""Headers: which write it is, so that one whose answer was lost is known again; the message's place in its lease's
conversation, from 1; whether it goes on in the next message."""


class Overtaken(Exception):
    """Somebody else has stored something of that task's since we looked."""


class Incomplete(Exception):
    """Of a conversation, something that was stored is not there any more."""


class Stored(msgspec.Struct, frozen=True):
    """A message as the stream has it."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    body: bytes


class Segment(msgspec.Struct, frozen=True):
    """A lease's part in a conversation."""

    lease: int
    messages: int


class StoredSession:
    """One writer's view of one task's messages. Waits out any outage."""

    def __init__(self, nc: Client, plan: str, task: str) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=APPEND_TIMEOUT_S)
        self._plan = plan
        self._task = task
        self._all = session_filter(plan, task)
        self._seen = 0

    async def look(self) -> None:
        """From now on, what is stored by now counts as seen."""
        newest = await self.last(self._all)
        self._seen = newest.seq if newest else 0

    async def last(self, subject: str) -> Stored | None:
        """The newest message on a subject, which may have wildcards."""
        body = msgspec.json.encode({"last_by_subj": subject})
        while True:
            try:
                message = await self._nc.request(f"$JS.API.DIRECT.GET.{SESSIONS}", body, timeout=READ_TIMEOUT_S)
            except (NatsError, OSError, TimeoutError) as error:
                log.debug("NATS did not answer a read of a session: %r", error)
            else:
                headers = message.headers or {}
                if "Nats-Sequence" in headers:
                    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], headers, message.data)
                if headers.get("Status") == "404":
                    return None
                log.warning("NATS answered a read of a session with %s", headers.get("Status"))
            await asyncio.sleep(AGAIN_S)

    async def write(self, subject: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        """Stores a message. Raises `Overtaken`."""
        headers = {**(more or {}), WRITE: new_id(), f"{EXPECTED}-Subject": self._all}
        while True:
            headers[EXPECTED] = str(self._seen)
            try:
                self._seen = (await self._js.publish(subject, body, headers=headers)).seq
                return
            except APIError as error:
                if error.err_code == WRONG_LAST_SEQUENCE:
                    if await self._is_stored(headers[WRITE]):
                        return
                    continue
                log.warning("NATS refused a part of a session of %s %s: %s", self._plan, self._task, error.description)
            except (NatsError, OSError, TimeoutError) as error:
                log.debug("NATS did not take a part of a session: %r", error)
            # What is sent without a connection is kept by the client, and a copy of it with every further try.
            await asyncio.sleep(AGAIN_S)
            while not self._nc.is_connected:  # noqa: ASYNC110 - the client tells only its own callback
                await asyncio.sleep(AGAIN_S)

    async def _is_stored(self, write: str) -> bool:
        """Whether a refused write was stored before, by a try whose answer was lost. Raises `Overtaken`."""
        newest = await self.last(self._all)
        seq = newest.seq if newest else 0
        if newest is not None and newest.headers.get(WRITE) == write:
            self._seen = seq
            return True
        if seq > self._seen:
            raise Overtaken(f"{self._plan} {self._task}: message {seq} is not ours")
        self._seen = seq  # our last one is gone: by its age, or with a server that had not written it to its disk
        return False

    async def write_entries(self, lease: int, number: int, entries: bytes) -> int:
        """Stores a JSON array of entries as the messages from `number` on of a lease. Returns the next number."""
        subject = conversation(self._plan, self._task, lease)
        for piece, more in _pieces(entries, min(MESSAGE_MAX_BYTES, self._nc.max_payload // 2)):
            await self.write(subject, piece, {NUMBER: str(number), **({MORE: "1"} if more else {})})
            number += 1
        return number

    async def messages_of(self, lease: int) -> int:
        """How many messages of a lease's conversation are stored."""
        last = await self.last(conversation(self._plan, self._task, lease))
        return _number(last) if last else 0

    async def read_entries(self, segments: Sequence[Segment]) -> list[dict[str, Any]]:
        """The entries of a conversation, each once. Raises `Incomplete`."""
        subjects = {conversation(self._plan, self._task, segment.lease): segment for segment in segments}
        found: dict[str, list[Stored]] = {subject: [] for subject in subjects}
        if not subjects:
            return []
        async with aclosing(follow_messages(self._nc, SESSIONS, after=0, filters=tuple(subjects))) as arriving:
            async for arrived in arriving:
                for message in arrived.messages:
                    seq = message.metadata.sequence.stream
                    found[message.subject].append(Stored(seq, message.subject, message.headers or {}, message.data))
                if arrived.caught_up:
                    break
        bodies = [body for subject in subjects for body in _joined(found[subject], subjects[subject])]
        return _each_once(bodies)


def _pieces(whole: bytes, max_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """The parts of it, and whether there is more to come."""
    for start in range(0, len(whole), max_bytes):
        yield whole[start : start + max_bytes], start + max_bytes < len(whole)


def _joined(messages: Sequence[Stored], segment: Segment) -> Iterator[bytes]:
    """The arrays that a lease stored. One that it did not finish is left out: it has been killed over it."""
    if [_number(message) for message in messages[: segment.messages]] != list(range(1, segment.messages + 1)):
        raise Incomplete(f"of lease {segment.lease}, messages are missing")
    begun = b""
    for message in messages[: segment.messages]:
        begun += message.body
        if MORE not in message.headers:
            yield begun
            begun = b""


def _each_once(bodies: Sequence[bytes]) -> list[dict[str, Any]]:
    """The entries of those arrays; who stores may repeat what was stored already, and an entry is known by its uuid."""
    entries, seen = list[dict[str, Any]](), set[str]()
    for body in bodies:
        try:
            array = msgspec.json.decode(body, type=list[dict[str, Any]])
        except msgspec.DecodeError as error:
            raise Incomplete(f"it can't be read: {error}") from error
        for entry in array:
            uuid = entry.get("uuid")
            if isinstance(uuid, str):
                if uuid in seen:
                    continue
                seen.add(uuid)
            entries.append(entry)
    return entries


def _number(message: Stored) -> int:
    """0, which no message has, for what is no number."""
    text = message.headers.get(NUMBER, "")
    return int(text) if text.isdecimal() and text.isascii() else 0
