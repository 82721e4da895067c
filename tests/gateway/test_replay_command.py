"""`treadle replay` on a plan of a gateway: its history is downloaded, and looked at here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import commands as c
from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from shared.transact import to_plan
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.projection.histories import ANN, spec_of, submit
from tests.gateway.test_command import Command
from tests.nats_process import NatsServer


@pytest.fixture
async def store(nats_url: NatsServer) -> AsyncIterator[JetStreamStore]:
    """The log. No dispatcher is there, so nothing happens but what a test does."""
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc)
    await nc.close()


async def test_plan_is_found_by_its_id_or_as_the_newest_and_shown_as_its_log_has_it(
    gateway: GatewayProcess, store: JetStreamStore, tmp_path: Path
) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann)
    plan = await submit(store, spec_of({"A": (), "B": ("A",)}), project=project)
    done = await to_plan(store, plan, c.Pause(reason="a look"), ANN)
    command = Command(gateway, tmp_path)
    shown = await command("replay", plan)
    assert shown.status == 0, shown.err
    assert f"plan {plan}  paused: a look" in shown.out and "waits for A" in shown.out
    log = await store.read(plan)
    stepped = await command("replay", plan, "--step", "--json")
    assert [json.loads(line)["event"]["seq"] for line in stepped.out.splitlines()] == [r.seq for r in log]
    before = await command("replay", "--plan", plan, "--at", str(done.seq - 1), "--json")
    assert json.loads(before.out)["status"] == "active"
    met = await command("replay", plan, "--until", "plan paused", "--json")
    assert json.loads(met.out)["seq"] == done.seq
    unknown = await command("replay", "p" + "z" * 12)
    assert (unknown.status, "there is no plan" in unknown.err) == (2, True)
