"""Whether the projection is what the log says is found out beside it, while it is read and written."""

from __future__ import annotations

import asyncio

import msgspec
from sqlalchemy import delete, func, insert, select, update

from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, ProjectionHead, TaskRow
from services.gateway.projection.projector import Projector
from services.gateway.projection.rebuild import Rebuilder, Verification
from tests.gateway.projection.histories import (
    DEADLINE_S,
    GrowingStore,
    agree,
    running,
    simulated,
    until,
)


async def _filled(db: Database, store: GrowingStore) -> None:
    projector = Projector(store, db, store.end)
    async with running(projector.run()):
        await projector.at_least(await store.end(), DEADLINE_S)


async def _verified(db: Database, store: GrowingStore, *, replace: bool = False) -> Verification:
    rebuilder = Rebuilder(store, db)
    await rebuilder.start_verifying(replace=replace)

    async def is_done() -> bool:
        return rebuilder.verification.state != "at work"

    await until(is_done)
    return rebuilder.verification


async def _generations(db: Database) -> list[int]:
    async with db.read() as session:
        return list(await session.scalars(select(ProjectionHead.generation)))


async def _rows(db: Database) -> int:
    async with db.read() as session:
        counts = [await session.scalar(select(func.count()).select_from(table)) for table in (PlanRow, TaskRow)]
    return sum(count or 0 for count in counts)


async def test_a_projection_that_nobody_touched_agrees_and_stays_where_it_is(db: Database) -> None:
    store = GrowingStore(simulated(1), visible=len(simulated(1)))
    await _filled(db, store)
    rows = await _rows(db)
    found = await _verified(db, store)
    assert (found.state, found.position, found.rows, found.first) == ("agrees", len(simulated(1)), rows, ())
    assert rows > 1
    assert await _generations(db) == [1]
    assert await _rows(db) == rows, "what was made to compare with is gone"


async def test_what_was_changed_by_hand_is_named_with_both_values(db: Database) -> None:
    store = GrowingStore(simulated(1), visible=len(simulated(1)))
    await _filled(db, store)
    async with db.write() as session:
        row = (await session.scalars(select(TaskRow).order_by(TaskRow.plan_id, TaskRow.code).limit(1))).one()
        view = msgspec.json.decode(row.view)
        before = (row.status, view["summary"])
        row.status = "odd"
        row.view = msgspec.json.encode({**view, "summary": "it never said so"})
        plan, code = row.plan_id, row.code
    found = await _verified(db, store)
    assert (found.state, found.differences, found.replaced) == ("differs", 2, False)
    assert [(one.plan, one.task, one.field, one.stored, one.right) for one in found.first] == [
        (plan, code, "status", '"odd"', f'"{before[0]}"'),
        (plan, code, "view.summary", '"it never said so"', msgspec.json.encode(before[1]).decode()),
    ]
    assert await _generations(db) == [1], "the old one stays"
    async with db.read() as session:
        assert (
            await session.scalar(select(TaskRow.status).where(TaskRow.plan_id == plan, TaskRow.code == code)) == "odd"
        )


async def test_rows_that_are_missing_or_too_many_are_found(db: Database) -> None:
    store = GrowingStore(simulated(2), visible=len(simulated(2)))
    await _filled(db, store)
    async with db.write() as session:
        row = (await session.scalars(select(TaskRow).limit(1))).one()
        gone = (row.plan_id, row.code)
        values = {column.name: getattr(row, column.name) for column in TaskRow.__table__.columns}
        await session.execute(insert(TaskRow).values({**values, "code": "ZZ"}))
        await session.execute(delete(TaskRow).where(TaskRow.plan_id == gone[0], TaskRow.code == gone[1]))
    found = await _verified(db, store)
    assert found.differences == len(found.first) == 2
    assert {(one.plan, one.task, one.stored, one.right) for one in found.first} == {
        (*gone, "no row", "a row"),
        (gone[0], "ZZ", "a row", "no row"),
    }


async def test_where_that_is_wanted_the_right_rows_take_the_wrong_ones_place(db: Database) -> None:
    store = GrowingStore(simulated(3), visible=len(simulated(3)))
    await _filled(db, store)
    async with db.write() as session:
        await session.execute(update(PlanRow).values(name="wrong"))
    found = await _verified(db, store, replace=True)
    assert (found.state, found.replaced) == ("differs", True)
    await agree(db, simulated(3))
    assert (await _verified(db, store, replace=True)).replaced is False, "what is right is not exchanged"


async def test_an_untouched_projection_agrees_while_events_arrive(db: Database) -> None:
    log = simulated(2)
    store = GrowingStore(log, visible=len(log) // 4)
    projector = Projector(store, db, store.end)
    positions: list[int] = []

    async def grow() -> None:
        while not store.is_whole:
            await store.grow(1)
            await projector.at_least(await store.end(), DEADLINE_S)

    async with running(projector.run()):
        await projector.at_least(len(log) // 4, DEADLINE_S)
        growing = asyncio.create_task(grow())
        while not growing.done():
            found = await _verified(db, store)
            assert (found.state, found.first) == ("agrees", ())
            positions.append(found.position)
        await growing
        await projector.at_least(len(log), DEADLINE_S)
        positions.append((await _verified(db, store)).position)
    assert positions[0] < len(log), "it was verified while events arrived"
    assert positions == sorted(positions)
    assert positions[-1] == len(log)
