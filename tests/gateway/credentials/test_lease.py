"""Credentials are lent to the process that holds a live lease, and to nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client
from sqlalchemy import delete, update

from services.gateway.credentials import stored
from services.gateway.credentials.answering import AT_ONCE_MAX
from services.gateway.credentials.keyring import Keyring
from services.gateway.credentials.lease import CredentialLeases
from services.gateway.database.engine import Database
from services.gateway.database.tables import AgentType, Credential, Project, User
from shared import commands as c
from shared.bus import BusSettings, connect
from shared.clock import new_id, new_plan_id, utc_now
from shared.events import TaskStarted
from shared.jetstream import JetStreamStore
from shared.requests import (
    AgentCredentials,
    CredentialKind,
    CredentialsReply,
    CredentialsRequest,
    GitCredentials,
    lease_context,
)
from shared.sealed import NotForUs, SealKey
from shared.spec import DEFAULT_MODEL, DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta
from shared.streams import declare_streams
from shared.subjects import CREDENTIALS, PLAN
from shared.transact import load_plan, load_task, to_plan, to_task
from tests.gateway.credentials.keyring_file import write_keyring
from tests.nats_process import NatsServer

API_KEY = "sk-canary-leased-0123456789"
BASE_URL = "https://models.example.com"
GIT = GitCredentials(kind="token", secret="ghp-canary-0123456789abcdef", username="ann")
META = Meta(actor="user:ann")
PATIENCE_S = 60.0


class World:
    """A log, a database with somebody's project, agent type and credentials, and the answerer between them."""

    def __init__(self, nc: Client, db: Database, keyring: Keyring) -> None:
        self.nc = nc
        self.db = db
        self.store = JetStreamStore(nc)
        self.keyring = keyring
        self.leases = CredentialLeases(nc, self.store, db, keyring)
        self.owner, self.admin, self.type_id, self.project = new_id(), new_id(), new_id(), new_id()

    async def fill(self) -> None:
        now = utc_now()
        async with self.db.write() as session:
            for id_, name, role in ((self.owner, "ann", "user"), (self.admin, "root", "admin")):
                session.add(User(id=id_, name=name, role=role, password_hash=None, created_at=now))
            await session.flush()
            session.add(
                AgentType(
                    id=self.type_id, owner_id=self.owner, name="Claude", sdk_type="claude", command=[],
                    api_base_url=BASE_URL, models=[], created_at=now,
                )
            )  # fmt: skip
            session.add(
                Project(
                    id=self.project, owner_id=self.owner, name="Shop", mode="auto", code_repo_url="https://h/a.git",
                    collab_repo_url=None, collab_dir="plans", planning_mode="balanced", task_timeout_minutes=30.0,
                    max_parallel=4, budget_usd=None, delivery="branch", setup=[], env_allow=[], created_at=now,
                )
            )  # fmt: skip
            await stored.set_api_key(session, self.keyring, self.type_id, API_KEY, "user:ann", now)
            await stored.set_git_credentials(session, self.keyring, self.project, GIT, "user:ann", now)

    async def plan(self, *, type_id: str | None = None, project: str | None = None) -> str:
        """A plan of one task that is dispatched, and its `_deliver`."""
        plan_id = new_plan_id()
        type_id = self.type_id if type_id is None else type_id
        project = self.project if project is None else project
        agent = AgentSpec(sdk_type="claude", model=DEFAULT_MODEL, agent_id=new_id(), agent_type_id=type_id)
        spec = PlanSpec(
            name="P", tasks=(TaskSpec(code="T1", name="T1", assignee="coder"),), agents={"coder": agent}
        )  # fmt: skip
        draft = c.Draft(candidate="1", spec=spec, repo_url="https://h/a.git", base_commit="0" * 40, project=project)
        for command in (draft, c.Finalize(candidate="1")):
            await to_plan(self.store, plan_id, command, META)
        digest = (await load_plan(self.store, plan_id)).state.digest
        deliver = TaskSpec(code=DELIVER, name="Deliver", assignee="", budget_usd=0.0)
        for index, (task, doer) in enumerate(((spec.tasks[0], agent), (deliver, None))):
            planned = c.PlanTask(digest=digest, index=index, spec=task, agent=doer)
            await to_task(self.store, plan_id, task.code, planned, META)
        await to_plan(self.store, plan_id, c.ConfirmFinalized(digest=digest), META)
        for code, doer in (("T1", agent), (DELIVER, None)):
            await self.dispatch(plan_id, code, doer, project)
        return plan_id

    async def dispatch(self, plan_id: str, code: str, agent: AgentSpec | None, project: str) -> None:
        revision = (await load_task(self.store, plan_id, code)).state.revision
        dispatch = c.Dispatch(
            now=utc_now(), revision=revision, prompt="Do it.", agent=agent, project=project,
            repo_url="https://h/a.git", base_commit="0" * 40, heads=(), abandoned=(), plan_name="P", setup=(),
            env_allow=(),
        )  # fmt: skip
        await to_task(self.store, plan_id, code, dispatch, META)

    async def start(self, plan_id: str, seal_to: str, code: str = "T1", *, supersede: int | None = None) -> int:
        """The lease's number."""
        dispatch = (await load_task(self.store, plan_id, code)).state.dispatch
        start = c.Start(
            phase="open", dispatch=dispatch, runner="r1", execution=new_id(), supersede_lease=supersede, seal_to=seal_to
        )
        return (await to_task(self.store, plan_id, code, start, META)).state.lease

    async def ask(self, plan_id: str, lease: int, kind: CredentialKind = "agent", code: str = "T1") -> CredentialsReply:
        request = CredentialsRequest(plan=plan_id, task=code, lease=lease, kind=kind)
        return await self.ask_raw(msgspec.json.encode(request))

    async def ask_raw(self, body: bytes) -> CredentialsReply:
        answer = await self.nc.request(CREDENTIALS, body, timeout=PATIENCE_S)
        return msgspec.json.decode(answer.data, type=CredentialsReply)


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


