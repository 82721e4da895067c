"""A dispatch that somebody with a runner's password forged gets nobody's credentials."""

from __future__ import annotations

import asyncio
import json

import pytest

from services.gateway.credentials.keyring import Keyring
from services.gateway.credentials.lease import CredentialLeases
from services.gateway.database.engine import Database
from shared.bus import RUNNER, BusSettings, connect
from shared.clock import new_plan_id
from shared.events import TaskDispatched, TaskStarted, encode
from shared.jetstream import JetStreamStore
from shared.sealed import SealKey
from shared.spec import AgentSpec
from shared.store import Meta
from shared.streams import EVENTS, declare_streams
from shared.subjects import event_subject
from tests.gateway.credentials.test_lease import World
from tests.nats_process import NatsServer

KEY = b"k" * 32


@pytest.mark.parametrize("key", [KEY, None], ids=["with a key", "without one, which shows that the forgery is good"])
async def test_a_forged_dispatch_gets_no_credentials(
    key: bytes | None, own_nats: NatsServer, db: Database, keyring: Keyring
) -> None:
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    access = own_nats.access_of(RUNNER)
    thief = await connect(BusSettings(access.url, access.user, access.password), "thief")
    await declare_streams(nc.jetstream())
    world = World(nc, db, keyring)
    await world.fill()
    leases = CredentialLeases(nc, JetStreamStore(nc, key), db, keyring)
    await leases.start()

    plan, seal_key = new_plan_id(), SealKey()
    dispatched = TaskDispatched(
        dispatch=1, attempt=1, prompt="x", repo_url="https://h/a.git", base_commit="a" * 40, heads=(), plan_name="x",
        task_name="x", timeout_s=60.0, budget_usd=1.0, project=world.project,
        agent=AgentSpec(sdk_type="claude", agent_type_id=world.type_id),
    )  # fmt: skip
    started = TaskStarted(lease=1, runner="evil", execution="x", seal_to=seal_key.public)
    held = event_subject(new_plan_id(), "T1", started)
    headers = {"Treadle-Version": str(dispatched.version)}
    seq = (await thief.jetstream().publish(held, encode(dispatched), headers=headers)).seq
    request = json.dumps({"seq": seq}).encode()
    await thief.publish(f"$JS.API.DIRECT.GET.{EVENTS}", request, reply=event_subject(plan, "T1", dispatched))
    async with asyncio.timeout(60):
        while (await nc.jetstream().stream_info(EVENTS)).state.last_seq == seq:  # noqa: ASYNC110 - in the server
            await asyncio.sleep(0.01)
    last = await JetStreamStore(thief).append(plan, "T1", started, Meta(actor="runner:evil"), expected=seq + 1)
    assert last == seq + 2, "the forged dispatch is stored before it"

    world.nc = thief
    replies = [await world.ask(plan, 1, kind) for kind in ("agent", "git")]
    if key is None:
        assert all(reply.sealed for reply in replies)
    else:
        assert all(reply.refused and not reply.sealed for reply in replies)
        assert await world.ask(plan, 1) == replies[0], "the gateway goes on answering"
    await leases.stop()
    await thief.close()
    await nc.close()
