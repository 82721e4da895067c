"""A plan at any of its moments, over HTTP: as the log has it, and for whoever may read the plan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared import commands as c
from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from shared.subjects import shard
from shared.transact import to_plan, to_task
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok
from tests.gateway.projection.histories import ANN, spec_of, submit
from tests.nats_process import NatsServer


@pytest.fixture
async def log(nats_url: NatsServer) -> AsyncIterator[JetStreamStore]:
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc)
    await nc.close()


@pytest.fixture
async def olga(gateway_on_sqlite: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_on_sqlite.as_user("olga") as client:
        yield client


async def _plan(client: httpx.AsyncClient, log: JetStreamStore) -> str:
    return await submit(log, spec_of({"A": (), "B": ("A",)}), project=await made.project(client))


async def _events(client: httpx.AsyncClient, plan: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = (await ok(client.get(f"/api/plans/{plan}/events")))["events"]
    return events


async def test_the_state_at_the_end_is_that_of_the_newest_event(olga: httpx.AsyncClient, log: JetStreamStore) -> None:
    plan = await _plan(olga, log)
    done = await to_task(log, plan, "A", c.MarkComplete(note="seen"), ANN)
    found = await ok(olga.get(f"/api/plans/{plan}/state"))
    assert (found["plan"], found["seq"], found["type"], found["entity"]) == (plan, done.seq, "marked_complete", "A")
    assert (found["status"], found["fault"], found["branch"]) == ("active", "", f"treadle/{plan}")
    assert {task["code"]: task["status"] for task in found["tasks"]} == {
        "A": "completed",
        "B": "pending",
        "_deliver": "pending",
    }
    assert found == await ok(olga.get(f"/api/plans/{plan}/state", params={"at": "end"}))
    paused = await to_plan(log, plan, c.Pause(reason="lunch"), ANN)
    found = await ok(olga.get(f"/api/plans/{plan}/state"))
    assert (found["seq"], found["standing"], found["reason"]) == (paused.seq, "paused", "lunch")


async def test_every_event_of_a_plan_has_a_state_of_its_own_by_sequence_and_by_time(
    olga: httpx.AsyncClient, log: JetStreamStore
) -> None:
    plan = await _plan(olga, log)
    await to_task(log, plan, "A", c.Abandon(), ANN)
    for event in await _events(olga, plan):
        by_seq = await ok(olga.get(f"/api/plans/{plan}/state", params={"at": event["seq"]}))
        assert (by_seq["seq"], by_seq["type"]) == (event["seq"], event["type"])
        by_time = await ok(olga.get(f"/api/plans/{plan}/state", params={"at": event["time"]}))
        assert by_time["seq"] >= event["seq"]
        assert by_time["time"] == event["time"]


async def test_two_moments_are_compared(olga: httpx.AsyncClient, log: JetStreamStore) -> None:
    plan = await _plan(olga, log)
    before = (await _events(olga, plan))[-1]["seq"]
    done = await to_task(log, plan, "A", c.MarkComplete(), ANN)
    found = await ok(olga.get(f"/api/plans/{plan}/state", params={"at": "end", "against": before}))
    assert (found["before_seq"], found["after_seq"]) == (before, done.seq)
    tasks = {
        task["code"]: {one["field"]: [one["before"], one["after"]] for one in task["fields"]} for task in found["tasks"]
    }
    assert tasks["A"]["status"] == ["pending", "completed"]
    assert tasks["B"] == {"waits_for": [["A"], []]}
    assert (found["added"], found["removed"]) == ([], [])


@pytest.mark.parametrize(
    "at", ["1", "0", "yesterday", "-1", "1.5", "", "2020-01-01", "2026-02-30", "\x1b[2J", "x" * 65]
)
@pytest.mark.parametrize("parameter", ["at", "against"])
async def test_what_is_no_moment_of_the_plan_is_refused_in_words(
    olga: httpx.AsyncClient, log: JetStreamStore, parameter: str, at: str
) -> None:
    await _plan(olga, log)  # so that the next one does not begin with event 1
    plan = await _plan(olga, log)
    problem = assert_problem(await olga.get(f"/api/plans/{plan}/state", params={parameter: at}), 400, "bad_request")
    assert problem["fields"][0]["field"] == parameter
    assert problem["detail"].isprintable()


async def test_a_plan_that_is_somebody_elses_has_no_state_not_even_for_who_asks_after_its_owner(
    olga: httpx.AsyncClient, log: JetStreamStore, gateway_on_sqlite: GatewayProcess
) -> None:
    plan = await _plan(olga, log)
    async with gateway_on_sqlite.as_user("pavel") as pavel, gateway_on_sqlite.as_admin() as admin:
        await ok(olga.get(f"/api/plans/{plan}/state"))
        for params in ({}, {"at": "1"}, {"at": "nonsense"}, {"against": "1"}):
            assert_problem(await pavel.get(f"/api/plans/{plan}/state", params=params), 404, "not_found")
        assert (await ok(admin.get(f"/api/plans/{plan}/state")))["plan"] == plan
    async with gateway_on_sqlite.anonymous() as nobody:
        assert_problem(await nobody.get(f"/api/plans/{plan}/state"), 401, "unauthorized")


@pytest.mark.parametrize("plan", ["paaaaaaaaaaaa", "iaaaaaaaaaaaa", "x", "p%2e%2e"])
async def test_a_plan_that_is_not_there_has_no_state(olga: httpx.AsyncClient, plan: str) -> None:
    assert_problem(await olga.get(f"/api/plans/{plan}/state"), 404, "not_found")


async def test_an_event_that_nobody_can_read_is_told_as_the_plans_fault(
    olga: httpx.AsyncClient, log: JetStreamStore
) -> None:
    plan = await _plan(olga, log)
    subject = f"treadle.evt.{shard(plan)}.{plan}.A.marked_complete"
    stored = await log._js.publish(subject, b"{]", headers={"Treadle-Version": "1", "Treadle-Actor": "user:eve"})
    found = await ok(olga.get(f"/api/plans/{plan}/state"))
    assert found["fault_seq"] == stored.seq
    assert f"event {stored.seq} (marked_complete) can't be read" in found["fault"]
    assert found["standing"] == "needs_attention"
    before = await ok(olga.get(f"/api/plans/{plan}/state", params={"at": stored.seq - 1}))
    assert (before["fault"], before["standing"]) == ("", "running")


async def test_a_long_history_holds_nobody_else_up(
    olga: httpx.AsyncClient, log: JetStreamStore, gateway_on_sqlite: GatewayProcess
) -> None:
    plan = await submit(log, spec_of({f"T{i}": () for i in range(1_500)}), project=await made.project(olga))
    asked = asyncio.create_task(olga.get(f"/api/plans/{plan}/state"))
    answered = 0
    async with gateway_on_sqlite.anonymous() as client:
        while not asked.done():
            async with asyncio.timeout(60):
                assert (await client.get("/api/health/live")).is_success
            answered += 1
    found = await ok(asked)
    assert len(found["tasks"]) == 1_501
    assert answered > 1
