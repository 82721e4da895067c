"""Lists: pages that neither skip nor repeat while rows come and go, filters, and who sees what."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
import pytest
from litestar.datastructures import State
from sqlalchemy import delete, insert, select

from services.gateway.accounts.access import Caller
from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, Project, ProjectionHead, TaskRow, User
from services.gateway.paging import Asked, Order
from services.gateway.problems import ProblemError
from services.gateway.projection import reads
from services.gateway.projection.live import LivePlans
from services.gateway.projection.projector import Projector
from services.gateway.projection.reads import PlanFilters, TaskFilters, fresh
from shared import commands as c
from shared.clock import new_id, new_plan_id, utc_now
from shared.store import MemoryStore
from shared.transact import to_plan, to_task
from tests.gateway.projection.histories import ANN, running, spec_of, submit, until

ADMIN = Caller(id=new_id(), name="root", role="admin")
OLGA = Caller(id=new_id(), name="olga", role="user")
PAVEL = Caller(id=new_id(), name="pavel", role="user")
BEGINNING = datetime(2025, 1, 1, tzinfo=UTC)


def _plan(number: int, **more: Any) -> dict[str, Any]:
    row = {
        "generation": 1,
        "id": new_plan_id(),
        "project_id": "",
        "name": f"name {number % 7}",
        "status": "active",
        "standing": "running",
        "is_busy": True,
        "created_at": BEGINNING + timedelta(seconds=number // 3),
        "updated_at": BEGINNING,
        "seq": number,
        "view": b"{}",
        **more,
    }
    return {**row, "view": msgspec.json.encode({"plan": row["id"]})}


def _cursor(body: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(body)).rstrip(b"=").decode()


async def _fill(db: Database, rows: list[dict[str, Any]]) -> None:
    async with db.write() as session:
        await session.execute(insert(ProjectionHead).values(generation=1, position=0, is_current=True))
        await session.execute(insert(PlanRow), rows)


async def _plans(db: Database, asked: Asked, caller: Caller = ADMIN, **filters: str) -> tuple[list[str], str | None]:
    async with db.read() as session:
        page = msgspec.json.decode(await reads.list_plans(session, caller, PlanFilters(**filters), asked))
    return [item["plan"] for item in page["items"]], page["next"]


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "name", "-name", "seq", "-seq", "standing", None])
async def test_pages_neither_skip_nor_repeat_while_rows_come_and_go(db: Database, sort: str | None) -> None:
    rng = Random(str(sort))  # noqa: S311 - a run that can be made again is the point
    staying = [_plan(number) for number in range(60)]
    leaving = [_plan(number) for number in range(20)]
    await _fill(db, [*staying, *leaving])
    seen: list[str] = []
    cursor: str | None = None
    while True:
        found, cursor = await _plans(db, Asked(cursor=cursor, limit=rng.randint(1, 9), sort=sort))
        seen += found
        if cursor is None:
            break
        async with db.write() as session:
            await session.execute(insert(PlanRow), [_plan(rng.randrange(60))])
            if leaving:
                await session.execute(delete(PlanRow).where(PlanRow.id == leaving.pop()["id"]))
    assert len(seen) == len(set(seen))
    order = [plan for plan in seen if plan in {row["id"] for row in staying}]
    key = (sort or "-created_at").removeprefix("-")
    expected = sorted(staying, key=lambda row: (row[key], row["id"]), reverse=(sort or "-").startswith("-"))
    assert order == [row["id"] for row in expected]


async def test_bad_cursors_and_orders_are_refused_in_words(db: Database) -> None:
    await _fill(db, [_plan(number) for number in range(5)])
    _, good = await _plans(db, Asked(limit=2))
    assert good is not None
    hostile = [
        ["-created_at", "no time", "p"],
        ["-created_at", "2025-01-01T00:00:00", "p"],
        ["-created_at", "0001-01-01T00:00:00+14:00", "p"],
        ["-created_at", None, "p"],
        ["-created_at", BEGINNING, "nul\x00"],
        ["-created_at", BEGINNING, 7],
        ["created_at", BEGINNING, "p"],
        ["-created_at"],
    ]
    bad = ["", "!", "x" * 99, good[:-3], good + "AAAA"]
    bad += [_cursor(one) for one in hostile]
    for cursor in bad:
        with pytest.raises(ProblemError) as refused:
            await _plans(db, Asked(cursor=cursor))
        assert refused.value.problem.code == "bad_cursor", cursor
    numbers = [_cursor(["seq", number, "p"]) for number in (2**63, -(2**64))]
    for cursor in numbers:
        with pytest.raises(ProblemError):
            await _plans(db, Asked(cursor=cursor, sort="seq"))
    with pytest.raises(ProblemError, match="created_at, name") as refused:
        await _plans(db, Asked(sort="view"))
    assert refused.value.problem.code == "bad_sort"


async def test_an_order_by_a_small_number_refuses_one_that_the_column_cannot_hold(db: Database) -> None:
    order = Order({"place": TaskRow.place}, id_=TaskRow.code, default="place")
    cursor = _cursor(["place", 2**31, "T1"])
    async with db.read() as session:
        with pytest.raises(ProblemError):
            await order.fetch(session, select(TaskRow), Asked(cursor=cursor))


async def test_plans_are_filtered_and_shown_to_their_projects_owner_and_to_admins(db: Database) -> None:
    projects = {caller.name: new_id() for caller in (OLGA, PAVEL)}
    async with db.write() as session:
        for caller in (OLGA, PAVEL):
            session.add(User(id=caller.id, name=caller.name, role="user", password_hash=None, created_at=utc_now()))
            await session.flush()
            session.add(_project(projects[caller.name], caller.id))
    olgas = [_plan(n, project_id=projects["olga"], standing=["running", "paused"][n % 2]) for n in range(4)]
    pavels = [_plan(n, project_id=projects["pavel"]) for n in range(3)]
    old = [_plan(9)]
    await _fill(db, [*olgas, *pavels, *old])
    for caller, shown in ((ADMIN, [*olgas, *pavels, *old]), (OLGA, olgas), (PAVEL, pavels)):
        found, _ = await _plans(db, Asked(), caller)
        assert set(found) == {row["id"] for row in shown}
        async with db.read() as session:
            for row in (*olgas, *pavels, *old):
                if row in shown:
                    assert (await reads.find_plan(session, caller, row["id"])).seq == row["seq"]
                else:
                    with pytest.raises(ProblemError, match="does not exist here"):
                        await reads.find_plan(session, caller, row["id"])
    assert len((await _plans(db, Asked(), standing="paused"))[0]) == 2
    assert (await _plans(db, Asked(), OLGA, project=projects["pavel"]))[0] == []
    assert (await _plans(db, Asked(), status="nul\x00"))[0] == []


def _project(id_: str, owner_id: str) -> Project:
    return Project(
        id=id_,
        owner_id=owner_id,
        name="project",
        goal="",
        mode="auto",
        code_repo_url="https://example.org/team/code.git",
        collab_repo_url=None,
        collab_dir="treadle",
        planning_mode="import",
        task_timeout_minutes=30.0,
        max_parallel=4,
        budget_usd=None,
        delivery="branch",
        setup=[],
        env_allow=[],
        created_at=utc_now(),
    )


@asynccontextmanager
async def gateway_of(db: Database, store: MemoryStore) -> AsyncIterator[State]:
    async def end() -> int:
        return len(store._log)

    live, projector = LivePlans(store, end), Projector(store, db, end)
    async with running(live.run(), projector.run()):
        await live.ready.wait()
        yield State({"db": db, "live": live, "projector": projector})


async def test_a_read_waits_until_it_has_the_wanted_event(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": ()}))
    async with gateway_of(db, store) as state:
        for _ in range(20):
            for command in (c.Pause(), c.Resume()):
                seq = (await to_plan(store, plan, command, ANN)).seq
                await fresh(state, seq)
                async with db.read() as session:
                    assert (await reads.find_plan(session, ADMIN, plan)).seq >= seq
        with pytest.raises(ProblemError) as refused:
            await fresh(state, seq + 1)
        assert (refused.value.problem.status, refused.value.problem.code) == (400, "bad_request")
    seq = (await to_plan(store, plan, c.Pause(), ANN)).seq  # nothing follows the log any more
    monkeypatch.setattr(reads, "FRESH_TIMEOUT_S", 0.1)
    with pytest.raises(ProblemError) as late:
        await fresh(state, seq)
    assert (late.value.problem.status, late.value.problem.code) == (503, "not_fresh")
    assert late.value.headers == {"Retry-After": "2"}


async def test_a_plans_tasks_are_the_same_from_memory_and_from_the_database(db: Database) -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({f"T{i}": (f"T{i - 1}",) if i % 5 else () for i in range(30)}))
    asked = Asked(limit=10)
    async with gateway_of(db, store) as state:
        for i in range(0, 30, 3):
            seq = (await to_task(store, plan, f"T{i}", c.Abandon(), ANN)).seq
            await fresh(state, seq)
            await state.live.fold(plan)
            await state.live.at_least(seq)
            quick = await reads.tasks_in_memory(state, ADMIN, plan, TaskFilters(), asked)
            assert quick is not None
            async with db.read() as session:
                row = await reads.find_plan(session, ADMIN, plan)
                assert await reads.list_tasks(session, row, TaskFilters(), asked) == quick
        assert quick is not None
        first = msgspec.json.decode(quick)
        async with db.read() as session:
            rest = await reads.list_tasks(session, row, TaskFilters(), Asked(cursor=first["next"], limit=1000))
            abandoned = await reads.list_tasks(session, row, TaskFilters(status="abandoned"), Asked(limit=1000))
        places = [item["place"] for page in (first, msgspec.json.decode(rest)) for item in page["items"]]
        assert places == list(range(31))
        assert len(msgspec.json.decode(abandoned)["items"]) == 10
        with pytest.raises(ProblemError):
            await reads.tasks_in_memory(state, OLGA, plan, TaskFilters(), asked)
        for other in (Asked(sort="code"), Asked(cursor=first["next"])):
            assert await reads.tasks_in_memory(state, ADMIN, plan, TaskFilters(), other) is None


async def test_the_tasks_of_a_plan_that_is_read_often_come_from_memory(db: Database) -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": ()}))
    async with gateway_of(db, store) as state:
        await fresh(state, len(store._log))

        async def is_in_memory() -> bool:
            return (await reads.tasks_in_memory(state, ADMIN, plan, TaskFilters(), Asked())) is not None

        assert not await is_in_memory()
        await until(is_in_memory)
