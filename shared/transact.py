"""Load, decide, append, and again on conflict: the one place where a decision meets the log."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Generic, TypeVar

import msgspec

from shared import plan, task, task_decisions
from shared.clock import new_id
from shared.commands import Changed, PlanCommand, Refused, Skip, TaskCommand
from shared.events import Event
from shared.given import given
from shared.skipped import skipped_seq, without_skipped
from shared.store import Conflict, EventStore, Meta, Recorded, StoreUnavailable
from shared.subjects import PLAN

S = TypeVar("S")
T = TypeVar("T")

CONFLICTS_MAX = 16
"""Writers of one entity are few; more conflicts than this in a row mean that something is wrong."""
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 1.0
FOREVER_S = float("inf")


class Loaded(msgspec.Struct, Generic[S], frozen=True):
    """A state and the sequence of the entity's newest event in it."""

    state: S
    seq: int


class Decided(msgspec.Struct, Generic[S], frozen=True):
    """What came of a command."""

    state: S
    """After the event, if there was one."""
    seq: int
    """Of the entity's newest event: the new one, or the one that made the command superfluous."""
    event: Event | None


class Contended(Exception):
    """The entity changed under every one of our tries."""


class UnreadableEntity(Refused):
    """The entity's history holds an event that this code can't read: nothing may be decided on half a state."""


async def load_plan(store: EventStore, plan_id: str) -> Loaded[plan.PlanState]:
    """Folds a plan's own events."""
    return fold(plan.INITIAL, plan.evolve, await store.read(plan_id, PLAN))


async def load_task(store: EventStore, plan_id: str, code: str) -> Loaded[task.TaskState]:
    """Folds one task's events."""
    return fold(task.INITIAL, task.evolve, await store.read(plan_id, code))


def fold(initial: S, evolve: Callable[[S, Event], S], events: list[Recorded], seq: int = 0) -> Loaded[S]:
    """The state that `events` lead to, without those that were skipped. Raises `UnreadableEntity`.

    Where `seq` is given, `events` follow on what `initial` was folded from; see `shared.skipped.reaches_back`.
    """
    state = initial
    for record in without_skipped(events):
        if record.event is None:
            raise UnreadableEntity(
                f"event {record.seq} of {record.plan} {record.entity} can't be read: {record.fault}; an operator can "
                f"look at it and have it left out (`treadle events skip {record.plan} {record.seq}`)"
            )
        state = evolve(state, record.event)
        seq = record.seq
    return Loaded(state, seq)


async def patiently(read: Callable[[], Awaitable[T]]) -> T:
    """Reads from the store, waiting out any outage."""
    pause_s = PAUSE_MIN_S
    while True:
        try:
            return await read()
        except StoreUnavailable:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)


async def to_plan(
    store: EventStore, plan_id: str, command: PlanCommand, meta: Meta, *, patience_s: float = FOREVER_S
) -> Decided[plan.PlanState]:
    """Gives a command to a plan. Raises `Refused`, `EventTooLarge`, and after `patience_s` `StoreUnavailable`.

    `Skip` is for a history that can't be folded: the state that is answered says nothing then.
    """
    return await _transact(
        store, plan_id, PLAN, plan.INITIAL, plan.decide, plan.evolve, command, meta, patience_s, None, None
    )  # fmt: skip


async def to_task(
    store: EventStore,
    plan_id: str,
    code: str,
    command: TaskCommand,
    meta: Meta,
    *,
    known: Loaded[task.TaskState] | None = None,
    only_at: int | None = None,
    patience_s: float = FOREVER_S,
) -> Decided[task.TaskState]:
    """Gives a command to a task. Raises `Refused`, `EventTooLarge`, and after `patience_s` `StoreUnavailable`.

    `only_at` is the sequence of the task's newest event as the sender saw it: `Changed` is raised where there is a
    newer one. `known` is what the caller has folded already: right most of the time, and the append's condition tells
    when not. `Skip` is as in `to_plan`.
    """
    decide = task_decisions.decide
    return await _transact(
        store, plan_id, code, task.INITIAL, decide, task.evolve, command, meta, patience_s, known, only_at
    )  # fmt: skip


async def _transact(
    store: EventStore,
    plan_id: str,
    entity: str,
    initial: S,
    decide: Callable[[S, Any], Event | None],
    evolve: Callable[[S, Event], S],
    command: Any,
    meta: Meta,
    patience_s: float,
    known: Loaded[S] | None,
    only_at: int | None,
) -> Decided[S]:
    meta = msgspec.structs.replace(meta, command=type(command).__name__, command_id=meta.command_id or new_id())
    deadline = monotonic() + patience_s
    conflicts, pause_s, unanswered = 0, PAUSE_MIN_S, False
    while True:
        try:
            if known is None:
                events = await store.read(plan_id, entity)
                if isinstance(command, Skip):
                    if said := next((r for r in events if skipped_seq(r) == command.seq), None):
                        return Decided(initial, said.seq, None)
                    words = [r for r in events if skipped_seq(r)]  # all else can't be folded
                    known = Loaded(fold(initial, evolve, words).state, events[-1].seq if events else 0)
                elif unanswered and (own := _up_to_own(events, meta)):
                    stored = fold(initial, evolve, own)
                    return Decided(stored.state, stored.seq, own[-1].event)
                else:
                    known = fold(initial, evolve, events)
            loaded, known = known, None
            if only_at is not None and loaded.seq != only_at:
                raise Changed(
                    f"{entity} of plan {plan_id} is at event {loaded.seq}, not at {only_at}: look at it again"
                )
            event = decide(loaded.state, command)
            if event is None:
                return Decided(loaded.state, loaded.seq, None)
            stored_meta = msgspec.structs.replace(meta, given=given(command, event))
            seq = await store.append(plan_id, entity, event, stored_meta, expected=loaded.seq)
            return Decided(evolve(loaded.state, event), seq, event)
        except Conflict as conflict:
            conflicts += 1
            if conflicts > CONFLICTS_MAX:
                raise Contended(f"{entity} of plan {plan_id} changed {conflicts} times meanwhile") from conflict
        except StoreUnavailable:
            unanswered = True
            if monotonic() + pause_s > deadline:
                raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)


def _up_to_own(events: list[Recorded], meta: Meta) -> list[Recorded]:
    """The history up to the event that this very command led to, although its answer was lost; empty if there is none.

    Deciding again would not always find it: what was paused and then resumed by somebody else would be paused twice.
    """
    for place, record in enumerate(events):
        if (record.meta.command, record.meta.command_id) == (meta.command, meta.command_id):
            return events[: place + 1]
    return []
