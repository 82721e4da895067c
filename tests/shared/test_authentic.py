"""What somebody with a runner's password gets into the log, by replies that reach any subject, changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import pytest
from nats.aio.client import Client

from shared.authentic import EXPECTED, MAC, mac
from shared.bus import GATEWAY, RUNNER, BusSettings, connect
from shared.clock import new_plan_id
from shared.events import (
    Event,
    PlanPaused,
    PlanResumed,
    TaskAbandoned,
    TaskDispatched,
    TaskMarkedComplete,
    TaskReleased,
    encode,
)
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec
from shared.store import Conflict, Meta, Recorded
from shared.streams import EVENTS, declare_streams
from shared.subjects import PLAN, entity_filter, event_subject, plan_filter
from shared.task import TaskState
from shared.transact import load_plan, load_task
from tests.nats_process import NatsServer

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
META = Meta(actor="user:ann", command="Abandon", command_id="c1", correlation="r1", seen=3)
DIRECT_GET = f"$JS.API.DIRECT.GET.{EVENTS}"
DISPATCHED = TaskDispatched(
    dispatch=1, attempt=1, prompt="x", repo_url="https://h/a.git", base_commit="a" * 40, heads=(), plan_name="x",
    task_name="x", timeout_s=60.0, budget_usd=1.0, agent=AgentSpec(sdk_type="claude", agent_type_id="b" * 24),
)  # fmt: skip
Headers = Mapping[str, str] | list[tuple[str, str]]
NONE: Headers = {}


class Log:
    """The log as a gateway has it, and somebody with a runner's password beside it."""

    def __init__(self, gateway: Client, runner: Client) -> None:
        self.store = JetStreamStore(gateway, KEY)
        self._gateway = gateway
        self._runner = runner

    async def end(self) -> int:
        return (await self._gateway.jetstream().stream_info(EVENTS)).state.last_seq

    async def store_as_runner(self, subject: str, body: bytes, headers: Headers = NONE) -> int:
        """Stores a message where a runner may, its headers as they are, even twice. Returns its sequence."""
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        block = "".join(["NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in pairs), "\r\n"]).encode()
        reply = self._runner.new_inbox()
        heard = await self._runner.subscribe(reply)
        line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(body)}\r\n".encode()
        await self._runner._send_command(line + block + body + b"\r\n")  # its own `publish` has each header once
        stored: dict[str, object] = json.loads((await heard.next_msg(60)).data)
        await heard.unsubscribe()
        seq = stored.get("seq")
        assert isinstance(seq, int), stored
        return seq

    async def copy(self, seq: int, subject: str) -> int:
        """Has the server send a stored message to a subject that a runner may not publish to.

        Returns the copy's sequence; 0 where it was not stored.
        """
        before = await self.end()
        behind = f"{plan_filter(new_plan_id()).removesuffix('>')}T1.completed"  # without a condition: is stored
        mark = await self.store_as_runner(behind, b"mark")
        for body, reply in ((seq, subject), (mark, behind)):
            await self._runner.publish(DIRECT_GET, json.dumps({"seq": body}).encode(), reply=reply)
        async with asyncio.timeout(60):
            # The server alone knows: there is no event to wait for.
            while (await self.raw(await self.end()))[1] != b"mark" or await self.end() == mark:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        end = await self.end()
        assert mark == before + 1 and end - mark in (1, 2)
        return mark + 1 if end - mark == 2 else 0

    async def forge(self, plan: str, entity: str, event: Event, headers: Headers = NONE) -> int:
        """Gets a message stored at an event's own subject."""
        held = f"{plan_filter(new_plan_id()).removesuffix('>')}T1.started"
        seq = await self.store_as_runner(held, encode(event), headers)
        forged = await self.copy(seq, event_subject(plan, entity, event))
        assert forged, "the server did not store it"
        return forged

    async def raw(self, seq: int) -> tuple[dict[str, str], bytes]:
        found = await self._gateway.request(DIRECT_GET, json.dumps({"seq": seq}).encode())
        return {n: v for n, v in (found.headers or {}).items() if n.startswith((EXPECTED, "Treadle-"))}, found.data


@pytest.fixture
async def log(own_nats: NatsServer) -> AsyncIterator[Log]:
    clients = []
    for user in (GATEWAY, RUNNER):
        access = own_nats.access_of(user)
        clients.append(await connect(BusSettings(access.url, access.user, access.password), "test"))
    await declare_streams(clients[0].jetstream())
    yield Log(*clients)
    for nc in clients:
        await nc.close()


async def followed(store: JetStreamStore, last: int, after: int = 0) -> list[Recorded]:
    seen: list[Recorded] = []
    async with asyncio.timeout(60):
        async for batch in store.follow(after=after):
            seen += batch.events
            if seen and seen[-1].seq >= last:
                break
    return seen


async def test_a_dispatch_that_a_runner_forged_is_no_event_and_its_task_works_on(log: Log) -> None:
    plan = new_plan_id()
    for code in ("T1", "T2"):
        await log.forge(plan, code, DISPATCHED, {"Treadle-Version": str(DISPATCHED.version)})
    assert (await load_task(log.store, plan, "T1")).state == TaskState()
    first = await log.store.append(plan, "T1", TaskMarkedComplete(), META, expected=0)
    await log.forge(plan, "T1", DISPATCHED)
    await log.forge(plan, "T1", TaskAbandoned(), {MAC: "é"})
    assert [r.seq for r in await log.store.read(plan, "T1", after=first)] == []
    second = await log.store.append(plan, "T1", TaskReleased(lease=1, reason=""), META, expected=first)
    await log.forge(plan, "T1", TaskAbandoned())
    third = await log.store.append(plan, "T1", TaskMarkedComplete(), META, expected=second)
    seqs = [first, second, third]
    assert [r.seq for r in await log.store.read(plan, "T1")] == seqs
    assert [r.seq for r in await log.store.read(plan)] == seqs
    assert [r.seq for r in await log.store.read(plan, limit=1)] == [first]
    assert [r.seq for r in await followed(log.store, seqs[-1]) if r.plan == plan] == seqs
    assert await log.store.last_seq(plan, "T1") == seqs[-1]


async def test_a_forged_event_of_a_plan_changes_nothing_and_a_real_conflict_stays_one(log: Log) -> None:
    plan = new_plan_id()
    first = await log.store.append(plan, PLAN, PlanPaused(), META, expected=0)
    await log.forge(plan, PLAN, PlanResumed())
    assert (await load_plan(log.store, plan)).seq == first
    second = await log.store.append(plan, PLAN, PlanResumed(), META, expected=first)
    await log.forge(plan, PLAN, PlanPaused())
    with pytest.raises(Conflict):
        await log.store.append(plan, PLAN, PlanPaused(), META, expected=first)
    assert [r.seq for r in await log.store.read(plan)] == [first, second]


async def test_a_code_is_good_for_its_message_and_for_no_other(log: Log) -> None:
    plan = new_plan_id()
    subject = event_subject(plan, "T1", TaskAbandoned())
    seq = await log.store.append(plan, "T1", TaskAbandoned(note="no"), META, expected=0)
    headers, body = await log.raw(seq)
    assert headers[MAC] == mac(KEY, subject, headers, body) != mac(OTHER_KEY, subject, headers, body)
    others = {
        "another subject": (event_subject(plan, "T2", TaskAbandoned()), headers, body),
        "another body": (subject, headers, encode(TaskAbandoned(note="yes"))),
        "another condition": (subject, {**headers, EXPECTED: "7"}, body),
        "another actor": (subject, {**headers, "Treadle-Actor": "user:bob"}, body),
        "one header more": (subject, {**headers, "Treadle-Causation": "1"}, body),
        "a header's end moved": (subject, {**headers, "Treadle-Actor": "user:annTreadle-Command"}, body),
    }
    for what, (at, with_headers, saying) in others.items():
        assert mac(KEY, at, with_headers, saying) != headers[MAC], what
    bare = {name: value for name, value in headers.items() if not name.startswith(EXPECTED)}
    await log.forge(plan, "T2", TaskAbandoned(note="no"), bare)
    assert await log.store.read(plan, "T2") == []


async def test_an_event_cannot_be_stored_a_second_time(log: Log) -> None:
    plan = new_plan_id()
    paused = await log.store.append(plan, PLAN, PlanPaused(), META, expected=0)
    resumed = await log.store.append(plan, PLAN, PlanResumed(), META, expected=paused)
    subject = event_subject(plan, PLAN, PlanPaused())
    assert not await log.copy(paused, subject), "the server heeds the condition"
    headers, _ = await log.raw(paused)
    # The server looks at the first of two headers, we at the last one.
    lie = [(EXPECTED, "0"), (f"{EXPECTED}-Subject", entity_filter(new_plan_id(), "T1")), *headers.items()]
    forged = await log.forge(plan, PLAN, PlanPaused(), lie)
    assert (await log.raw(forged))[0][MAC] == headers[MAC], "the copy has the right code"
    last = await log.store.append(plan, PLAN, PlanPaused(), META, expected=resumed)
    assert [r.seq for r in await log.store.read(plan, PLAN)] == [paused, resumed, last]
    assert [r.seq for r in await log.store.read(plan, PLAN, after=resumed)] == [last]
    for after in (0, paused, resumed):
        assert forged not in [r.seq for r in await followed(log.store, last, after)]


async def test_headers_of_a_stored_message_neither_end_a_reading_nor_hide_what_is_there(log: Log) -> None:
    plan = new_plan_id()
    first = await log.store.append(plan, "T1", TaskAbandoned(), META, expected=0)
    lease_event = TaskReleased(lease=1, reason="")
    seqs = [first]
    for status in ("100", "204", "404", "500"):
        headers = {"Status": status, EXPECTED: "0", f"{EXPECTED}-Subject": entity_filter(new_plan_id(), "T1")}
        seqs.append(await log.store_as_runner(event_subject(plan, "T1", lease_event), encode(lease_event), headers))
    seqs.append(await log.store.append(plan, "T1", TaskAbandoned(), META, expected=seqs[-1]))
    assert [r.seq for r in await log.store.read(plan, "T1")] == seqs
    assert [r.seq for r in await log.store.read(plan)] == seqs
    assert [r.seq for r in await followed(log.store, seqs[-1]) if r.plan == plan] == seqs


async def test_without_a_key_an_event_without_a_code_counts(log: Log, own_nats: NatsServer) -> None:
    access = own_nats.access_of(GATEWAY)
    nc = await connect(BusSettings(access.url, access.user, access.password), "test")
    plan, keyless = new_plan_id(), JetStreamStore(nc)
    seq = await keyless.append(plan, PLAN, PlanPaused(), META, expected=0)
    assert [r.seq for r in await keyless.read(plan)] == [seq]
    assert await log.store.read(plan) == []
    await nc.close()


def test_settings_do_not_show_their_secrets() -> None:
    assert "hush" not in repr(BusSettings("nats://h", "gateway", "hush", b"hush" * 8))
