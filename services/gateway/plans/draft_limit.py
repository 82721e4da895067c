"""How many plans may wait for a choice, and how many candidates agents may be making.

Every service keeps all candidates of an undecided plan in memory, whoever made them; and what an agent makes costs
money, and a runner's place. Counted is what the projection shows, as fresh as the log is, and what this gateway is just
carrying out. Several gateways may go over it by what each of the others carries out at that moment; the planner has no
more than `MAKINGS_MAX` of a plan made at once even then.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from litestar.datastructures import State
from sqlalchemy import func, select

from services.gateway.accounts.access import Caller
from services.gateway.database.tables import PlanRow, Project, ProjectionHead
from services.gateway.problems import Problem, ProblemError
from services.gateway.projection.reads import fresh
from shared.plan import EARLY, MAKINGS_MAX, PlanState

DRAFTS_MAX = 50
"""Of all projects of one owner."""
MAKINGS_OF_OWNER_MAX = 10
"""Candidates that agents make, over all projects of one owner."""

TOO_MANY_DRAFTS = Problem(
    status=409,
    code="too_many_drafts",
    title="Too many undecided plans",
    detail=f"the owner of this project has {DRAFTS_MAX} plans that are neither finalized nor cancelled, which is the "
    "most: finalize or cancel some (GET /api/plans?status=drafted, requested, failed)",
)
_FEWER = "ask for fewer, wait until some are there, or cancel some"


class _Asked(msgspec.Struct):
    by_hand: bool
    state: str


class _WaitingPlan(msgspec.Struct):
    """Of a `PlanView`, what is counted here."""

    requests: tuple[_Asked, ...]


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
            raise _too_many(TOO_MANY_DRAFTS.detail)
        yield
    finally:
        drafting[owner_id] -= 1
        if not drafting[owner_id]:
            del drafting[owner_id]


@asynccontextmanager
async def room_for_makings(
    state: State, caller: Caller, owner_id: str, known: PlanState, count: int
) -> AsyncIterator[None]:
    """Keeps places for so many more candidates that agents make. `known` is their plan as it stands.

    Raises `ProblemError` 409; an admin is refused only what is too much for one plan.
    """
    of_plan = sum(asked.open and not asked.request.by_hand for asked in known.requests.values())
    if of_plan + count > MAKINGS_MAX:
        being_made = f"agents are making {of_plan} candidates of this plan" if of_plan else f"{count} are asked for"
        raise _too_many(f"{being_made}, and at most {MAKINGS_MAX} of one plan are made at once: {_FEWER}")
    if caller.is_admin:
        yield
        return
    making: Counter[str] = state.making
    making[owner_id] += count
    try:
        under_way = making[owner_id]  # before the log's end is asked for, as above
        await fresh(state, await state.projector.log_end())
        of_owner = await _being_made(state, owner_id)
        if of_owner + under_way > MAKINGS_OF_OWNER_MAX:
            raise _too_many(
                f"agents are making {of_owner} candidates for the owner of this project, and at most "
                f"{MAKINGS_OF_OWNER_MAX} of one owner are made at once: {_FEWER} (GET /api/plans?standing=drafting)"
            )
        yield
    finally:
        making[owner_id] -= count
        if not making[owner_id]:
            del making[owner_id]


def _too_many(detail: str) -> ProblemError:
    return ProblemError(TOO_MANY_DRAFTS.status, TOO_MANY_DRAFTS.code, TOO_MANY_DRAFTS.title, detail)


async def _being_made(state: State, owner_id: str) -> int:
    current = select(ProjectionHead.generation).where(ProjectionHead.is_current).scalar_subquery()
    own = select(Project.id).where(Project.owner_id == owner_id)
    query = select(PlanRow.view).where(
        PlanRow.generation == current,
        PlanRow.project_id.in_(own),
        PlanRow.status.in_(sorted(EARLY)),
        PlanRow.is_busy,
    )
    async with state.db.read() as session:
        views = (await session.scalars(query)).all()
    plans = (msgspec.json.decode(view, type=_WaitingPlan) for view in views)
    return sum(one.state == "open" and not one.by_hand for plan in plans for one in plan.requests)


async def _drafted(state: State, owner_id: str) -> int:
    current = select(ProjectionHead.generation).where(ProjectionHead.is_current).scalar_subquery()
    own = select(Project.id).where(Project.owner_id == owner_id)
    query = select(func.count()).where(
        PlanRow.generation == current, PlanRow.project_id.in_(own), PlanRow.status.in_(sorted(EARLY))
    )
    async with state.db.read() as session:
        return await session.scalar(query) or 0
