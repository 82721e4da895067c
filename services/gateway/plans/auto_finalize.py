"""Finalizes plans whose only candidate was asked for so, in the background of every gateway.

Nobody looks at such a plan, so an agent made it under the planner's bounds, and its project has a budget.

    a candidate is there → the projection shows the plan as due → finalized as whoever asked for it, under every check

Each step may be done again, by another gateway too: a choice is made once (`services.gateway.plans.finalize`). What
hinders it is written down where people see it, and tried again when any plan has moved, or after a while.
"""

import asyncio
import contextlib
import logging

from litestar.datastructures import State
from nats.errors import Error as NatsError
from nats.js.errors import APIError
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.accounts.access import Caller, as_role
from services.gateway.database.tables import HeldFinalization, PlanRow, ProjectionHead, User
from services.gateway.plans.finalize import Choice, finalize
from services.gateway.problems import ProblemError
from services.gateway.projection.live import LivePlans
from services.gateway.projection.projector import Projector
from shared.clock import utc_now
from shared.commands import Refused
from shared.events import PlanRequested
from shared.plan import INITIAL, evolve
from shared.store import StoreUnavailable
from shared.subjects import PLAN
from shared.transact import fold

log = logging.getLogger("treadle.gateway.plans")

IDLE_S = 30.0
"""What hinders a choice may end without a plan's moving: an agent is made usable again."""
AGAIN_S = 1.0
"""After an outage."""
GATHER_S = 0.1
"""Many plans that move at once are worth one look."""
PATIENCE_S = 5.0


class AutoFinalize:
    """Looks whenever a plan has moved."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._live: LivePlans = state.live
        self._projector: Projector = state.projector

    async def run(self) -> None:
        """Works for ever; outages are waited out."""
        await self._live.ready.wait()
        while True:
            self._live.stirred.clear()
            pause_s = IDLE_S
            try:
                await self.look()
            except (StoreUnavailable, NatsError, APIError, SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("plans can't be finalized now; trying again: %r", error)
                pause_s = AGAIN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._live.stirred.wait()
            await asyncio.sleep(GATHER_S)

    async def look(self) -> None:
        """Finalizes what is due, as far as that goes now."""
        await self._projector.at_least(self._live.seq, PATIENCE_S)
        current = select(ProjectionHead.generation).where(ProjectionHead.is_current).scalar_subquery()
        due = select(PlanRow.id).where(PlanRow.generation == current, PlanRow.is_due)
        async with self._state.db.read() as session:
            plans = list(await session.scalars(due.order_by(PlanRow.created_at, PlanRow.id)))
            held = set(await session.scalars(select(HeldFinalization.plan_id)))
        for plan in plans:
            await self._finalize(plan)
        if over := held - set(plans):
            await self._forget(over)

    async def _finalize(self, plan: str) -> None:
        try:
            await self._choose(plan)
        except (Refused, ProblemError) as error:
            await self._hold(plan, str(error))
        else:
            await self._forget({plan})

    async def _choose(self, plan: str) -> None:
        """Raises `Refused`, `ProblemError`, `StoreUnavailable`."""
        records = await self._state.store.read(plan, PLAN)
        known = fold(INITIAL, evolve, records).state
        names = list(known.candidates)
        if known.status != "drafted" or len(names) > 1 or any(asked.open for asked in known.requests.values()):
            return  # it is decided already, or has become a question
        asked = next(
            (
                (record.event, record.meta.actor)
                for record in reversed(records)
                if isinstance(record.event, PlanRequested) and names[0] in record.event.candidates
            ),
            None,
        )
        if asked is None or not asked[0].auto_finalize or asked[0].by_hand:
            return  # by hand anybody may have written it who can push to the repository
        caller = await self._caller(asked[1])
        accepted = await finalize(self._state, caller, plan, Choice(candidate=names[0]), by_itself=True)
        if accepted.changed:
            log.info("plan %s is finalized by itself, as %s asked", plan, caller.actor)

    async def _caller(self, actor: str) -> Caller:
        """Whoever asked, with what they may do now. Raises `Refused`."""
        name = actor.removeprefix("user:")
        async with self._state.db.read() as session:
            user = await session.scalar(select(User).where(User.name == name, User.is_frozen.is_(False)))
        if user is None:
            raise Refused(f"{actor}, who asked for the plan, may do nothing any more: finalize it yourself")
        return Caller(id=user.id, name=user.name, role=as_role(user.role))

    async def _hold(self, plan: str, why: str) -> None:
        async with self._state.db.write() as session:
            held = await session.get(HeldFinalization, plan)
            if held is not None and held.why == why:
                return
            if held is None:
                session.add(HeldFinalization(plan_id=plan, why=why, since=utc_now()))
            else:
                held.why = why
        log.warning("plan %s is not finalized by itself yet: %s", plan, why)

    async def _forget(self, plans: set[str]) -> None:
        async with self._state.db.write() as session:
            await session.execute(delete(HeldFinalization).where(HeldFinalization.plan_id.in_(plans)))
