"""Credentials for looking into collaboration repositories are lent where there is something to be looked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from nats.aio.client import Client
from sqlalchemy import update

from services.gateway.credentials import stored
from services.gateway.credentials.keyring import Keyring
from services.gateway.credentials.watch import WatchLeases
from services.gateway.database.engine import Database
from services.gateway.database.tables import Project, User
from shared import commands as c
from shared.bus import BusSettings, connect
from shared.clock import new_id, new_plan_id, utc_now
from shared.jetstream import JetStreamStore
from shared.requests import CredentialsReply, GitCredentials, WatchCredentialsRequest, watch_context
from shared.sealed import NotForUs, SealKey
from shared.store import Meta
from shared.streams import declare_streams
from shared.subjects import WATCH_CREDENTIALS
from shared.transact import to_plan
from tests.nats_process import NatsServer

GIT = GitCredentials(kind="token", secret="ghp-canary-0123456789abcdef", username="ann")
META = Meta(actor="user:ann")
COLLAB = "https://plans.example.com/team/plans.git"
CODE = "https://code.example.com/team/shop.git"


class World:
    """A log, a database with somebody's project and its credentials, and the answerer."""

    def __init__(self, nc: Client, db: Database, keyring: Keyring) -> None:
        self.nc = nc
        self.db = db
        self.store = JetStreamStore(nc)
        self.keyring = keyring
        self.leases = WatchLeases(nc, self.store, db, keyring)
        self.owner, self.project = new_id(), new_id()
        self.key = SealKey()

    async def fill(self, mode: str = "manual") -> None:
        now = utc_now()
        async with self.db.write() as session:
            session.add(User(id=self.owner, name="ann", role="user", password_hash=None, created_at=now))
            await session.flush()
            session.add(
                Project(
                    id=self.project, owner_id=self.owner, name="Shop", mode=mode, code_repo_url=CODE,
                    collab_repo_url=COLLAB, collab_dir="plans", planning_mode="balanced", task_timeout_minutes=30.0,
                    max_parallel=4, budget_usd=None, delivery="branch", setup=[], env_allow=[], created_at=now,
                )
            )  # fmt: skip
            await stored.set_git_credentials(session, self.keyring, self.project, GIT, "user:ann", now)

    async def change(self, **columns: object) -> None:
        async with self.db.write() as session:
            await session.execute(update(Project).where(Project.id == self.project).values(**columns))

    async def ask(self, url: str = COLLAB, project: str | None = None, seal_to: str | None = None) -> CredentialsReply:
        request = WatchCredentialsRequest(
            project=self.project if project is None else project,
            seal_to=self.key.public if seal_to is None else seal_to,
            repo_url=url,
        )
        return await self.ask_raw(msgspec.json.encode(request))

    async def ask_raw(self, body: bytes) -> CredentialsReply:
        answer = await self.nc.request(WATCH_CREDENTIALS, body, timeout=60)
        assert GIT.secret.encode() not in answer.data
        return msgspec.json.decode(answer.data, type=CredentialsReply)

    async def request_by_hand(self) -> str:
        plan = new_plan_id()
        request = c.Request(
            by_hand=True, goal="G", project=self.project, mode="auto", planning_mode="balanced", agents=(),
            repo_url=CODE, base_commit="0" * 40,
        )  # fmt: skip
        await to_plan(self.store, plan, request, META)
        return plan


@pytest.fixture
async def world(lone_nats: NatsServer, db: Database, keyring: Keyring) -> AsyncIterator[World]:
    nc = await connect(BusSettings(lone_nats.url, lone_nats.user, lone_nats.password), "test")
    await declare_streams(nc.jetstream())
    made = World(nc, db, keyring)
    await made.fill()
    await made.leases.start()
    yield made
    await made.leases.stop()
    await nc.close()


async def test_a_manual_projects_credentials_are_sealed_to_whoever_watches_and_to_nobody_else(world: World) -> None:
    for url in (COLLAB, CODE):
        reply = await world.ask(url)
        opened = world.key.open(reply.sealed, watch_context(world.project, world.key.public))
        assert msgspec.json.decode(opened, type=GitCredentials) == GIT
    with pytest.raises(NotForUs):
        SealKey().open(reply.sealed, watch_context(world.project, world.key.public))
    with pytest.raises(NotForUs):
        world.key.open(reply.sealed, watch_context(new_id(), world.key.public))


async def test_an_auto_projects_are_lent_only_while_a_plan_is_asked_for_by_hand(world: World) -> None:
    await world.change(mode="auto")
    assert "nothing to be watched" in (await world.ask()).refused
    plan = await world.request_by_hand()
    assert not (await world.ask()).sealed
    await world.change(prompt_plan_id=plan)
    assert (await world.ask()).sealed
    failed = c.FailDraft(candidate="1", message="no tasks")
    await to_plan(world.store, plan, failed, META)
    assert (await world.ask()).sealed  # it is still waited for
    await to_plan(world.store, plan, c.CancelPlan(), META)
    assert "nothing to be watched" in (await world.ask()).refused


async def test_they_are_not_lent_for_another_host_than_the_projects(world: World) -> None:
    for url in (
        "https://evil.example.com/team/plans.git",
        "",
        "/srv/plans.git",
        "https://plans.example.com:8443/a.git",
    ):
        assert "moved to another host" in (await world.ask(url)).refused


async def test_a_frozen_owner_a_deleted_project_and_a_bad_key_get_none(world: World) -> None:
    assert "was deleted" in (await world.ask(project=new_id())).refused
    assert (await world.ask(project="x' OR 1=1")).refused
    assert "no key" in (await world.ask(seal_to="nonsense")).refused
    assert "no request" in (await world.ask_raw(b"{]")).refused
    async with world.db.write() as session:
        await session.execute(update(User).where(User.id == world.owner).values(is_frozen=True))
    assert "frozen" in (await world.ask()).refused


async def test_a_project_without_credentials_is_told_so(world: World) -> None:
    async with world.db.write() as session:
        await stored.clear(session, "git", world.project, "user:ann", utc_now())
    assert await world.ask() == CredentialsReply()
