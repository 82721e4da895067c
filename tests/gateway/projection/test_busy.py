"""What keeps the suite of one's own machine up although nobody uses it, and for how long."""

from __future__ import annotations

from datetime import timedelta

from services.gateway.database.engine import Database
from services.gateway.database.tables import Delivery
from services.gateway.projection.projector import Projector
from services.gateway.projection.reads import BUSY_WITHIN, is_any_busy
from shared import commands as c
from shared.clock import new_id, new_plan_id, utc_now
from shared.store import MemoryStore
from shared.transact import to_plan
from tests.gateway.notifications.world import add, user, webhook
from tests.gateway.projection.histories import ANN, DEADLINE_S, GrowingStore, running
from tests.gateway.projection.test_drafts import wish

LATER = BUSY_WITHIN + timedelta(seconds=1)


async def busy(db: Database, after: timedelta = timedelta()) -> bool:
    async with db.read() as session:
        return await is_any_busy(session, utc_now() + after)


async def projected(db: Database, store: MemoryStore) -> None:
    grown = GrowingStore(tuple(store._log), visible=len(store._log))
    projector = Projector(grown, db, grown.end)
    async with running(projector.run()):
        await projector.at_least(len(store._log), DEADLINE_S)


async def test_a_plan_that_a_person_makes_is_looked_for_a_day_long_and_not_once_it_is_given_up(db: Database) -> None:
    store, plan = MemoryStore(), new_plan_id()
    await to_plan(store, plan, wish(by_hand=True, planner=None), ANN)
    await projected(db, store)
    assert await busy(db) and not await busy(db, LATER)
    await to_plan(store, plan, c.CancelPlan(reason="no"), ANN)
    await to_plan(store, plan, c.ConfirmCancelled(), ANN)
    await projected(db, store)
    assert not await busy(db)


async def test_a_notification_that_waits_is_sent_before_the_suite_stops(db: Database) -> None:
    assert not await busy(db)
    owner = await user(db, "ann")
    for is_active in (False, True):
        hook = await webhook(db, owner, is_active=is_active)
        now = utc_now()
        waiting = Delivery(
            id=new_id(), webhook_id=hook, event="plan_finished", notice=b"{}", status="waiting", due_at=now,
            created_at=now,
        )  # fmt: skip
        await add(db, waiting)
        assert await busy(db) is is_active
    assert not await busy(db, LATER)
