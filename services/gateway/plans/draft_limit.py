"""How many plans may wait for a choice: every service keeps all candidates of such a plan in memory, whoever made them.

Counted are the plans that the projection shows as asked for or drafted, as fresh as the log is, and what this gateway
is just carrying out. Several gateways may go over it by what each of the others carries out at that moment.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.datastructures import State
from sqlalchemy import func, select

from services.gateway.accounts.access import Caller
from services.gateway.database.tables import PlanRow, Project, ProjectionHead
from services.gateway.problems import Problem, ProblemError
from services.gateway.projection.reads import fresh
from shared.plan import EARLY

DRAFTS_MAX = 50
"""Of all projects of one owner."""

TOO_MANY_DRAFTS = Problem(
    status=409,
    code="too_many_drafts",
    title="Too many undecided plans",
    detail=f"the owner of this project has {DRAFTS_MAX} plans that are neither finalized nor cancelled, which is the "
    "most: finalize or cancel some (GET /api/plans?status=drafted, requested, failed)",
)


@asynccontextmanager
async def room_for_draft(state: State, caller: Caller, owner_id: str) -> AsyncIterator[None]:
    """Keeps a place for one more plan of the owner's. Raises `ProblemError` 409; an admin is never refused."""
    if caller.is_admin:
        yield
        return
    drafting: Counter[str] = state.drafting
    drafting[owner_id] += 1
    try:
        # Before the log's end is asked for: what is no longer under way by then is in the log.
        under_way = drafting[owner_id]
        await fresh(state, await state.projector.log_end())
        if await _drafted(state, owner_id) + under_way > DRAFTS_MAX:
            refused = TOO_MANY_DRAFTS
            raise ProblemError(refused.status, refused.code, refused.title, refused.detail)
        yield
    finally:
        drafting[owner_id] -= 1
        if not drafting[owner_id]:
            del drafting[owner_id]


async def _drafted(state: State, owner_id: str) -> int:
    current = select(ProjectionHead.generation).where(ProjectionHead.is_current).scalar_subquery()
    own = select(Project.id).where(Project.owner_id == owner_id)
    query = select(func.count()).where(
        PlanRow.generation == current, PlanRow.project_id.in_(own), PlanRow.status.in_(sorted(EARLY))
    )
    async with state.db.read() as session:
        return await session.scalar(query) or 0
