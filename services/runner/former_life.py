"""What a runner does first: it gives back what its former life had in its hands when it was killed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from services.runner.checkpoint import Checkpoints, LeaseMemory
from services.runner.git_access import GitAccess
from services.runner.lease import Journal, Key, Taken
from services.runner.process import end_lease, lease_mark
from shared import commands as c
from shared.events import TaskDispatched, TaskStarted, Usage
from shared.jetstream import JetStreamStore
from shared.store import Meta, Recorded
from shared.subjects import pool
from shared.task import INITIAL, LEASED, TaskState, evolve
from shared.transact import fold, patiently, to_task

log = logging.getLogger("treadle.runner")

SALVAGE_WITHIN_S = 30.0
"""Less than `ack_wait`: it must not take longer than others would have waited for us."""


class Salvager(Protocol):
    """The part of an executor that is asked here."""

    async def salvage(
        self, key: Key, dispatch: TaskDispatched, access: GitAccess | None, memory: LeaseMemory | None
    ) -> None:
        """See `services.runner.runner.Executor.salvage`."""
        ...


class FormerLife:
    """The deliveries that the journal names."""

    def __init__(
        self,
        name: str,
        store: JetStreamStore,
        checkpoints: Checkpoints,
        journal: Journal,
        executors: Mapping[str, Salvager],
    ) -> None:
        self._name = name
        self._store = store
        self._checkpoints = checkpoints
        self._journal = journal
        self._executors = executors

    async def hand_back(self) -> None:
        """Ends its processes, saves its files, releases its leases; all deliveries at once."""
        notes = self._journal.left_behind()
        ends = await asyncio.gather(*(self._hand_back(taken) for taken in notes.values()), return_exceptions=True)
        for (note, taken), end in zip(notes.items(), ends, strict=True):
            if isinstance(end, c.Refused):  # taken over meanwhile, or the log is not the one that the journal speaks of
                log.warning("%s: a former life had it: %s", taken, end)
            elif isinstance(end, BaseException):
                raise end
            self._journal.remove(note)

    async def _hand_back(self, taken: Taken) -> None:
        plan, task = taken.plan, taken.task
        events = await patiently(lambda: self._store.read(plan, task))
        starts = (record.event for record in reversed(events) if isinstance(record.event, TaskStarted))
        if (start := next((start for start in starts if start.runner == self._name), None)) is not None:
            await end_lease(lease_mark(plan, task, start.lease))
        state = fold(INITIAL, evolve, events).state
        command = c.Release(lease=None, reason=f"runner {self._name} was killed and came back")
        if state.status in LEASED and state.runner == self._name:
            usage = await self._salvage(Key(plan, task, state.lease), state, events)
            command = c.Release(lease=state.lease, reason=command.reason, lost=True, usage=usage)
        elif state.status != "queued" or state.dispatch != taken.dispatch:
            return
        await to_task(self._store, plan, task, command, Meta(actor=f"runner:{self._name}"))
        log.info("%s: a former life had it; handed back", taken)

    async def _salvage(self, key: Key, state: TaskState, events: Sequence[Recorded]) -> Usage | None:
        """Saves what the lease had; returns what it consumed, as far as it told."""
        dispatches = (r.event for r in reversed(events) if isinstance(r.event, TaskDispatched))
        dispatch = next(d for d in dispatches if d.dispatch == state.dispatch)
        memory = await self._checkpoints.reopen(key)
        usage = memory.usage if memory else await self._checkpoints.usage_of(key)
        try:
            async with asyncio.timeout(SALVAGE_WITHIN_S):
                # No credentials of the project's: those of that lease come sealed to the process that was killed.
                await self._executors[pool(dispatch)].salvage(key, dispatch, None, memory)
        except Exception:
            # The next lease goes on with what was saved before.
            log.exception("%s: its files could not be saved", key)
        finally:
            if memory is not None:
                await memory.close()
        return usage
