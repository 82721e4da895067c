"""Which of a plan's events somebody wants to see, and reading no more of the log for them than one answer may take."""

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Annotated, Protocol

import msgspec
from litestar.params import QueryParameter
from nats.aio.client import Client

from services.gateway.archives.rows import is_imported
from services.gateway.direct_get import BYTES_MAX, EventsRead, first_seq_since
from services.gateway.problems import bad_request
from services.gateway.projection.reads import SEQUENCE_MAX
from shared.store import Recorded
from shared.subjects import PLAN, is_entity

READS_MAX = 4
"""For one answer, of `READ_EVENTS` events or some megabytes each: what is rare is found by asking on."""
READ_EVENTS = 1_000
WORD_MAX_CHARS = 200

TypeWord = Annotated[str | None, QueryParameter(name="type", max_length=64, description="Such as `completed`.")]
TaskWord = Annotated[
    str | None, QueryParameter(max_length=64, description="A task's code; `_plan` for what concerns the plan itself.")
]
ActorWord = Annotated[
    str | None,
    QueryParameter(max_length=WORD_MAX_CHARS, description="Such as `user:ann`; `user` or `runner` for all of them."),
]
When = Annotated[
    str | None, QueryParameter(max_length=64, description="A sequence, or a time such as 2026-01-31T12:00:00Z.")
]


class ReadEvents(Protocol):
    """Reads some events of a plan: `read_events` with a connection and a store."""

    def __call__(self, plan: str, *, after: int, limit: int, entity: str | None = None) -> Awaitable[EventsRead]:
        """Raises `StoreUnavailable`."""
        ...


class About(msgspec.Struct, frozen=True):
    """What a filter looks at: an event's beginning, as it is told."""

    seq: int
    time: datetime
    task: str | None
    type: str
    actor: str

    @classmethod
    def of(cls, record: Recorded) -> "About":
        """Of an event as the log has it."""
        task = None if record.entity == PLAN else record.entity
        return cls(record.seq, record.time, task, record.type, record.meta.actor)


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Every field that is set has to fit."""

    task: str | None = None
    type: str | None = None
    actor: str | None = None
    since: int | datetime | None = None
    until: int | datetime | None = None

    @classmethod
    def asked(
        cls, task: str | None, type_: str | None, actor: str | None, since: str | None = None, until: str | None = None
    ) -> "EventFilter":
        """Raises `ProblemError` 400."""
        if task is not None and not is_entity(task):
            raise bad_request("task", "is no task's code: give one, or _plan", source="query")
        return cls(task=task, type=type_, actor=actor, since=_when("since", since), until=_when("until", until))

    @property
    def is_empty(self) -> bool:
        """Whether everything is wanted."""
        return self == EventFilter()

    def wants(self, about: About) -> bool:
        """Whether the event fits; `until` is for `is_over`."""
        return (
            (self.task is None or (about.task or PLAN) == self.task)
            and (self.type is None or about.type == self.type)
            and (self.actor is None or self.actor in (about.actor, about.actor.partition(":")[0]))
            and not _is_before(about, self.since)
        )

    def is_over(self, about: About) -> bool:
        """Whether neither this event nor any later one fits."""
        if isinstance(self.until, datetime):
            return about.time > self.until
        return self.until is not None and about.seq > self.until

    async def page(
        self, nc: Client, read: ReadEvents, plan: str, *, after: int, limit: int
    ) -> tuple[list[Recorded], int | None]:
        """The first events that fit, and where to go on, None at the end.

        They may be few, or none, where more follow. Raises `StoreUnavailable`.
        """
        if self.is_empty:
            whole = await read(plan, after=after, limit=limit)
            return whole.records, whole.next_after
        cursor, found, found_bytes = await self._start(nc, plan, after), list[Recorded](), 0
        for _ in range(READS_MAX):
            batch = await read(plan, after=cursor, limit=READ_EVENTS, entity=self.task)
            for record in batch.records:
                about = About.of(record)
                if self.is_over(about):
                    return found, None
                if self.wants(about):
                    found.append(record)
                    found_bytes += len(record.body)
                    if len(found) == limit or found_bytes > BYTES_MAX:
                        is_last = batch.next_after is None and record is batch.records[-1]
                        return found, None if is_last else record.seq
            if batch.next_after is None:
                return found, None
            cursor = batch.next_after
        return found, cursor

    async def _start(self, nc: Client, plan: str, after: int) -> int:
        if isinstance(self.since, datetime):
            if is_imported(plan):  # no server knows its times: its events are looked at one by one
                return after
            first = await first_seq_since(nc, plan, self.since)
            return max(after, first - 1) if first else SEQUENCE_MAX
        return max(after, (self.since or 0) - 1)


def _is_before(about: About, since: int | datetime | None) -> bool:
    if isinstance(since, datetime):
        return about.time < since
    return since is not None and about.seq < since


def _when(field: str, text: str | None) -> int | datetime | None:
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and int(text) <= SEQUENCE_MAX:
        return int(text)
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        message = "is neither a sequence nor a time: give one such as 1200 or 2026-01-31T12:00:00Z"
        raise bad_request(field, message, source="query") from None
