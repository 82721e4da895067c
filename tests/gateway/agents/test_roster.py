"""What a project's plans may give tasks to, and when an agent can't be given any."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from services.gateway.agents.availability import Availability, availability
from services.gateway.agents.in_use import names_agent
from services.gateway.agents.roster import roster, usable_agents_for, wrong_mode
from services.gateway.database.engine import Database
from services.gateway.database.tables import Agent, AgentType, Project, ProjectAgent, User
from shared.board import Board
from shared.clock import new_id, utc_now
from shared.events import PlanDrafted
from shared.spec import DEFAULT_MODEL, AgentSpec, PlanSpec, TaskSpec
from shared.spec import ProjectAgent as Listed
from shared.subjects import PLAN

NOW = utc_now()
HOUR = timedelta(hours=1)


class Team:
    """Accounts, agents and one auto project of `ann`'s."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.ann, self.bob, self.root, self.project = (new_id() for _ in range(4))

    async def fill(self, mode: str = "auto") -> None:
        async with self.db.write() as session:
            for id_, name, role in ((self.ann, "ann", "user"), (self.bob, "bob", "user"), (self.root, "root", "admin")):
                session.add(User(id=id_, name=name, role=role, password_hash=None, created_at=NOW))
            await session.flush()
            session.add(
                Project(
                    id=self.project, owner_id=self.ann, name="Shop", mode=mode, code_repo_url="https://h/a.git",
                    collab_repo_url=None, collab_dir="plans", planning_mode="balanced", task_timeout_minutes=30.0,
                    max_parallel=4, budget_usd=None, delivery="branch", setup=[], env_allow=[], created_at=NOW,
                )
            )  # fmt: skip

    async def type(self, owner: str, **fields: Any) -> str:
        type_id = new_id()
        values = {"sdk_type": "claude", "command": [], "models": [], "api_base_url": None, **fields}
        async with self.db.write() as session:
            session.add(AgentType(id=type_id, owner_id=owner, name=f"type {type_id}", created_at=NOW, **values))
        return type_id

    async def agent(self, owner: str, type_id: str, slug: str, *, joins: bool = True, **fields: Any) -> str:
        agent_id = new_id()
        values = {"name": slug.title(), "model": None, "created_at": NOW, **fields}
        async with self.db.write() as session:
            session.add(Agent(id=agent_id, owner_id=owner, slug=slug, agent_type_id=type_id, **values))
            await session.flush()
            if joins:
                session.add(ProjectAgent(project_id=self.project, agent_id=agent_id))
        return agent_id

    async def roster(self) -> dict[str, Listed]:
        async with self.db.read() as session:
            agents = await roster(session, await session.get_one(Project, self.project), NOW)
        assert len({agent.slug for agent in agents}) == len(agents)
        return {agent.slug: agent for agent in agents}


@pytest.fixture
async def team(db: Database) -> Team:
    made = Team(db)
    await made.fill()
    return made


async def test_each_agent_comes_with_all_that_a_runner_needs(team: Team) -> None:
    open_, narrow = await team.type(team.ann), await team.type(team.root, models=["m1", "m2"])
    command = await team.type(team.ann, sdk_type="command", command=["agent", "--quiet"])
    coder = await team.agent(team.ann, open_, "coder")
    await team.agent(team.ann, narrow, "first")
    await team.agent(team.ann, narrow, "second", model="m2")
    script = await team.agent(team.ann, command, "script")
    found = await team.roster()
    assert found["coder"].spec == AgentSpec(sdk_type="claude", model=DEFAULT_MODEL, agent_id=coder, agent_type_id=open_)
    assert (found["first"].spec.model, found["second"].spec.model) == ("m1", "m2")
    assert found["script"].spec == AgentSpec(
        sdk_type="command", command=("agent", "--quiet"), agent_id=script, agent_type_id=command
    )
    assert {agent.unusable for agent in found.values()} == {""}
    assert (found["coder"].name, found["coder"].type_name) == ("Coder", f"type {open_}")


