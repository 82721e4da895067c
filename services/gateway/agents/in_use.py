"""Whether an agent's tasks are still to be done."""

import asyncio

from litestar.datastructures import State
from sqlalchemy import select

from services.gateway.database.tables import PlanRow, ProjectionHead
from services.gateway.projection.live import LivePlans
from shared.board import Board
from shared.plan import ENDED
from shared.store import StoreUnavailable

LOOK_MAX_S = 10.0


async def open_plan_with(state: State, agent_id: str) -> str | None:
    """Name and id of a plan that has not ended and names the agent. Raises `StoreUnavailable`."""
    current = select(ProjectionHead.generation).where(ProjectionHead.is_current)
    is_open = PlanRow.status.not_in(sorted(ENDED))
    async with state.db.read() as session:
        query = select(PlanRow.id, PlanRow.name).where(PlanRow.generation.in_(current), is_open)
        plans = list(await session.execute(query.order_by(PlanRow.created_at.desc())))
    live: LivePlans = state.live
    try:
        async with asyncio.timeout(LOOK_MAX_S):
            for plan, name in plans:
                fold = await live.fold(plan)
                if fold is not None and names_agent(fold.board, agent_id):
                    return f"{name} ({plan})"
    except TimeoutError as error:
        raise StoreUnavailable("the open plans could not be looked through in time") from error
    return None


def names_agent(board: Board, agent_id: str) -> bool:
    """Whether a candidate, one that is asked for, the chosen plan or a task that was edited gives work to the agent."""
    drafts = [board.plan.chosen] if board.plan.chosen else board.plan.candidates.values()
    if any(agent.agent_id == agent_id for draft in drafts for agent in draft.spec.agents.values()):
        return True
    for asked in board.plan.requests.values():
        wanted = [asked.request.planner, *(agent.spec for agent in asked.request.agents)]
        if asked.open and any(spec is not None and spec.agent_id == agent_id for spec in wanted):
            return True
    return any(task.agent is not None and task.agent.agent_id == agent_id for task in board.tasks.values())
