"""An agent that a project or an open plan has stays; it can be deactivated at any time."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from sqlalchemy import delete, select

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from services.gateway.database.tables import PlanRow, Project, ProjectAgent, ProjectionHead
from shared import commands as c
from shared.bus import BusSettings, connect
from shared.clock import new_id, new_plan_id, utc_now
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta
from shared.transact import to_plan
from tests.gateway.gateway_process import GatewayProcess
from tests.nats_process import NatsServer

META = Meta(actor="user:ann")
PATIENCE_S = 60.0


@pytest.fixture
async def store(lone_nats: NatsServer) -> AsyncIterator[JetStreamStore]:
    nc = await connect(BusSettings(lone_nats.url, lone_nats.user, lone_nats.password), "test")
    yield JetStreamStore(nc)
    await nc.close()


@pytest.fixture
async def database(lone_gateway: GatewayProcess) -> AsyncIterator[Database]:
    """The running gateway's own."""
    opened = Database(checked_url(lone_gateway.database_url))
    yield opened
    await opened.close()


async def made_agent(gateway: GatewayProcess) -> str:
    async with gateway.as_user("ann") as ann:
        body = {"name": f"a-{secrets.token_hex(4)}"}
        type_ = (await ann.post("/api/agent-types", json={**body, "sdk_type": "claude"})).json()
        agent = await ann.post("/api/agents", json={**body, "agent_type_id": type_["id"]})
        assert agent.status_code == 201, agent.text
        return str(agent.json()["id"])


async def until_projected(database: Database, plan: str, status: str) -> None:
    deadline = monotonic() + PATIENCE_S
    query = select(PlanRow.status).join(ProjectionHead, ProjectionHead.generation == PlanRow.generation)
    while monotonic() < deadline:
        async with database.read() as session:
            if await session.scalar(query.where(ProjectionHead.is_current, PlanRow.id == plan)) == status:
                return
        await asyncio.sleep(0.02)  # between two looks
    raise AssertionError(f"plan {plan} did not become {status}")


async def test_an_agent_of_an_open_plan_is_deactivated_not_deleted(
    lone_gateway: GatewayProcess, store: JetStreamStore, database: Database
) -> None:
    agent_id, plan = await made_agent(lone_gateway), new_plan_id()
    spec = PlanSpec(
        name="Add login",
        tasks=(TaskSpec(code="T1", name="T1", assignee="coder"),),
        agents={"coder": AgentSpec(sdk_type="claude", agent_id=agent_id)},
    )
    await to_plan(store, plan, c.Draft(candidate="1", spec=spec, repo_url="u", base_commit="b"), META)
    await until_projected(database, plan, "drafted")
    async with lone_gateway.as_user("ann") as ann:
        refused = await ann.delete(f"/api/agents/{agent_id}")
        assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
        assert f"Add login ({plan})" in refused.json()["detail"]
        assert (await ann.patch(f"/api/agents/{agent_id}", json={"is_active": False})).json()["is_active"] is False
        await to_plan(store, plan, c.CancelPlan(), META)
        await to_plan(store, plan, c.ConfirmCancelled(), META)
        await until_projected(database, plan, "cancelled")
        assert (await ann.delete(f"/api/agents/{agent_id}")).status_code == 204
        assert (await ann.get(f"/api/agents/{agent_id}")).status_code == 404


async def test_an_agent_of_a_project_is_deactivated_not_deleted(
    lone_gateway: GatewayProcess, database: Database
) -> None:
    agent_id, project_id = await made_agent(lone_gateway), new_id()
    async with database.write() as session:
        session.add(
            Project(
                id=project_id, owner_id=lone_gateway.id_of("ann"), name="Shop", mode="auto",
                code_repo_url="https://h/a.git", collab_repo_url=None, collab_dir="plans", planning_mode="balanced",
                task_timeout_minutes=30.0, max_parallel=4, budget_usd=None, delivery="branch", setup=[], env_allow=[],
                created_at=utc_now(),
            )
        )  # fmt: skip
        await session.flush()
        session.add(ProjectAgent(project_id=project_id, agent_id=agent_id))
    async with lone_gateway.as_user("ann") as ann:
        refused = await ann.delete(f"/api/agents/{agent_id}")
        assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
        assert "project Shop" in refused.json()["detail"]
        assert (await ann.patch(f"/api/agents/{agent_id}", json={"is_active": False})).status_code == 200
        async with database.write() as session:
            await session.execute(delete(ProjectAgent).where(ProjectAgent.agent_id == agent_id))
        assert (await ann.delete(f"/api/agents/{agent_id}")).status_code == 204
