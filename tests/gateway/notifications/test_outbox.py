"""Every event is told exactly once to whom it concerns, whatever dies and however many gateways write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update

from services.gateway.database.engine import Database
from services.gateway.database.tables import Delivery, ProjectionHead, User, Webhook
from services.gateway.notifications.happenings import Happening
from services.gateway.notifications.outbox import SINGLY_MAX, delivery_id
from services.gateway.projection.projector import Projector, current_head
from services.gateway.projection.rebuild import Rebuilder
from services.gateway.projection.views import PlanFold
from shared.store import MemoryStore
from tests.gateway.notifications.world import asked, deliveries, failed, happens, project, user, webhook
from tests.gateway.projection.histories import DEADLINE_S, GrowingStore, Log, kill, running, simulated, spec_of, submit


async def end_of(store: MemoryStore) -> int:
    return len(store._log)


def of_project(log: Log, project_id: str) -> Log:
    """The log, with all its plans in that project."""

    def moved(event: Any) -> Any:
        return msgspec.structs.replace(event, project=project_id) if hasattr(event, "project") else event

    return tuple((subject, msgspec.structs.replace(one, event=moved(one.event))) for subject, one in log)


def expected(log: Log, webhook_id: str) -> set[str]:
    """The ids of all that is to be told one by one."""
    folds: dict[str, PlanFold] = {}
    found: list[Happening] = []
    for _, record in log:
        fold = folds.setdefault(record.plan, PlanFold(record.plan, record))
        fold.apply(record)
        found += fold.happened
    return {delivery_id(webhook_id, one) for one in found}


async def found(db: Database) -> set[str]:
    rows = await deliveries(db)
    assert not any(row.more for row in rows), "the worlds are too small for floods"
    return {row.id for row in rows}


async def position(db: Database) -> int:
    async with db.read() as session:
        head = await current_head(session)
        return min(head.position, head.told) if head else 0


async def world(db: Database, seed: int) -> tuple[Log, str]:
    owner = await user(db, "ann")
    log = of_project(simulated(seed), await project(db, owner))
    return log, await webhook(db, owner)


async def projected(db: Database, store: MemoryStore, end: int | None = None) -> None:
    async def log_end() -> int:
        return await end_of(store)

    projector = Projector(store, db, log_end)
    async with running(projector.run()):
        await projector.at_least(end or await end_of(store), DEADLINE_S)


async def test_several_gateways_of_which_some_are_killed_tell_each_happening_once(db: Database) -> None:
    log, hook = await world(db, 4)
    wanted = expected(log, hook)
    assert len(wanted) > 5
    store, rng = GrowingStore(log), Random(3)  # noqa: S311 - a run that can be made again is the point
    while await position(db) < len(log):
        tasks = [asyncio.create_task(Projector(store, db, store.end).run()) for _ in range(2)]
        await store.grow(rng.choice((1, 10, 50)))
        for _ in range(rng.randrange(400)):
            await asyncio.sleep(0)
        if store.is_whole:
            await _reaches(db, len(log))
        for task in tasks:
            await kill(task)
    assert await found(db) == wanted


async def test_a_rebuild_tells_nothing_and_loses_nothing(db: Database) -> None:
    log, hook = await world(db, 4)
    store = GrowingStore(log, visible=len(log) // 2)
    await projected(db, store)
    before = await found(db)
    assert before == expected(log[: len(log) // 2], hook)
    # The new generation is ahead of what was told: no projector was there while these events came.
    await store.grow(len(log))
    await Rebuilder(store, db).run()
    assert await found(db) == before
    async with db.read() as session:
        head = await session.scalar(select(ProjectionHead).where(ProjectionHead.is_current))
    assert head is not None and (head.position, head.told) == (len(log), len(log) // 2)
    await projected(db, store)
    assert await found(db) == expected(log, hook)


async def test_what_is_filled_in_again_from_another_log_is_not_told_and_what_follows_is(db: Database) -> None:
    log, hook = await world(db, 4)
    owner_project = log[0][1]
    await projected(db, GrowingStore(log, visible=len(log)))
    async with db.write() as session:
        await session.execute(update(Webhook).values(after=len(log)))
    before = await found(db)
    other = MemoryStore()
    project_id = getattr(owner_project.event, "project", "")
    plan = await submit(other, spec_of({"T1": ()}), project=project_id)
    await happens(other, plan, "T1", failed("before"))
    await projected(db, other)
    assert await found(db) == before
    await happens(other, plan, "T1", failed("after"))
    await projected(db, other)
    new = [row for row in await deliveries(db, hook) if row.id not in before]
    assert [b"after" in row.notice for row in new] == [True]


async def test_a_database_from_a_backup_tells_again_under_the_same_ids(db: Database) -> None:
    log, _ = await world(db, 4)
    store = GrowingStore(log, visible=len(log))
    await projected(db, store)
    rows = await deliveries(db)
    async with db.write() as session:
        await session.execute(update(ProjectionHead).values(position=0, told=0))
        await session.execute(update(Delivery).values(status="delivered"))
    await projected(db, store)
    again = await deliveries(db)
    assert [row.id for row in again] == [row.id for row in rows]
    assert {row.status for row in again} == {"delivered"}, "what was sent is not sent again"


async def test_only_what_comes_after_a_webhook_is_heard_by_it(db: Database) -> None:
    owner = await user(db, "ann")
    store = MemoryStore()
    plan = await submit(store, spec_of({"T1": ()}), project=await project(db, owner))
    first = await happens(store, plan, "T1", failed("one"))
    hook = await webhook(db, owner, after=first)
    await happens(store, plan, "T1", failed("two"))
    await projected(db, store)
    assert [b"two" in row.notice for row in await deliveries(db, hook)] == [True]


Change = Callable[[Database, str], Awaitable[None]]


async def test_each_hears_of_their_own_and_of_what_they_chose(db: Database) -> None:
    ann, bob, admin = [
        await user(db, name, role) for name, role in (("ann", "user"), ("bob", "user"), ("adm", "admin"))
    ]
    shop, blog = await project(db, ann, "Shop"), await project(db, ann, "Blog")
    hooks = {
        "ann's": await webhook(db, ann),
        "ann's of the blog": await webhook(db, ann, project_ids=[blog]),
        "ann's of ends": await webhook(db, ann, events=["plan_finished"]),
        "ann's that is off": await webhook(db, ann, is_active=False),
        "bob's": await webhook(db, bob),
        "bob's that names ann's": await webhook(db, bob, project_ids=[shop]),
        "the admin's": await webhook(db, admin),
        "the admin's that names the shop": await webhook(db, admin, project_ids=[shop]),
    }
    frozen = await user(db, "frida")
    hooks["a frozen one's"] = await webhook(db, frozen)
    fridas = await project(db, frozen)
    async with db.write() as session:
        await session.execute(update(User).where(User.id == frozen).values(is_frozen=True))
    store = MemoryStore()
    for project_id in (shop, fridas, ""):
        plan = await submit(store, spec_of({"T1": ()}), project=project_id)
        await happens(store, plan, "T1", failed())
    await projected(db, store)
    told = {name for name, hook in hooks.items() if await deliveries(db, hook)}
    assert told == {"ann's", "the admin's that names the shop"}


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_flood_is_told_in_a_few_and_a_number(db: Database, at_once: bool) -> None:
    owner = await user(db, "ann")
    hook, store = await webhook(db, owner), MemoryStore()
    codes = [f"T{number}" for number in range(60)]
    plan = await submit(store, spec_of(dict.fromkeys(codes, ())), project=await project(db, owner))
    other = await submit(store, spec_of({"T1": ()}), project=await project(db, owner))
    for number, code in enumerate(codes):
        await happens(store, plan, code, failed(f"{code} broke"))
        if not at_once and number % 20 == 19:
            await projected(db, store)
    await happens(store, plan, "T0", asked())
    await happens(store, other, "T1", failed())
    await projected(db, store)
    rows = [row for row in await deliveries(db, hook) if row.plan_id == plan]
    singly = [row.task_code for row in rows if not row.more]
    assert singly == codes[:SINGLY_MAX]
    assert {row.event: row.more for row in rows if row.more} == {
        "needs_attention": len(codes) - SINGLY_MAX,
        "approval_waiting": 1,
    }
    assert all(row.due_at > row.created_at for row in rows if row.more), "it gathers first"
    assert len([row for row in await deliveries(db, hook) if row.plan_id == other]) == 1


async def test_a_number_that_was_sent_is_not_changed_any_more(db: Database) -> None:
    owner = await user(db, "ann")
    hook, store = await webhook(db, owner), MemoryStore()
    codes = [f"T{number}" for number in range(SINGLY_MAX + 3)]
    plan = await submit(store, spec_of(dict.fromkeys(codes, ())), project=await project(db, owner))
    for code in codes[:-1]:
        await happens(store, plan, code, failed())
    await projected(db, store)
    async with db.write() as session:
        await session.execute(update(Delivery).where(Delivery.more > 0).values(attempts=1))
    await happens(store, plan, codes[-1], failed())
    await projected(db, store)
    assert [row.more for row in await deliveries(db, hook) if row.more] == [2, 1]


async def _reaches(db: Database, end: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await position(db) < end:  # noqa: ASYNC110 - what is waited for is in a database
            await asyncio.sleep(0.005)
