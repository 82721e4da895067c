"""A rebuild fills a new generation beside the one that is read."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from sqlalchemy import func, insert, select, update

from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, ProjectionHead, TaskRow
from services.gateway.projection.projector import Projector
from services.gateway.projection.rebuild import AlreadyRebuilding, ProjectionStands, Rebuilder
from tests.gateway.projection.histories import (
    DEADLINE_S,
    GrowingStore,
    agree,
    found_rows,
    kill,
    running,
    simulated,
    until,
)


async def _filled(db: Database, store: GrowingStore) -> None:
    projector = Projector(store, db, store.end)
    async with running(projector.run()):
        await projector.at_least(await store.end(), DEADLINE_S)


async def _rebuilt(db: Database, rebuilder: Rebuilder) -> ProjectionStands:
    async def is_done() -> bool:
        return (await rebuilder.stands(0)).rebuilding is None

    await until(is_done)
    return await rebuilder.stands(0)


async def _rows_of_other_generations(db: Database) -> int:
    heads = select(ProjectionHead.generation).where(ProjectionHead.is_current)
    async with db.read() as session:
        counts = [
            await session.scalar(select(func.count()).select_from(table).where(table.generation.not_in(heads)))
            for table in (PlanRow, TaskRow, ProjectionHead)
        ]
    return sum(count or 0 for count in counts)


async def test_a_rebuild_makes_damaged_rows_whole_again(db: Database) -> None:
    store = GrowingStore(simulated(1), visible=len(simulated(1)))
    await _filled(db, store)
    async with db.write() as session:
        await session.execute(update(TaskRow).values(status="absent", view=b"{}"))
    with pytest.raises(AssertionError):
        await agree(db, simulated(1))
    await Rebuilder(store, db).run()
    await agree(db, simulated(1))
    assert await _rows_of_other_generations(db) == 0


async def test_a_rebuild_while_events_arrive_loses_and_doubles_none(db: Database) -> None:
    log = simulated(2)
    store = GrowingStore(log, visible=len(log) // 3)
    projector = Projector(store, db, store.end)
    rebuilder = Rebuilder(store, db)
    rng = Random(2)  # noqa: S311 - a run that can be made again is the point
    async with running(projector.run()):
        await projector.at_least(len(log) // 3, DEADLINE_S)
        await rebuilder.start()
        while not store.is_whole:
            await store.grow(rng.choice((1, 5)))
            await agree(db, log)
        assert (await _rebuilt(db, rebuilder)).generation == 2
        await projector.at_least(len(log), DEADLINE_S)
        await agree(db, log)
        await rebuilder.run()
    await agree(db, log)
    assert await _rows_of_other_generations(db) == 0


async def test_only_one_rebuild_runs_at_a_time(db: Database) -> None:
    store = GrowingStore(simulated(3), visible=len(simulated(3)))
    await _filled(db, store)
    here, elsewhere = Rebuilder(store, db), Rebuilder(store, db)
    await here.start()
    with pytest.raises(AlreadyRebuilding):
        await elsewhere.start()
    await _rebuilt(db, here)

    async def is_free() -> bool:
        try:
            await elsewhere.run()
        except AlreadyRebuilding:
            return False
        return True

    await until(is_free)
    await agree(db, simulated(3))


async def test_a_rebuild_that_is_killed_leaves_the_current_generation_and_the_next_one_cleans_up(db: Database) -> None:
    log = simulated(4)
    store = GrowingStore(log, visible=len(log))
    await _filled(db, store)
    rng = Random(4)  # noqa: S311 - a run that can be made again is the point
    for _ in range(8):
        task = asyncio.create_task(Rebuilder(store, db).run())
        for _ in range(rng.randrange(600)):  # anywhere in its work
            await asyncio.sleep(0)
        await kill(task)
        await agree(db, log)
        assert (await Rebuilder(store, db).stands(0)).rebuilding is None
    await Rebuilder(store, db).run()
    await agree(db, log)
    assert await _rows_of_other_generations(db) == 0


async def test_many_leftover_rows_are_removed(db: Database) -> None:
    store = GrowingStore(simulated(0), visible=len(simulated(0)))
    await _filled(db, store)
    row = {"generation": 7, "plan_id": "p", "place": 0, "name": "", "status": "", "agent": "", "seq": 0, "view": b""}
    async with db.write() as session:
        await session.execute(insert(TaskRow), [{**row, "code": f"T{i}"} for i in range(1200)])
    await Rebuilder(store, db).run()
    assert await _rows_of_other_generations(db) == 0
    assert (await found_rows(db))[0] == len(simulated(0))