async def test_who_can_not_work_says_why(team: Team) -> None:
    mine, bobs, admins = await team.type(team.ann), await team.type(team.bob), await team.type(team.root)
    manual = await team.type(team.ann, sdk_type=None)
    await team.agent(team.ann, mine, "idle", is_active=False)
    await team.agent(team.ann, mine, "over", expires_at=NOW)
    await team.agent(team.ann, mine, "soon-over", expires_at=NOW + HOUR)
    await team.agent(team.ann, mine, "resetting", short_resets_at=NOW + HOUR)
    await team.agent(team.ann, manual, "person")
    await team.agent(team.bob, bobs, "bobs")
    await team.agent(team.ann, bobs, "of-bobs-type")
    await team.agent(team.root, admins, "public")
    why = {slug: agent.unusable for slug, agent in (await team.roster()).items()}
    assert why["idle"] == "is inactive"
    assert why["over"] == f"expired on {NOW:%Y-%m-%d}"
    assert "project is auto" in why["person"]
    assert why["bobs"] == why["of-bobs-type"] == "is not open to the project's owner any more"
    assert {slug for slug in why if not why[slug]} == {"soon-over", "resetting", "public"}


async def test_a_frozen_admins_agents_rest(team: Team) -> None:
    await team.agent(team.ann, await team.type(team.root), "mine-of-theirs")
    async with team.db.write() as session:
        (await session.get_one(User, team.root)).is_frozen = True
    assert (await team.roster())["mine-of-theirs"].unusable == "belongs to an account that is frozen"


async def test_of_two_agents_with_one_slug_the_owners_keeps_it(team: Team) -> None:
    public = await team.agent(team.root, await team.type(team.root), "coder", created_at=NOW - HOUR)
    own = await team.agent(team.ann, await team.type(team.ann), "coder")
    found = await team.roster()
    assert found["coder"].spec.agent_id == own
    assert found[f"coder-{public[:6]}"].spec.agent_id == public


async def test_one_may_use_ones_own_agents_and_public_ones(team: Team) -> None:
    own = await team.agent(team.ann, await team.type(team.ann), "own", joins=False)
    public = await team.agent(team.root, await team.type(team.root), "public", joins=False)
    bobs = await team.agent(team.bob, await team.type(team.root), "bobs", joins=False)
    async with team.db.read() as session:
        assert set(await usable_agents_for(session, team.ann)) == {own, public}
        assert set(await usable_agents_for(session, team.bob)) == {bobs, public}
        assert set(await usable_agents_for(session, team.root)) == {public}


@pytest.mark.parametrize(
    ("sdk_type", "mode", "fits"),
    [("claude", "auto", True), ("command", "auto", True), (None, "auto", False), ("claude", "manual", False),
     (None, "manual", True)],
)  # fmt: skip
def test_auto_projects_take_auto_agents_and_manual_ones_people(sdk_type: str | None, mode: Any, fits: bool) -> None:
    why = wrong_mode(AgentType(sdk_type=sdk_type), mode)
    assert (why == "") == fits
    assert fits or f"the project is {mode}" in why


@pytest.mark.parametrize(
    ("short", "long", "expires", "expected"),
    [
        (None, None, None, Availability(state="available")),
        (NOW, NOW - HOUR, NOW + HOUR, Availability(state="available")),
        (NOW + HOUR, None, None, Availability(state="resetting", until=NOW + HOUR, limit="short")),
        (None, NOW + HOUR, None, Availability(state="resetting", until=NOW + HOUR, limit="long")),
        (NOW + HOUR, NOW + 2 * HOUR, None, Availability(state="resetting", until=NOW + 2 * HOUR, limit="long")),
        (NOW + 2 * HOUR, NOW + HOUR, None, Availability(state="resetting", until=NOW + 2 * HOUR, limit="short")),
        (NOW + HOUR, NOW + HOUR, NOW, Availability(state="expired")),
    ],
)  # fmt: skip
def test_an_end_counts_before_a_reset_and_the_later_reset_before_the_earlier(
    short: datetime | None, long: datetime | None, expires: datetime | None, expected: Availability
) -> None:
    assert availability(Agent(short_resets_at=short, long_resets_at=long, expires_at=expires), NOW) == expected


def test_a_drafted_plan_uses_the_agents_that_it_names() -> None:
    agent = AgentSpec(sdk_type="claude", agent_id=new_id())
    spec = PlanSpec(name="P", tasks=(TaskSpec(code="T1", name="T1", assignee="coder"),), agents={"coder": agent})
    drafted = PlanDrafted(candidate="1", spec=spec, repo_url="u", base_commit="b")
    board = Board()
    board.apply(PLAN, drafted, 1)
    assert names_agent(board, agent.agent_id)
    assert not names_agent(board, new_id())
