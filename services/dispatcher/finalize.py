"""Turns a chosen candidate into tasks: one `planned` for each, then the plan's `finalized`; added tasks likewise.

Any dispatcher may do it, several at once too, and again after a crash in the middle: a task is planned once, and a
repeated decision finds its own event.
"""

import asyncio

from shared import commands as c
from shared.board import Board, in_order
from shared.spec import DELIVER
from shared.store import EventStore, Meta
from shared.task import INITIAL
from shared.transact import Loaded, to_plan, to_task

APPENDS_IN_FLIGHT = 256


async def complete_finalize(store: EventStore, plan: str, board: Board, meta: Meta) -> None:
    """Plans every task that the board does not have, then marks the plan finalized if it is not yet."""
    state, planned = board.plan, set(board.tasks)
    if state.chosen is None:
        return
    spec, choice = state.chosen.spec, state.digest
    agents = {**spec.agents, **{t.spec.assignee: t.agent for t in board.tasks.values() if t.spec and t.revision}}
    """An edited task may have an agent that the plan did not know when it was finalized; added ones take it over."""
    gate = asyncio.Semaphore(APPENDS_IN_FLIGHT)
    unborn = Loaded(INITIAL, 0)

    async def append(command: c.PlanTask) -> None:
        async with gate:
            await to_task(store, plan, command.spec.code, command, meta, known=unborn)

    async with asyncio.TaskGroup() as group:
        for index, task in enumerate([*in_order(spec), *state.added]):
            if task.code in planned:
                continue
            nobodys = task.code == DELIVER or task.is_decision
            agent = None if nobodys else agents[task.assignee]
            group.create_task(append(c.PlanTask(digest=choice, index=index, spec=task, agent=agent)))
    await to_plan(store, plan, c.ConfirmFinalized(digest=choice), meta)
