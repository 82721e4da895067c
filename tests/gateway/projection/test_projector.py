"""The projection is the fold of the log up to its position, whatever dies and however many write."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from sqlalchemy import text, update

from services.gateway.database.engine import Database
from services.gateway.database.tables import ProjectionHead
from services.gateway.projection.folds import read_fold
from services.gateway.projection.projector import Projector
from shared import commands as c
from shared.events import TaskAbandoned
from shared.spec import TaskSpec
from shared.store import MemoryStore
from shared.transact import load_plan, to_plan, to_task
from tests.gateway.projection.histories import (
    ANN,
    DEADLINE_S,
    SH,
    GrowingStore,
    agree,
    found_rows,
    kill,
    running,
    simulated,
    spec_of,
    submit,
    until,
)

SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_projection_is_the_fold_of_the_log(db: Database, seed: int) -> None:
    store = GrowingStore(simulated(seed))
    rng = Random(seed)  # noqa: S311 - a run that can be made again is the point
    projector = Projector(store, db, store.end)
    async with running(projector.run()):
        while not store.is_whole:
            await store.grow(rng.choice((1, 3, 40)))
            await projector.at_least(len(store._log), DEADLINE_S)
            await agree(db, simulated(seed))
    assert projector.position == len(simulated(seed))


async def test_projectors_of_several_gateways_write_each_event_once(db: Database) -> None:
    log = simulated(1)
    stores = [GrowingStore(log) for _ in range(3)]
    projectors = [Projector(store, db, store.end) for store in stores]
    rng = Random(1)  # noqa: S311 - a run that can be made again is the point
    async with running(*(projector.run() for projector in projectors)):
        while not all(store.is_whole for store in stores):
            await rng.choice(stores).grow(rng.choice((1, 5, 20)))
            await agree(db, log)
        await asyncio.gather(*(projector.at_least(len(log), DEADLINE_S) for projector in projectors))
    await agree(db, log)


async def test_a_projector_that_is_killed_leaves_position_and_rows_in_agreement(db: Database) -> None:
    log = simulated(2)
    store = GrowingStore(log)
    rng = Random(2)  # noqa: S311 - a run that can be made again is the point
    while (await found_rows(db))[0] < len(log):
        task = asyncio.create_task(Projector(store, db, store.end).run())
        await store.grow(rng.choice((1, 10, 50)))
        for _ in range(rng.randrange(400)):  # anywhere in its work, a few hundred steps of the loop at the most
            await asyncio.sleep(0)
        if store.is_whole:
            await _position_is(db, len(log))
        await kill(task)
        await agree(db, log)


async def test_an_event_that_is_missing_from_the_fold_would_be_noticed(db: Database) -> None:
    log = simulated(3)
    store = GrowingStore(log, visible=len(log) - 1)
    projector = Projector(store, db, store.end)
    async with running(projector.run()):
        await projector.at_least(len(log) - 1, DEADLINE_S)
    async with db.write() as session:
        await session.execute(update(ProjectionHead).values(position=len(log)))
    with pytest.raises(AssertionError):
        await agree(db, log)


async def test_a_projection_of_another_log_is_filled_anew(db: Database) -> None:
    longer, shorter = sorted((simulated(1), simulated(4)), key=len, reverse=True)
    for log in (longer, shorter):
        store = GrowingStore(log, visible=len(log))
        projector = Projector(store, db, store.end)
        async with running(projector.run()):
            await projector.at_least(len(log), DEADLINE_S)
            await _position_is(db, len(log))
    await agree(db, shorter)


async def test_a_database_that_went_back_to_a_backup_is_brought_up_again(db: Database) -> None:
    log = simulated(5)
    store = GrowingStore(log, visible=len(log) // 2)
    projector = Projector(store, db, store.end)
    async with running(projector.run()):
        await projector.at_least(len(log) // 2, DEADLINE_S)
        async with db.write() as session:
            for table in ("task", "plan"):
                await session.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - our own names
            await session.execute(update(ProjectionHead).values(position=0))
        await store.grow(len(log))
        await _position_is(db, len(log))
    await agree(db, log)


async def test_a_database_that_is_away_is_waited_for(db: Database) -> None:
    log = simulated(0)
    store = GrowingStore(log, visible=10)
    projector = Projector(store, db, store.end)
    async with running(projector.run()) as (task,):
        await projector.at_least(10, DEADLINE_S)
        async with db.write() as session:
            await session.execute(text("ALTER TABLE projection_head RENAME TO gone"))
        await store.grow(len(log))
        with pytest.raises(TimeoutError):
            await projector.at_least(11, timeout_s=0.3)
        assert projector.lag_s > 0
        assert not task.done()
        async with db.write() as session:
            await session.execute(text("ALTER TABLE gone RENAME TO projection_head"))
        await projector.at_least(len(log), DEADLINE_S)

        async def is_up() -> bool:
            return projector.lag_s == 0

        await until(is_up)
    await agree(db, log)


async def test_a_task_that_stands_for_what_came_before_it_hands_its_waiting_on(db: Database) -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": (), "B": ("A",), "C": ("B",)}))
    projector = Projector(store, db, lambda: store.last_seq(plan, "_plan"))
    async with running(projector.run()):
        for step in (c.Abandon(), c.Redispatch()):
            decided = await to_task(store, plan, "B", step, ANN)
            await projector.at_least(decided.seq, DEADLINE_S)
            await agree(db, store._log)
        decided = await to_task(store, plan, "A", c.MarkComplete(), ANN)
        await projector.at_least(decided.seq, DEADLINE_S)
    await agree(db, store._log)
    assert any(isinstance(record.event, TaskAbandoned) for _, record in store._log)


async def test_tasks_that_come_after_the_finalizing_appear_whole_and_in_their_place(db: Database) -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": (), "B": ("A",)}))
    projector = Projector(store, db, lambda: store.last_seq(plan, "_plan"))
    digest = (await load_plan(store, plan)).state.digest
    added = TaskSpec(code="R", name="Resolve", assignee="sh", depends_on=("A",), resolves="B")
    async with running(projector.run()):
        extended = await to_plan(store, plan, c.Extend(tasks=(added,), before="B", reason="a conflict"), ANN)
        await projector.at_least(extended.seq, DEADLINE_S)
        await agree(db, store._log)
        half = await read_fold(store, plan)
        assert half is not None
        assert (half.view().tasks, half.board.codes, half.task("B").depends_on) == (2, ["A", "B", "_deliver"], ("A",))
        planned = await to_task(store, plan, "R", c.PlanTask(digest=digest, index=3, spec=added, agent=SH), ANN)
        await projector.at_least(planned.seq, DEADLINE_S)
        await agree(db, store._log)
        abandoned = await to_task(store, plan, "R", c.Abandon(), ANN)
        await projector.at_least(abandoned.seq, DEADLINE_S)
    await agree(db, store._log)
    whole = await read_fold(store, plan)
    assert whole is not None
    assert (whole.view().tasks, [task.code for task in whole.tasks()]) == (3, ["A", "R", "B", "_deliver"])
    assert [task.place for task in whole.tasks()] == [0, 1, 2, 3]
    assert (whole.task("B").depends_on, whole.task("R").depends_on) == (("A", "R"), ("A",))


async def test_hostile_names_do_not_stop_the_projection(db: Database) -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": ()}, name="nul \x00, emoji \U0001f9f5 " + "x" * 500))
    decided = await to_plan(store, plan, c.Pause(reason="\x00"), ANN)
    projector = Projector(store, db, lambda: store.last_seq(plan, "_plan"))
    async with running(projector.run()):
        await projector.at_least(decided.seq, DEADLINE_S)
    _, rows = await found_rows(db)
    assert len(rows[plan, ""][0]) == 200
    assert "\x00" not in rows[plan, ""][0]


async def _position_is(db: Database, position: int) -> None:
    async def is_there() -> bool:
        return (await found_rows(db))[0] == position

    await until(is_there)
