"""What an agent asks for, and a person's answer to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.asking import WHY, asks, expires, started
from tests.gateway.plans.made import ok
from tests.gateway.projection.histories import spec_of, submit
from tests.gateway.projection.sse_client import SseClient
from tests.nats_process import NatsServer

LONG = '{"content":"' + "x" * 200_000 + '"}'


@pytest.fixture
async def store(nats_url: NatsServer) -> AsyncIterator[JetStreamStore]:
    """The log that the gateway reads too. No dispatcher is there, so nothing happens but what a test does."""
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc)
    await nc.close()


async def plan_of(ann: httpx.AsyncClient, store: JetStreamStore) -> str:
    """A running plan of ann's with two tasks."""
    return await submit(store, spec_of({"A": (), "B": ("A",)}), project=await made.project(ann))


async def events_of(client: httpx.AsyncClient, plan: str, code: str) -> list[dict[str, Any]]:
    events = (await ok(client.get(f"/api/plans/{plan}/events", params={"limit": 500})))["events"]
    return [event for event in events if event["task"] == code]


async def test_a_task_shows_what_it_asks_for_and_goes_on_with_the_answer(
    gateway: GatewayProcess, store: JetStreamStore
) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_admin() as admin:
        plan = await plan_of(ann, store)
        approval = await asks(store, plan, "A")
        path = f"/api/plans/{plan}/tasks/A"
        task = await made.task_is(ann, plan, "A", "awaiting_approval")
        assert task["approval"] == {
            "approval": approval,
            "kind": "tool",
            "tool": "Bash",
            "input": '{"command":"pip install x"}',
            "input_is_cut": False,
            "why": WHY,
            "expires_at": "2100-01-01T00:00:00Z",
            "base_commit": "",
            "commit": "",
            "answer": None,
            "note": "",
            "expired": False,
        }
        assert (task["usage"]["cost_usd"], task["ended_at"] is not None) == (0.25, True)
        waiting = await ok(ann.get(f"/api/plans/{plan}/tasks", params={"status": "awaiting_approval"}))
        assert [one["code"] for one in waiting["items"]] == ["A"]
        view = await ok(ann.get(f"/api/plans/{plan}"))
        assert (view["standing"], view["is_busy"], view["counts"]["awaiting_approval"]) == ("waiting", False, 1)
        assert view["usage"]["cost_usd"] == 0.25

        done = await ok(ann.post(f"{path}/approve", json={"approval": approval, "note": "fine"}), 202)
        assert done["changed"] is True
        granted = await ok(ann.get(path, params={"min_seq": done["seq"]}))
        assert (granted["status"], granted["approval"]["answer"], granted["approval"]["note"]) == (
            "pending",
            "granted",
            "fine",
        )
        again = await ok(ann.post(f"{path}/approve", json={"approval": approval}), 202)
        assert (again["changed"], again["seq"]) == (False, done["seq"])
        late = await ann.post(f"{path}/deny", json={"approval": approval})
        assert "granted already" in assert_problem(late, 409, "refused")["detail"]
        [event] = [e for e in await events_of(ann, plan, "A") if e["type"] == "approval_granted"]
        assert (event["actor"], event["note"]) == ("user:ann", "fine")
        [entry] = (await ok(admin.get("/api/audit-log", params={"subject": f"{plan}/A"})))["items"]
        assert (entry["actor"], entry["action"]) == ("user:ann", "task.approved")
        assert entry["details"] == {"kind": "tool", "tool": "Bash", "approval": approval, "seq": done["seq"]}


