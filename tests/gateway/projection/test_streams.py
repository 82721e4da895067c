"""Streams over real HTTP: complete, resumable, ended when they must be, a thousand at once."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import psutil
import pytest

from shared import commands as c
from shared.bus import BusSettings, connect
from shared.clock import new_id, new_plan_id
from shared.jetstream import JetStreamStore
from shared.subjects import transcript
from shared.transact import to_plan, to_task
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.projection.histories import ANN, DEADLINE_S, spec_of, submit, until
from tests.gateway.projection.sse_client import Ended, SseClient
from tests.nats_process import NatsServer

CLIENTS = 1_000
MEMORY_PER_CLIENT_MAX = 128 * 1024


async def project_of(gateway: GatewayProcess, user: str) -> str:
    async with gateway.as_user(user) as client:
        body = {"name": f"of {user}", "code_repo_url": "https://example.org/team/code.git"}
        answer = await client.post("/api/projects", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


async def test_a_stream_tells_history_then_how_things_stand_then_each_change(
    gateway: GatewayProcess, store: JetStreamStore
) -> None:
    plan = await submit(store, spec_of({"A": (), "B": ("A",)}))
    history = [record.seq for record in await store.read(plan)]
    path = f"/api/plans/{plan}/stream"
    async with await SseClient.open(gateway.url, path, gateway.token_of("admin")) as client:
        shown = await client.until("live")
        assert [event.id for event in shown if event.name == "log"] == history
        assert [event.data["code"] for event in shown if event.name == "task"] == ["A", "B", "_deliver"]
        assert [event.data["plan"] for event in shown if event.name == "plan"] == [plan]
        done = await to_task(store, plan, "A", c.MarkComplete(note="by hand"), ANN)
        told = await client.until("plan")
        assert (told[0].name, told[0].id, told[0].data["note"]) == ("log", done.seq, "by hand")
        assert {event.data["code"] for event in told if event.name == "task"} == {"A", "B"}
        [b] = [event.data for event in told if event.name == "task" and event.data["code"] == "B"]
        assert b["waiting_for"] == []
        assert told[-1].data["seq"] == done.seq


async def test_a_stream_resumes_without_gap_or_double_while_events_arrive(
    gateway: GatewayProcess, store: JetStreamStore
) -> None:
    plan = await submit(store, spec_of({f"T{i}": () for i in range(40)}))
    path, token = f"/api/plans/{plan}/stream", gateway.token_of("admin")

    async def write() -> None:
        for i in range(40):
            await to_task(store, plan, f"T{i}", c.MarkComplete(), ANN)

    writing = asyncio.create_task(write())
    seen: list[int] = []
    for more in (5, 30, 3, 25, 1, 12):
        headers = {"Last-Event-ID": str(seen[-1])} if seen else {}
        async with await SseClient.open(gateway.url, path, token, headers) as client:
            until_count = len(seen) + more
            while len(seen) < until_count:
                event = await client.next()
                if event.name == "log":
                    assert event.id is not None
                    seen.append(event.id)
    await writing
    last = await to_plan(store, plan, c.Pause(), ANN)
    async with await SseClient.open(gateway.url, path, token, {"Last-Event-ID": str(seen[-1])}) as client:
        seen += [event.id or 0 for event in await client.until_log(last.seq) if event.name == "log"]
    assert seen == [record.seq for record in await store.read(plan)]


async def test_events_are_paged_from_the_log(gateway: GatewayProcess, store: JetStreamStore) -> None:
    plan = await submit(store, spec_of({f"T{i}": () for i in range(20)}))
    seen: list[int] = []
    after: int | None = 0
    async with gateway.as_admin() as client:
        while after is not None:
            page = (await client.get(f"/api/plans/{plan}/events", params={"after": after, "limit": 7})).json()
            assert len(page["events"]) <= 7
            seen += [event["seq"] for event in page["events"]]
            after = page["next_after"]
    assert seen == [record.seq for record in await store.read(plan)]


async def test_a_transcript_is_paged_and_followed(
    gateway: GatewayProcess, store: JetStreamStore, nats_url: NatsServer
) -> None:
    plan = await submit(store, spec_of({"A": ()}))
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    said = [f'{{"kind":"text","text":"line {i}"}}'.encode() for i in range(25)]
    for body in (*said, b"not JSON"):
        await nc.jetstream().publish(transcript(plan, "A", 1), body)
    base = f"/api/plans/{plan}/tasks/A/transcript"
    texts: list[str] = []
    after: int | None = 0
    async with gateway.as_admin() as client:
        while after is not None:
            page = (await client.get(base, params={"after": after, "limit": 10})).json()
            texts += [item["activity"]["text"] for item in page["items"]]
            after = page["next_after"]
        assert (await client.get(base, params={"limit": 501})).status_code == 400
    assert texts[:25] == [f"line {i}" for i in range(25)]
    assert "can't be read" in texts[25]
    async with await SseClient.open(gateway.url, f"{base}/stream", gateway.token_of("admin")) as stream:
        assert [(await stream.next()).name for _ in range(26)] == ["activity"] * 26
        assert (await stream.next()).data == {"status": "pending"}
        await nc.jetstream().publish(transcript(plan, "A", 1), said[0])
        assert (await stream.until("activity"))[-1].data["activity"]["text"] == "line 0"
    await nc.close()


async def test_a_large_page_of_a_transcript_is_cut_by_bytes(
    gateway: GatewayProcess, store: JetStreamStore, nats_url: NatsServer
) -> None:
    plan = await submit(store, spec_of({"A": ()}))
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    for _ in range(9):
        await nc.jetstream().publish(transcript(plan, "A", 1), b'{"text":"' + b"x" * 1024**2 + b'"}')
    async with gateway.as_admin() as client:
        answer = await client.get(f"/api/plans/{plan}/tasks/A/transcript")
    assert 4 <= len(answer.json()["items"]) <= 5
    assert answer.json()["next_after"] is not None
    await nc.close()


async def test_nobody_hears_of_a_foreign_plan(gateway: GatewayProcess, store: JetStreamStore) -> None:
    mine = await submit(store, spec_of({"A": ()}), project=await project_of(gateway, "olga"))
    async with gateway.as_user("olga") as client:
        assert (await client.get(f"/api/plans/{mine}/events")).status_code == 200
    async with gateway.as_user("pavel") as client:
        for path in ("events", "stream", "tasks/A/transcript", "tasks/A/transcript/stream"):
            answers = [await client.get(f"/api/plans/{plan}/{path}") for plan in (mine, new_plan_id())]
            assert [answer.status_code for answer in answers] == [404, 404], path
            details = [answer.json()["detail"].split(" ", 2)[2] for answer in answers]
            assert details[0].replace(mine, "") == details[1].replace(answers[1].url.path.split("/")[3], "")


async def test_streams_end_at_once_for_a_frozen_user(gateway: GatewayProcess, store: JetStreamStore) -> None:
    name = f"frozen-{new_id()[:8]}"
    plan = await submit(store, spec_of({"A": ()}), project=await project_of(gateway, name))
    token = gateway.token_of(name)
    async with AsyncExitStack() as held:
        paths = (f"/api/plans/{plan}/stream", f"/api/plans/{plan}/tasks/A/transcript/stream")
        streams = [await held.enter_async_context(await SseClient.open(gateway.url, path, token)) for path in paths]
        for stream in streams:
            await stream.until("live")
        async with gateway.as_admin() as client:
            answer = await client.patch(f"/api/users/{gateway.id_of(name)}", json={"is_frozen": True})
            assert answer.status_code == 200, answer.text
        await to_plan(store, plan, c.Pause(reason="told to nobody"), ANN)
        for stream in streams:
            with pytest.raises(Ended):
                while True:
                    assert (await stream.next()).data.get("reason") != "told to nobody"


async def test_streams_of_a_plan_end_when_its_project_is_deleted(
    gateway: GatewayProcess, store: JetStreamStore
) -> None:
    name = f"deletes-{new_id()[:8]}"
    project = await project_of(gateway, name)
    plan = await submit(store, spec_of({"A": ()}), project=project)
    async with await SseClient.open(gateway.url, f"/api/plans/{plan}/stream", gateway.token_of(name)) as stream:
        await stream.until("live")
        async with gateway.as_user(name) as client:
            assert (await client.delete(f"/api/projects/{project}")).status_code == 202
        # The dispatcher's part: every task is cancelled, then the plan.
        for code in ("A", "_deliver"):
            await to_task(store, plan, code, c.CancelTask(phase="cancelling"), ANN)
        await _cancelled(store, plan)
        with pytest.raises(Ended):
            while True:
                await stream.next()


async def _cancelled(store: JetStreamStore, plan: str) -> None:
    async def is_cancelled() -> bool:
        decided = await to_plan(store, plan, c.ConfirmCancelled(), ANN)
        return decided.state.status == "cancelled"

    await until(is_cancelled)


@contextmanager
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
async def test_a_thousand_idle_clients_are_held_and_all_hear_of_an_event(
    own_gateway: GatewayProcess, store: JetStreamStore, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = await submit(store, spec_of({"A": ()}))
    process = psutil.Process(own_gateway.pid)
    token = own_gateway.token_of("admin")
    path = f"/api/plans/{plan}/stream?after={await store.last_seq(plan, '_plan')}"
    with many_files():
        async with AsyncExitStack() as held:
            first = await held.enter_async_context(await SseClient.open(own_gateway.url, path, token))
            await first.until("live")
            before = process.memory_info().rss
            opening = asyncio.Semaphore(20)

            async def open_one() -> SseClient:
                async with opening:
                    client = await held.enter_async_context(await SseClient.open(own_gateway.url, path, token))
                    await client.until("live")
                    return client

            clients = [first, *await asyncio.gather(*(open_one() for _ in range(CLIENTS - 1)))]
            per_client = (process.memory_info().rss - before) / (CLIENTS - 1)
            began = asyncio.get_running_loop().time()
            paused = await to_plan(store, plan, c.Pause(), ANN)
            told = await asyncio.gather(*(client.until_log(paused.seq) for client in clients))
            all_told_s = asyncio.get_running_loop().time() - began
            assert len(told) == CLIENTS
            assert per_client < MEMORY_PER_CLIENT_MAX
            with capsys.disabled():
                print(f"\n{per_client / 1024:.0f} KiB for each client, all told within {all_told_s:.2f} s")  # noqa: T201

            async def are_gone() -> bool:
                async with own_gateway.as_admin() as client:
                    return bool((await client.get("/api/suite")).json()["clients"] == 0)

    async with asyncio.timeout(DEADLINE_S):
        await until(are_gone)