async def test_the_holder_of_a_lease_gets_its_agents_key(world: World) -> None:
    mine, plan = SealKey(), await world.plan()
    lease = await world.start(plan, mine.public)
    reply = await world.ask(plan, lease)
    assert not reply.refused
    assert API_KEY.encode() not in reply.sealed
    opened = mine.open(reply.sealed, lease_context(plan, "T1", lease, "agent"))
    assert msgspec.json.decode(opened, type=AgentCredentials) == AgentCredentials(api_key=API_KEY, base_url=BASE_URL)


@pytest.mark.parametrize("code", ["T1", DELIVER])
async def test_every_task_of_a_project_gets_its_git_credentials(world: World, code: str) -> None:
    mine, plan = SealKey(), await world.plan()
    lease = await world.start(plan, mine.public, code)
    reply = await world.ask(plan, lease, "git", code)
    opened = mine.open(reply.sealed, lease_context(plan, code, lease, "git"))
    assert msgspec.json.decode(opened, type=GitCredentials) == GIT


async def test_nobody_else_can_open_an_answer_or_pass_it_off_as_another(world: World) -> None:
    mine, plan = SealKey(), await world.plan()
    lease = await world.start(plan, mine.public)
    sealed = (await world.ask(plan, lease)).sealed
    with pytest.raises(NotForUs):
        SealKey().open(sealed, lease_context(plan, "T1", lease, "agent"))
    for other in (lease_context(plan, "T1", lease + 1, "agent"), lease_context(plan, "T1", lease, "git")):
        with pytest.raises(NotForUs):
            mine.open(sealed, other)


async def test_a_superseded_leases_holder_gets_nothing_and_its_successor_does(world: World) -> None:
    old, new, plan = SealKey(), SealKey(), await world.plan()
    first = await world.start(plan, old.public)
    second = await world.start(plan, new.public, supersede=first)
    assert "is not live" in (await world.ask(plan, first)).refused
    reply = await world.ask(plan, second)
    assert new.open(reply.sealed, lease_context(plan, "T1", second, "agent"))
    with pytest.raises(NotForUs):
        old.open(reply.sealed, lease_context(plan, "T1", second, "agent"))


@pytest.mark.parametrize("lease", [0, 2, -1, 10**9])
async def test_a_number_that_is_not_the_live_lease_is_refused(world: World, lease: int) -> None:
    plan = await world.plan()
    assert await world.start(plan, SealKey().public) == 1
    reply = await world.ask(plan, lease)
    assert "is not live" in reply.refused
    assert not reply.sealed


async def test_a_task_that_was_never_started_lends_nothing(world: World) -> None:
    plan = await world.plan()
    assert "the task is queued" in (await world.ask(plan, 0)).refused
    assert "the task is absent" in (await world.ask(plan, 1, code="T9")).refused
    assert "the task is absent" in (await world.ask(new_plan_id(), 1)).refused


