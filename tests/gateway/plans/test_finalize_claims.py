"""Finalizing at the same time at several gateways, held at the moment between the claim and the event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest
from litestar.datastructures import State

from services.gateway.accounts.access import Caller
from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as parsed
from services.gateway.database.migrate import migrate
from services.gateway.database.tables import Project, User
from services.gateway.plans import finalize as finalizing
from services.gateway.plans.commands import Accepted
from services.gateway.plans.finalize import Choice, finalize
from services.gateway.problems import ProblemError
from shared.clock import new_id, new_plan_id, utc_now
from shared.commands import Changed
from shared.events import Event, PlanDrafted
from shared.spec import AgentSpec, PlanSpec, TaskSpec, digest
from shared.store import MemoryStore, Meta, StoreUnavailable
from shared.subjects import PLAN
from shared.transact import load_plan
from tests.gateway.plans.made import COMMIT

PATIENCE_S = 60.0


class Log(MemoryStore):
    """One gateway's view of the log that all share. While it is held, an append waits before it is sent."""

    def __init__(self, shared: MemoryStore | None = None) -> None:
        super().__init__()
        if shared is not None:
            self.__dict__.update(shared.__dict__)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        self.reached.set()
        await self.go_on.wait()
        return await super().append(plan, entity, event, meta, expected=expected)


class Team:
    """One project, its owner, and as many gateways as are wanted."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.log = Log()
        self.project = new_id()
        self.ann = Caller(id=new_id(), name="ann", role="user")

    async def fill(self) -> None:
        now = utc_now()
        async with self.db.write() as session:
            session.add(User(id=self.ann.id, name="ann", role="user", password_hash=None, created_at=now))
            await session.flush()
            session.add(
                Project(
                    id=self.project, owner_id=self.ann.id, name="Shop", mode="auto", code_repo_url="https://h/a.git",
                    collab_repo_url=None, collab_dir="plans", planning_mode="balanced", task_timeout_minutes=30.0,
                    max_parallel=4, budget_usd=None, delivery="branch", setup=[], env_allow=[], created_at=now,
                )
            )  # fmt: skip

    async def draft(self, plan: str = "", name: str = "P") -> str:
        """A new plan, or another text for one."""
        plan = plan or new_plan_id()
        spec = PlanSpec(
            name=name,
            tasks=(TaskSpec(code="T1", name="T1", assignee="coder"),),
            agents={"coder": AgentSpec(sdk_type="claude")},
        )
        event = PlanDrafted(
            candidate="1", spec=spec, repo_url="https://h/a.git", base_commit=COMMIT, project=self.project
        )
        expected = await self.log.last_seq(plan, PLAN)
        await self.log.append(plan, PLAN, event, Meta(actor=self.ann.actor), expected=expected)
        return plan

    async def digest_of(self, plan: str) -> str:
        return digest((await load_plan(self.log, plan)).state.candidates["1"].spec)

    async def status(self, plan: str) -> str:
        return (await load_plan(self.log, plan)).state.status

    def gateway(self, log: Log | None = None) -> State:
        return State({"db": self.db, "store": log or self.log, "live": SimpleNamespace(seq=0)})

    async def choose(self, plan: str, seen: str | None = None) -> Accepted:
        """At a gateway that nothing holds."""
        return await finalize(self.gateway(), self.ann, plan, Choice("1", seen))

    async def held(self, plan: str, seen: str | None = None) -> tuple[Log, asyncio.Task[Accepted]]:
        """At a gateway that is halted now, with the project claimed and the event not sent."""
        log = Log(self.log)
        log.go_on.clear()
        task = asyncio.create_task(finalize(self.gateway(log), self.ann, plan, Choice("1", seen)))
        async with asyncio.timeout(PATIENCE_S):
            await log.reached.wait()
        return log, task

    async def is_in_the_way(self, plan: str, of: str) -> None:
        with pytest.raises(ProblemError, match=plan) as refused:
            await self.choose(of)
        assert refused.value.problem.code == "plan_in_progress"


@pytest.fixture
async def team(database_url: str) -> AsyncIterator[Team]:
    url = parsed(database_url)
    await migrate(url)
    db = Database(url)
    try:
        made = Team(db)
        await made.fill()
        yield made
    finally:
        await db.close()


async def test_a_refused_choice_does_not_give_back_the_claim_of_another_request(team: Team) -> None:
    first, second = await team.draft(), await team.draft()
    log, halted = await team.held(first)
    with pytest.raises(Changed):
        await team.choose(first, "0" * 64)
    await team.is_in_the_way(first, of=second)
    log.go_on.set()
    assert (await halted).changed
    await team.is_in_the_way(first, of=second)
    assert (await team.status(first), await team.status(second)) == ("finalizing", "drafted")


async def test_a_choice_that_is_refused_after_its_claim_leaves_it_to_whoever_shares_it(team: Team) -> None:
    first, second = await team.draft(), await team.draft()
    log, halted = await team.held(first)
    stale_log, stale = await team.held(first, await team.digest_of(first))
    await team.draft(first, "Another text")
    stale_log.go_on.set()
    with pytest.raises(Changed):
        await stale
    await team.is_in_the_way(first, of=second)
    log.go_on.set()
    assert (await halted).changed
    assert (await team.status(first), await team.status(second)) == ("finalizing", "drafted")


async def test_two_requests_for_one_plan_share_its_claim(team: Team) -> None:
    plan = await team.draft()
    log, halted = await team.held(plan)
    assert (await team.choose(plan)).changed
    log.go_on.set()
    assert not (await halted).changed
    assert await team.status(plan) == "finalizing"


async def test_who_was_halted_for_too_long_stores_nothing_and_the_claim_lapses(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await team.draft(), await team.draft()
    monkeypatch.setattr(finalizing, "WITHIN_S", 1.0)
    log, halted = await team.held(first)
    with pytest.raises(StoreUnavailable):
        await halted
    log.go_on.set()
    await team.is_in_the_way(first, of=second)
    monkeypatch.setattr(finalizing, "CLAIM_LAPSES_AFTER", timedelta(0))
    assert (await team.choose(second)).changed
    assert (await team.status(first), await team.status(second)) == ("drafted", "finalizing")


async def test_of_many_gateways_that_finalize_many_plans_one_plan_wins(team: Team) -> None:
    plans = [await team.draft() for _ in range(3)]

    async def one(plan: str, seen: str | None) -> None:
        with suppress(ProblemError, Changed):
            await team.choose(plan, seen)

    await asyncio.gather(*(one(plan, seen) for plan in plans for seen in (None, "0" * 64, None)))
    assert sorted([await team.status(plan) for plan in plans]) == ["drafted", "drafted", "finalizing"]