async def test_an_answer_to_something_else_changes_nothing(gateway: GatewayProcess, store: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await plan_of(ann, store)
        path = f"/api/plans/{plan}/tasks/A"
        for answer in ("approve", "deny"):
            nothing = await ann.post(f"{path}/{answer}", json={"approval": "0" * 64})
            assert_problem(nothing, 409, "not_asked")
        first = await asks(store, plan, "A")
        await ok(ann.post(f"{path}/deny", json={"approval": first, "note": "no"}), 202)
        second = await asks(store, plan, "A", input_='{"command":"pip install y"}')
        assert second != first
        for answer in ("approve", "deny"):
            stale = await ann.post(f"{path}/{answer}", json={"approval": first})
            assert "something else" in assert_problem(stale, 409, "not_asked")["detail"]
        assert (await made.task_is(ann, plan, "A", "awaiting_approval"))["approval"]["approval"] == second
        bad: list[Any] = [{}, {"approval": "x"}, {"approval": second.upper()}, {"approval": second, "more": 1}, []]
        for body in bad:
            assert_problem(await ann.post(f"{path}/approve", json=body), 400, "bad_request")


async def test_of_many_answers_at_once_one_counts(gateway: GatewayProcess, store: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await plan_of(ann, store)
        body = {"approval": await asks(store, plan, "A")}
        path = f"/api/plans/{plan}/tasks/A"
        answers = await asyncio.gather(
            *(ann.post(f"{path}/{verb}", json=body) for verb in ("approve", "deny", "approve", "deny"))
        )
        assert sorted(answer.status_code for answer in answers) == [202, 202, 409, 409]
        told = [e["type"] for e in await events_of(ann, plan, "A") if e["type"].startswith("approval_")]
        assert len(told) == 2  # what was asked, and one answer


async def test_time_denies_and_says_so(gateway: GatewayProcess, store: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await plan_of(ann, store)
        approval = await asks(store, plan, "A")
        await expires(store, plan, "A", approval)
        task = await made.task_is(ann, plan, "A", "pending")
        assert (task["approval"]["answer"], task["approval"]["expired"]) == ("denied", True)
        late = await ann.post(f"/api/plans/{plan}/tasks/A/approve", json={"approval": approval})
        assert "denied already" in assert_problem(late, 409, "refused")["detail"]


async def test_a_question_wants_words(gateway: GatewayProcess, store: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await plan_of(ann, store)
        approval = await asks(store, plan, "A", "AskUserQuestion", '{"questions":[]}', "question")
        path = f"/api/plans/{plan}/tasks/A/approve"
        silent = await ann.post(path, json={"approval": approval, "note": " "})
        assert "note" in assert_problem(silent, 409, "refused")["detail"]
        await ok(ann.post(path, json={"approval": approval, "note": "blue"}), 202)


async def test_nobody_else_may_answer(gateway: GatewayProcess, store: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob, gateway.as_admin() as admin:
        plan = await plan_of(ann, store)
        body = {"approval": await asks(store, plan, "A")}
        for verb in ("approve", "deny"):
            path = f"/api/plans/{plan}/tasks/A/{verb}"
            assert_problem(await bob.post(path, json=body), 404, "not_found")
            assert_problem(await ann.post(path.replace("/A/", "/C/"), json=body), 404, "not_found")
        await made.task_is(ann, plan, "A", "awaiting_approval")
        await ok(admin.post(f"/api/plans/{plan}/tasks/A/deny", json=body), 202)


async def test_a_large_input_is_whole_only_on_the_task_s_own_page(
    gateway: GatewayProcess, store: JetStreamStore
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await plan_of(ann, store)
        await asks(store, plan, "A", "Write", LONG)
        task = await made.task_is(ann, plan, "A", "awaiting_approval")
        assert (task["approval"]["input"], task["approval"]["input_is_cut"]) == (LONG, False)
        listed = (await ok(ann.get(f"/api/plans/{plan}/tasks", params={"status": "awaiting_approval"})))["items"][0]
        assert listed["approval"]["input_is_cut"] is True
        assert listed["approval"]["input"] == LONG[: len(listed["approval"]["input"])]
        assert len(listed["approval"]["input"]) < 10_000


async def test_the_stream_tells_of_questions_and_answers(gateway: GatewayProcess, store: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await plan_of(ann, store)
        path = f"/api/plans/{plan}/stream"
        async with await SseClient.open(gateway.url, path, gateway.token_of("ann")) as stream:
            await stream.until("live")
            lease = await started(store, plan, "B")
            approval = await asks(store, plan, "A", kind="result")
            assert lease == 1
            asked = done = None
            while asked is None or done is None:
                told = await stream.next()
                if told.name == "task" and told.data["status"] == "awaiting_approval" and asked is None:
                    asked = told.data["approval"]
                    assert (asked["approval"], asked["commit"]) == (approval, "c" * 40)
                    body = {"approval": approval, "note": "well done"}
                    await ok(ann.post(f"/api/plans/{plan}/tasks/A/approve", json=body), 202)
                if told.name == "log" and told.data["type"] == "approval_granted":
                    done = told.data
            assert (done["actor"], done["approval"]) == ("user:ann", approval)
