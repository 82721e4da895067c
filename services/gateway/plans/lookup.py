"""Finds the plan and the task that a path names, for whoever may see them: the project's owner, and admins.

What is not there or is somebody else's answers 404, however it was written.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from litestar.datastructures import State
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import Caller
from services.gateway.archives.copies import Copies
from services.gateway.archives.rows import is_imported
from services.gateway.database.tables import PlanRow, Project
from services.gateway.problems import ProblemError, not_found
from services.gateway.projection import reads
from services.gateway.projection.reads import fresh
from services.gateway.projection.views import PlanFold
from shared.store import StoreUnavailable
from shared.subjects import PLAN_ID

T = TypeVar("T")

LOG_PATIENCE_S = 5.0
"""How long a caller waits for the log before 503: long enough for a server that is being restarted."""


async def find_plan(state: State, caller: Caller, plan: str) -> PlanFold:
    """The plan as this gateway knows it, from the log itself where it is new; an imported one. Raises 404.

    Nothing can be changed of an imported plan: whatever would is refused before any route is asked
    (`services.gateway.archives.read_only`).
    """
    if is_imported(plan):
        return await find_imported(state, caller, plan)
    fold: PlanFold | None = await promptly(state.live.fold(plan)) if PLAN_ID.fullmatch(plan) else None
    if fold is None or not await _may_see(state, caller, fold.board.plan.project):
        raise not_found(f"plan {plan[:80]}", "GET /api/plans")
    return fold


async def find_imported(state: State, caller: Caller, plan: str) -> PlanFold:
    """An imported plan. Raises `ProblemError` 404, 409 `unreadable_archive`."""
    copies: Copies = state.imported
    return (await copies.find(caller, plan)).fold


async def find_task(state: State, caller: Caller, plan: str, code: str) -> PlanFold:
    """The same, of a finalized plan that has that task."""
    fold = await find_plan(state, caller, plan)
    if not fold.has_task(code):
        raise no_such_task(plan, code)
    return fold


async def find_execution(state: State, caller: Caller, plan: str, entity: str) -> PlanFold:
    """The same, also where it is the making of a candidate (`_draft-1`), whatever the plan's state."""
    fold = await find_plan(state, caller, plan)
    if not fold.has_execution(entity):
        raise no_such_task(plan, entity)
    return fold


@asynccontextmanager
async def reading_plan(
    state: State, caller: Caller, plan: str, min_seq: int
) -> AsyncIterator[tuple[AsyncSession, PlanRow]]:
    """The plan's row, as fresh as is wanted. One that is so new that only the log has it is waited for."""
    await fresh(state, min_seq)
    async with state.db.read() as session:
        try:
            row = await reads.find_plan(session, caller, plan)
        except ProblemError:
            row = None
        if row is not None:
            yield session, row
            return
    known = await find_plan(state, caller, plan)
    await fresh(state, known.seq)
    async with state.db.read() as session:
        yield session, await reads.find_plan(session, caller, plan)


def no_such_task(plan: str, code: str) -> ProblemError:
    """404. A plan that is not finalized has no tasks yet."""
    return not_found(f"task {code[:80]} of plan {plan}", f"GET /api/plans/{plan}/tasks")


async def _may_see(state: State, caller: Caller, project_id: str) -> bool:
    """A plan that is older than projects, or whose project is gone, is the admins' alone."""
    if caller.is_admin:
        return True
    async with state.db.read() as session:
        owner = await session.scalar(select(Project.owner_id).where(Project.id == project_id))
    return bool(owner == caller.id)


async def promptly(answer: Awaitable[T], patience_s: float = LOG_PATIENCE_S) -> T:
    """What comes within the patience of a caller. Raises `StoreUnavailable`."""
    try:
        async with asyncio.timeout(patience_s):
            return await answer
    except TimeoutError as error:
        raise StoreUnavailable(f"the event log gave no answer within {patience_s:.0f} s") from error