async def test_a_lease_that_ended_lends_nothing(world: World) -> None:
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    await to_task(world.store, plan, "T1", c.Release(lease=lease, reason="shutting down"), META)
    assert "is not live" in (await world.ask(plan, lease)).refused


async def test_a_task_that_is_being_cancelled_still_gets_its_git_credentials(world: World) -> None:
    mine, plan = SealKey(), await world.plan()
    lease = await world.start(plan, mine.public)
    await to_task(world.store, plan, "T1", c.CancelTask(phase="open"), META)
    assert mine.open((await world.ask(plan, lease, "git")).sealed, lease_context(plan, "T1", lease, "git"))


@pytest.mark.parametrize("seal_to", ["", "no key", "AAAA"])
async def test_without_a_usable_public_key_there_is_no_answer_to_open(world: World, seal_to: str) -> None:
    plan = await world.plan()
    lease = await world.start(plan, seal_to)
    reply = await world.ask(plan, lease)
    assert "gave no key" in reply.refused
    assert not reply.sealed


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"\xff" * 10, b"[" * 100_000, b'{"plan": "p", "task": "T1", "lease": 1}',
        b'{"plan": "*", "task": "T1", "lease": 1, "kind": "agent"}',
        b'{"plan": "paaaaaaaaaaaa", "task": "a.b", "lease": 1, "kind": "agent"}',
        b'{"plan": "paaaaaaaaaaaa", "task": ">", "lease": 1, "kind": "agent"}',
        b'{"plan": "paaaaaaaaaaaa", "task": "T1", "lease": 1, "kind": "root"}',
        b'{"plan": "paaaaaaaaaaaa", "task": "_plan", "lease": 1, "kind": "git"}',
    ],
)  # fmt: skip
async def test_what_is_no_request_is_refused_and_the_next_one_answered(world: World, body: bytes) -> None:
    assert (await world.ask_raw(body)).refused
    mine, plan = SealKey(), await world.plan()
    assert (await world.ask(plan, await world.start(plan, mine.public))).sealed


async def test_the_plans_own_entity_has_no_lease(world: World) -> None:
    plan = await world.plan()
    assert "a plan has no lease" in (await world.ask(plan, 1, code=PLAN)).refused


@pytest.mark.parametrize("kind", ["agent", "git"])
async def test_a_frozen_owners_credentials_stay_here(world: World, kind: CredentialKind) -> None:
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    assert (await world.ask(plan, lease, kind)).sealed
    async with world.db.write() as session:
        await session.execute(update(User).where(User.id == world.owner).values(is_frozen=True))
    reply = await world.ask(plan, lease, kind)
    assert "is frozen" in reply.refused
    assert not reply.sealed


async def test_deleted_types_and_projects_are_refused_in_words(world: World) -> None:
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    async with world.db.write() as session:
        await session.execute(delete(AgentType).where(AgentType.id == world.type_id))
        await session.execute(delete(Project).where(Project.id == world.project))
    assert "was deleted" in (await world.ask(plan, lease)).refused
    assert "was deleted" in (await world.ask(plan, lease, "git")).refused


async def test_a_plan_gets_no_credentials_for_a_host_that_its_project_has_left(world: World) -> None:
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    async with world.db.write() as session:
        await session.execute(update(Project).values(code_repo_url="https://other/a.git"))
    assert "has moved to another host" in (await world.ask(plan, lease, "git")).refused
    async with world.db.write() as session:
        await session.execute(update(Project).values(collab_repo_url="https://h/b.git"))
    assert (await world.ask(plan, lease, "git")).sealed


async def test_a_type_that_people_work_now_is_refused(world: World) -> None:
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    async with world.db.write() as session:
        await session.execute(update(AgentType).values(sdk_type=None))
    assert "for people now" in (await world.ask(plan, lease)).refused


async def test_another_accounts_type_is_lent_only_while_it_is_public(world: World) -> None:
    mine, plan = SealKey(), await world.plan()
    lease = await world.start(plan, mine.public)
    async with world.db.write() as session:
        await session.execute(update(AgentType).values(owner_id=world.admin))
    assert (await world.ask(plan, lease)).sealed
    async with world.db.write() as session:
        await session.execute(update(User).where(User.id == world.admin).values(role="user"))
    assert "is not for project Shop" in (await world.ask(plan, lease)).refused


