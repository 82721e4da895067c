"""Turns a chosen candidate into tasks: one `planned` for each, then the plan's `finalized`; added tasks likewise.

In a fork, `inherited` stands in the place of `planned` for what its origin has completed, and the origin is told of
the fork before anything of it runs. Any dispatcher may do it, several at once too, and again after a crash in the
middle: a task is planned once, and a repeated decision finds its own event.
"""

import asyncio
import logging

from shared import commands as c
from shared.board import Board, in_order
from shared.events import ForkOf
from shared.spec import DELIVER
from shared.store import EventStore, Meta
from shared.task import INITIAL
from shared.transact import Loaded, to_plan, to_task

log = logging.getLogger("treadle.dispatcher")

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

    kept = {one.task: one for one in state.chosen.fork.kept} if state.chosen.fork is not None else {}

    async def append(command: c.PlanTask | c.Inherit) -> None:
        async with gate:
            await to_task(store, plan, command.spec.code, command, meta, known=unborn)

    async with asyncio.TaskGroup() as group:
        for index, task in enumerate([*in_order(spec), *state.added]):
            if task.code in planned:
                continue
            nobodys = task.code == DELIVER or task.is_decision
            if (done := kept.get(task.code)) is not None:
                # Whoever did it may be gone by now.
                agent = None if nobodys else agents.get(task.assignee)
                group.create_task(append(c.Inherit(digest=choice, index=index, spec=task, agent=agent, kept=done)))
                continue
            agent = None if nobodys else agents[task.assignee]
            group.create_task(append(c.PlanTask(digest=choice, index=index, spec=task, agent=agent)))
    if state.chosen.fork is not None and state.status == "finalizing":
        await _tell_origin(store, plan, state.chosen.fork, meta)
    await to_plan(store, plan, c.ConfirmFinalized(digest=choice), meta)


async def _tell_origin(store: EventStore, plan: str, fork: ForkOf, meta: Meta) -> None:
    """So that it is known there too: whoever made the fork may have died before they could say so."""
    try:
        await to_plan(store, fork.plan, c.RecordFork(plan=plan, seq=fork.seq), meta)
    except c.Refused as refusal:
        log.warning("plan %s is a fork of %s, which can't be told: %s", plan, fork.plan, refusal)
