"""What happened to a plan's entities until a moment, read from the log as far as a question needs it."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from shared import task
from shared.board import Board
from shared.events import Event, PlanDrafted, PlanRequested, TaskCompleted, TaskDispatched, TaskReadied
from shared.store import Recorded
from shared.task import TaskState

E = TypeVar("E", bound=Event)


class Log(Protocol):
    """Where a story reads its events."""

    def of(self, entity: str) -> Iterable[Recorded]:
        """All events of an entity up to the moment, without those that were left out."""
        ...

    def first_seq(self, entity: str) -> int:
        """The sequence of the entity's first event up to the moment; 0 where there is none."""
        ...


class Past(msgspec.Struct, frozen=True):
    """An event that the fold has, so that it is known to be readable."""

    record: Recorded
    event: Event

    @property
    def seq(self) -> int:
        """Its sequence."""
        return self.record.seq

    @property
    def time(self) -> datetime:
        """The log's."""
        return self.record.time

    @property
    def actor(self) -> str:
        """Who: `user:…`, `dispatcher`, `runner:…`."""
        return self.record.meta.actor


def _past(record: Recorded, event: Event) -> Past:
    """Without the long texts that no answer rests on: they are megabytes, and there can be thousands."""
    match event:
        case TaskDispatched() | TaskReadied():
            event = replace(event, prompt="")
        case TaskCompleted():
            event = replace(event, answer="")
        case PlanDrafted():
            event = replace(event, spec=replace(event.spec, goal="", tasks=(), agents={}))
        case PlanRequested():
            event = replace(event, goal="")
    return Past(replace(record, event=event, body=b""), event)


class Step(msgspec.Struct, frozen=True):
    """One event of a task, with what it made of it."""

    past: Past
    before: TaskState
    after: TaskState


class Story:
    """A plan at a moment: its board, and the events that led there. Reading is put off until somebody asks."""

    def __init__(self, board: Board, log: Log, at: int, time: datetime) -> None:
        self.board = board
        """A copy of this story's own."""
        self.at = at
        self.time = time
        """Of the moment's last event: there is no other clock here."""
        self._log = log
        self.coming = set(board.tasks) - set(board.codes) if len(board.tasks) > len(board.codes) else set()
        """Tasks that are being added: written down, but not yet all of those that came together."""
        self._known: dict[str, tuple[Past, ...]] = {}
        self._stood: dict[str, Past | None] = {}

    def of(self, entity: str) -> tuple[Past, ...]:
        """The entity's events, in order."""
        if entity not in self._known:
            self._known[entity] = tuple(_past(r, r.event) for r in self._log.of(entity) if r.event is not None)
        return self._known[entity]

    def steps(self, code: str) -> Iterator[Step]:
        """A task's events, each with the states before and after it: made as they are read, and not kept."""
        state = task.INITIAL
        for past in self.of(code):
            before, state = state, task.evolve(state, past.event)
            yield Step(past, before, state)

    def since(self, code: str) -> Past | None:
        """The event by which the task came to stand as it does; None where the log has no event of it."""
        if code not in self._stood:
            found: Past | None = None
            status = ""
            for step in self.steps(code):
                if step.after.status != status or found is None:
                    found = step.past
                status = step.after.status
            self._stood[code] = found
        return self._stood[code]

    def newest(self, entity: str, *kinds: type[E]) -> tuple[Past, E] | None:
        """The entity's newest event of one of the kinds."""
        for past in reversed(self.of(entity)):
            if isinstance(past.event, kinds):
                return past, past.event
        return None

    def seq(self, entity: str, *kinds: type[Event]) -> int:
        """The sequence of the newest such event; 0 where there is none."""
        found = self.newest(entity, *kinds)
        return found[0].seq if found else 0

    def first_seq(self, entity: str) -> int:
        """The sequence of the entity's first event; 0 where there is none."""
        return self._log.first_seq(entity)

    def last_seq(self, entity: str) -> int:
        """The sequence of the entity's last event; 0 where there is none."""
        if entity in self.board.seqs:
            return self.board.seqs[entity]
        events = self.of(entity)
        return events[-1].seq if events else 0

    def state(self, code: str) -> TaskState:
        """How the task, or the making of a candidate, stands. Raises LookupError."""
        return self.board.tasks[code] if code in self.board.tasks else self.board.drafts[code]