async def test_where_nothing_is_set_the_answer_is_empty_and_no_refusal(world: World) -> None:
    own_agents = await world.plan(type_id="", project="")
    lease = await world.start(own_agents, SealKey().public)
    assert await world.ask(own_agents, lease) == CredentialsReply()
    assert await world.ask(own_agents, lease, "git") == CredentialsReply()
    plan = await world.plan()
    deliver = await world.start(plan, SealKey().public, DELIVER)
    assert await world.ask(plan, deliver, "agent", DELIVER) == CredentialsReply()
    lease = await world.start(plan, SealKey().public)
    async with world.db.write() as session:
        await session.execute(delete(Credential))
        await session.execute(update(AgentType).values(api_base_url=None))
    assert await world.ask(plan, lease) == CredentialsReply()
    assert await world.ask(plan, lease, "git") == CredentialsReply()


async def test_an_address_without_a_key_says_that_no_key_belongs_there(world: World) -> None:
    mine, plan = SealKey(), await world.plan()
    lease = await world.start(plan, mine.public)
    async with world.db.write() as session:
        await session.execute(delete(Credential))
    opened = mine.open((await world.ask(plan, lease)).sealed, lease_context(plan, "T1", lease, "agent"))
    assert msgspec.json.decode(opened, type=AgentCredentials) == AgentCredentials(api_key="", base_url=BASE_URL)


async def test_a_plan_without_a_project_may_not_name_somebodys_type(world: World) -> None:
    plan = await world.plan(project="")
    lease = await world.start(plan, SealKey().public)
    assert "belongs to no project" in (await world.ask(plan, lease)).refused


async def test_tampered_credentials_fail_closed_and_no_log_line_shows_a_secret(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    assert (await world.ask(plan, lease)).sealed
    assert (await world.ask(plan, lease, "git")).sealed
    async with world.db.write() as session:
        row = await session.get_one(Credential, (world.type_id, "agent"))
        row.sealed = row.sealed[:-1] + bytes([row.sealed[-1] ^ 1])
    refused = (await world.ask(plan, lease)).refused
    assert world.type_id in refused
    assert "changed" in refused
    assert "lent to r1" in caplog.text
    for secret in (API_KEY, GIT.secret):
        assert secret not in caplog.text
        assert secret not in refused


async def test_a_key_that_left_the_keyring_is_named_in_the_refusal(world: World, keyring_file: Path) -> None:
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    write_keyring(keyring_file, "k2")
    assert "'k1'" in (await world.ask(plan, lease)).refused
    write_keyring(keyring_file, "k2", "k1")
    assert (await world.ask(plan, lease)).sealed


async def test_many_ask_at_once_and_each_is_answered(world: World) -> None:
    mine, plan = SealKey(), await world.plan()
    lease = await world.start(plan, mine.public)
    asked = (world.ask(plan, lease if number % 2 else 99) for number in range(4 * AT_ONCE_MAX))
    replies = await asyncio.gather(*asked)
    assert [bool(reply.sealed) for reply in replies] == [bool(number % 2) for number in range(4 * AT_ONCE_MAX)]


async def test_several_gateways_share_the_questions(world: World) -> None:
    second = CredentialLeases(world.nc, world.store, world.db, world.keyring)
    await second.start()
    await world.leases.stop()
    plan = await world.plan()
    lease = await world.start(plan, SealKey().public)
    assert (await world.ask(plan, lease)).sealed
    await second.stop()


async def test_a_start_that_no_decider_would_have_made_lends_nothing(world: World) -> None:
    """Whoever has a runner's password may store one, for a task that has ended long ago."""
    plan, key = await world.plan(), SealKey()
    lease = await world.start(plan, SealKey().public)
    await to_task(world.store, plan, "T1", c.Release(lease=lease, reason="done with it"), META)
    await to_task(world.store, plan, "T1", c.MarkComplete(), META)
    ended = await load_task(world.store, plan, "T1")
    forged = TaskStarted(lease=lease + 1, runner="evil", execution=new_id(), seal_to=key.public)
    await world.store.append(plan, "T1", forged, Meta(actor="runner:evil"), expected=ended.seq)
    assert (await load_task(world.store, plan, "T1")).state.status == "running", "folding believes it"
    reply = await world.ask(plan, lease + 1)
    assert not reply.sealed and "was not decided" in reply.refused
